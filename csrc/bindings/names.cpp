// Names that are spelled in Python, batches that both encoders are given, and Python's main thread.

#include <pthread.h>

#include <atomic>

#include "bindings/bindings.h"
#include "common/fork_safe.h"

namespace minifuse {

Activation parse_activation(const std::string& name) {
  if (name.empty() || name == "none") return Activation::kNone;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new") return Activation::kGeluNew;
  if (name == "relu") return Activation::kRelu;
  if (name == "silu") return Activation::kSilu;
  if (name == "tanh") return Activation::kTanh;
  if (name == "sigmoid") return Activation::kSigmoid;
  fail("activation is '", name, "', wanted one of gelu, gelu_new, relu, silu, tanh, sigmoid");
}

WeightType parse_weight_type(const std::string& name) {
  if (name == "float32") return WeightType::kFloat32;
  if (name == "bfloat16") return WeightType::kBfloat16;
  if (name == "int8") return WeightType::kInt8;
  fail("dtype is '", name, "', wanted one of float32, bfloat16, int8");
}

Pooling parse_pooling(const std::string& name) {
  if (name == "mean") return Pooling::kMean;
  if (name == "cls") return Pooling::kCls;
  if (name == "max") return Pooling::kMax;
  if (name == "mean_sqrt_len_tokens") return Pooling::kMeanSqrtLen;
  if (name == "weightedmean") return Pooling::kWeightedMean;
  if (name == "lasttoken") return Pooling::kLastToken;
  fail("pooling is '", name,
       "', wanted one of mean, cls, max, mean_sqrt_len_tokens, weightedmean, lasttoken");
}

namespace {
std::atomic<unsigned long> main_thread{0};
}

unsigned long main_thread_ident() { return main_thread.load(); }

void prepare_process() {
  const py::module_ threading = py::module_::import("threading");
  main_thread = threading.attr("main_thread")().attr("ident").cast<unsigned long>();
  pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
  ForkState::get();
  // The first call that made an array would look NumPy up, and give the GIL away meanwhile as no
  // daemon thread may while the interpreter shuts down (see ReleaseGil).
  py::detail::npy_api::get();
}

std::vector<int32_t> copy_vector(const char* name, const IntArray& array) {
  check(array.ndim() == 1, name, " has ", array.ndim(), " dimensions, wanted 1");
  return {array.data(), array.data() + array.size()};
}

OwnedBatch::OwnedBatch(const IntArray& ids, const IntArray& cu_seqlens,
                       const TokenTypes& token_types)
    : ids(copy_vector("ids", ids)), cu_seqlens(copy_vector("cu_seqlens", cu_seqlens)) {
  check(!this->cu_seqlens.empty(), "cu_seqlens is empty, wanted at least one element");
  if (!token_types) return;
  this->token_types = copy_vector("token_types", *token_types);
  check(this->token_types.size() == this->ids.size(), "token_types has ", this->token_types.size(),
        " elements, wanted the number of ids, ", this->ids.size());
}

}  // namespace minifuse
