// The native part of fine-tuning: attention with dropout and its gradient, dropout, and the
// contrastive loss. Arrays are float32, C-contiguous; python/minifuse/training/ wraps them as
// functions of PyTorch's autograd.

#include "training/contrastive.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "bindings/bindings.h"
#include "bindings/share.h"
#include "common/buffer.h"

namespace minifuse {
namespace {

using LongArray = py::array_t<int64_t, py::array::c_style>;

// The sentences of a packed batch [total_tokens, 3 H] and what is computed of each.
struct Sentences {
  std::vector<int32_t> cu_seqlens;  // a checked copy
  int64_t batch, total_tokens, max_seqlen;
};

Sentences borrow_sentences(const IntArray& cu_seqlens, const LongArray& numbers,
                           int64_t total_tokens) {
  std::vector<int32_t> copy = copy_vector("cu_seqlens", cu_seqlens);
  check(!copy.empty(), "cu_seqlens is empty, wanted at least one element");
  const int64_t batch = static_cast<int64_t>(copy.size()) - 1;
  check(numbers.ndim() == 1 && numbers.size() == batch, "numbers: wanted one a sentence, ", batch);
  const int32_t* offsets = copy.data();
  check(offsets[0] == 0 && offsets[batch] == total_tokens, "cu_seqlens reaches from ", offsets[0],
        " to ", offsets[batch], ", wanted 0 to ", total_tokens);
  int64_t longest = 0;
  for (int64_t i = 0; i < batch; ++i) {
    check(offsets[i] <= offsets[i + 1], "cu_seqlens descends at ", i + 1);
    longest = std::max<int64_t>(longest, offsets[i + 1] - offsets[i]);
  }
  check(longest <= 1 << 14, "a sentence has ", longest, " tokens, wanted at most 16384");
  return {std::move(copy), batch, total_tokens, longest};
}

struct Shape {
  int64_t hidden_size, num_heads, head_dim;
};

Shape shape_of(const FloatArray& qkv, int64_t num_heads) {
  check(qkv.ndim() == 2 && qkv.shape(1) % 3 == 0 && qkv.shape(1) > 0,
        "qkv: wanted [total_tokens, 3 hidden_size]");
  const int64_t H = qkv.shape(1) / 3;
  check(num_heads > 0 && H % num_heads == 0 && H / num_heads <= kMaxHeadDim, "num_heads is ",
        num_heads, ", wanted a divisor of hidden_size=", H, " with heads of at most ", kMaxHeadDim);
  return {H, num_heads, H / num_heads};
}

// run(params) of every (sentence, head), shared out among threads.
template <typename Run>
void over_sentences(const Sentences& s, const Shape& shape, const float* qkv, float* out,
                    float dropout, uint64_t seed, const int64_t* numbers,
                    const ShouldStop& should_stop, Run run) {
  const int64_t H = shape.hidden_size, A = shape.num_heads, D = shape.head_dim;
  const double flops = 8.0 * static_cast<double>(s.total_tokens * s.max_seqlen * H);
  Items items(s.batch * A, should_stop);
  run_items(items, threads_for(flops, s.batch * A), [&](int member) {
    Buffer scratch(attention_training_floats(s.max_seqlen, D));
    std::function<bool()> is_stopped = [&items, member] { return items.is_stopped(member); };
    while (const std::optional<int64_t> item = items.next(member)) {
      const int64_t sentence = *item / A, head = *item % A;
      const int64_t row = s.cu_seqlens[static_cast<size_t>(sentence)];
      const int64_t seqlen = s.cu_seqlens[static_cast<size_t>(sentence + 1)] - row;
      if (seqlen == 0) continue;
      const float* q = qkv + row * 3 * H;
      run(AttentionTrainingParams{.forward = {.q = {q, 3 * H, D},
                                              .k = {q + H, 3 * H, D},
                                              .v = {q + 2 * H, 3 * H, D},
                                              .out = {out + row * H, H, D},
                                              .seqlen_q = seqlen,
                                              .seqlen_k = seqlen,
                                              .head_dim = D,
                                              .head_begin = head,
                                              .head_end = head + 1,
                                              .scale = 1.0f / std::sqrt(static_cast<float>(D)),
                                              .scratch = scratch.data()},
                                  .dropout = dropout,
                                  .seed = seed,
                                  .first_number = static_cast<uint64_t>(numbers[sentence]),
                                  .is_stopped =
                                      [](void* call) {
                                        return (*static_cast<std::function<bool()>*>(call))();
                                      },
                                  .call = &is_stopped},
          row);
    }
  });
}

void check_dropout(double dropout) {
  check(dropout >= 0 && static_cast<float>(dropout) < 1, "dropout is ", dropout,
        ", wanted 0 <= dropout < 1");
}

// out [total_tokens, H]; numbers [batch]: where each sentence's draws begin.
FloatArray attention_forward(const FloatArray& qkv, const IntArray& cu_seqlens,
                             const LongArray& numbers, int64_t num_heads, double dropout,
                             uint64_t seed) {
  const Shape shape = shape_of(qkv, num_heads);
  const Sentences sentences = borrow_sentences(cu_seqlens, numbers, qkv.shape(0));
  check_dropout(dropout);
  FloatArray out({qkv.shape(0), static_cast<py::ssize_t>(shape.hidden_size)});
  if (out.size() == 0) return out;
  float* result = out.mutable_data();
  const Kernels& kernels = active_isa().kernels;
  const float* from = qkv.data();
  const int64_t* draws = numbers.data();
  compute([&](const ShouldStop& should_stop) {
    over_sentences(
        sentences, shape, from, result, static_cast<float>(dropout), seed, draws, should_stop,
        [&](const AttentionTrainingParams& params, int64_t) { kernels.attention_forward(params); });
  });
  return out;
}

// The gradient of qkv [total_tokens, 3 H].
FloatArray attention_backward(const FloatArray& qkv, const FloatArray& out, const FloatArray& dout,
                              const IntArray& cu_seqlens, const LongArray& numbers,
                              int64_t num_heads, double dropout, uint64_t seed) {
  const Shape shape = shape_of(qkv, num_heads);
  const int64_t H = shape.hidden_size;
  const Sentences sentences = borrow_sentences(cu_seqlens, numbers, qkv.shape(0));
  check_dropout(dropout);
  for (const FloatArray* array : {&out, &dout})
    check(array->ndim() == 2 && array->shape(0) == qkv.shape(0) && array->shape(1) == H,
          "out and dout: wanted [", qkv.shape(0), ", ", H, "]");
  FloatArray dqkv({qkv.shape(0), qkv.shape(1)});
  if (dqkv.size() == 0) return dqkv;
  float *gradient = dqkv.mutable_data(), *result = const_cast<float*>(out.data());
  const float *from = qkv.data(), *dresult = dout.data();
  const int64_t* draws = numbers.data();
  const Kernels& kernels = active_isa().kernels;
  compute([&](const ShouldStop& should_stop) {
    over_sentences(sentences, shape, from, result, static_cast<float>(dropout), seed, draws,
                   should_stop, [&](AttentionTrainingParams params, int64_t row) {
                     params.dout = dresult + row * H;
                     params.dq = gradient + row * 3 * H;
                     params.dk = params.dq + H;
                     params.dv = params.dq + 2 * H;
                     kernels.attention_backward(params);
                   });
  });
  return dqkv;
}

// Rows of x [rows, width], each with a draw that begins at numbers[row] width.
FloatArray dropout(const FloatArray& x, const LongArray& numbers, double p, uint64_t seed) {
  check(x.ndim() == 2, "x has ", x.ndim(), " dimensions, wanted 2");
  check(numbers.ndim() == 1 && numbers.size() == x.shape(0), "numbers: wanted one a row, ",
        x.shape(0));
  check_dropout(p);
  FloatArray y({x.shape(0), x.shape(1)});
  if (y.size() == 0) return y;
  const int64_t num_rows = x.shape(0), width = x.shape(1);
  const float* from = x.data();
  float* to = y.mutable_data();
  const int64_t* first = numbers.data();
  const Kernels& kernels = active_isa().kernels;
  compute([&](const ShouldStop& should_stop) {
    share(num_rows, 1, 8.0 * static_cast<double>(num_rows * width), should_stop,
          [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
              kernels.dropout(from + row * width, to + row * width, width, seed,
                              static_cast<uint64_t>(first[row]) * static_cast<uint64_t>(width),
                              static_cast<float>(p));
          });
  });
  return y;
}

// The loss, da [n, d] and db [m, d].
py::tuple contrastive(const FloatArray& a, const FloatArray& b, double scale, double weight,
                      const std::optional<LongArray>& group_a,
                      const std::optional<LongArray>& group_b) {
  check(a.ndim() == 2 && b.ndim() == 2 && a.shape(1) == b.shape(1) && b.shape(0) >= a.shape(0),
        "a and b: wanted [n, d] and [m, d] with m >= n");
  check(b.shape(0) <= 1 << 26, "b has ", b.shape(0), " rows, wanted at most ", 1 << 26);
  check(group_a.has_value() == group_b.has_value(), "group_a and group_b: wanted both or none");
  if (group_a)
    check(group_a->ndim() == 1 && group_a->size() == a.shape(0) && group_b->ndim() == 1 &&
              group_b->size() == b.shape(0),
          "groups: wanted one a row");
  FloatArray da({a.shape(0), a.shape(1)}), db({b.shape(0), b.shape(1)});
  std::fill_n(da.mutable_data(), da.size(), 0.0f);
  std::fill_n(db.mutable_data(), db.size(), 0.0f);
  const ContrastiveParams params{.a = a.data(),
                                 .b = b.data(),
                                 .n = a.shape(0),
                                 .m = b.shape(0),
                                 .d = a.shape(1),
                                 .scale = static_cast<float>(scale),
                                 .weight = static_cast<float>(weight),
                                 .group_a = group_a ? group_a->data() : nullptr,
                                 .group_b = group_b ? group_b->data() : nullptr};
  float *da_data = da.mutable_data(), *db_data = db.mutable_data();
  double loss = 0;
  const InstructionSet& isa = active_isa();
  const int threads = default_num_threads();  // reads the environment: with the GIL
  compute([&](const ShouldStop& should_stop) {
    loss = contrastive_loss(isa, params, threads, should_stop, da_data, db_data).value_or(0);
  });
  return py::make_tuple(loss, da, db);
}

}  // namespace

void register_training(py::module_& module) {
  module.def("attention_forward", &attention_forward, py::arg("qkv").noconvert(),
             py::arg("cu_seqlens").noconvert(), py::arg("numbers").noconvert(), py::kw_only(),
             py::arg("num_heads"), py::arg("dropout"), py::arg("seed"));
  module.def("attention_backward", &attention_backward, py::arg("qkv").noconvert(),
             py::arg("out").noconvert(), py::arg("dout").noconvert(),
             py::arg("cu_seqlens").noconvert(), py::arg("numbers").noconvert(), py::kw_only(),
             py::arg("num_heads"), py::arg("dropout"), py::arg("seed"));
  module.def("dropout", &dropout, py::arg("x").noconvert(), py::arg("numbers").noconvert(),
             py::arg("p"), py::arg("seed"));
  module.def("contrastive_loss", &contrastive, py::arg("a").noconvert(), py::arg("b").noconvert(),
             py::arg("scale"), py::arg("weight"), py::arg("group_a").noconvert() = py::none(),
             py::arg("group_b").noconvert() = py::none());
}

}  // namespace minifuse
