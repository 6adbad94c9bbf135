// What is spelled in Python, and arrays that both encoders borrow.

#include <map>

#include "bindings/bindings.h"

namespace minifuse {

Activation parse_activation(const std::string& name) {
  if (name.empty() || name == "none") return Activation::kNone;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new") return Activation::kGeluNew;
  if (name == "relu") return Activation::kRelu;
  fail("activation is '", name, "', wanted one of gelu, gelu_new, relu");
}

WeightType parse_weight_type(const std::string& name) {
  if (name == "float32") return WeightType::kFloat32;
  if (name == "bfloat16") return WeightType::kBfloat16;
  if (name == "int8") return WeightType::kInt8;
  fail("dtype is '", name, "', wanted one of float32, bfloat16, int8");
}

Pooling parse_pooling(const std::string& name) {
  static const std::map<std::string, Pooling> names = {
      {"mean", Pooling::kMean},
      {"cls", Pooling::kCls},
      {"max", Pooling::kMax},
      {"mean_sqrt_len_tokens", Pooling::kMeanSqrtLen},
      {"weightedmean", Pooling::kWeightedMean},
      {"lasttoken", Pooling::kLastToken},
  };
  const auto found = names.find(name);
  check(found != names.end(), "pooling is '", name,
        "', wanted one of mean, cls, max, mean_sqrt_len_tokens, weightedmean, lasttoken");
  return found->second;
}

Batch borrow_batch(const IntArray& ids, const IntArray& cu_seqlens) {
  check(ids.ndim() == 1, "ids has ", ids.ndim(), " dimensions, wanted 1");
  check(cu_seqlens.ndim() == 1 && cu_seqlens.size() >= 1,
        "cu_seqlens: wanted one dimension and at least one element");
  return {ids.data(), cu_seqlens.data(), cu_seqlens.size() - 1, ids.size()};
}

}  // namespace minifuse
