// Operations within sentences, on NumPy arrays: attention and mean pooling, padded with a mask or
// packed with cu_seqlens. One function each: check, borrow, release, share heads or sentences out.

#include <algorithm>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/share.h"
#include "common/buffer.h"

namespace minifuse {
namespace {

// An array that is read or written with any strides but a contiguous last dimension.
class StridedFloats {
 public:
  explicit StridedFloats(const py::array& array)
      : data_(static_cast<float*>(const_cast<void*>(array.data()))),
        strides_(array.strides(), array.strides() + array.ndim()) {
    for (int64_t& stride : strides_) stride /= int64_t{sizeof(float)};
  }

  // Returns a sentence of [batch, heads, seqlen, head_dim].
  Heads<float> sentence(int64_t b) const {
    return {data_ + b * strides_[0], strides_[2], strides_[1]};
  }
  // Returns the tokens of [tokens, heads, head_dim] from `row` on.
  Heads<float> tokens_from(int64_t row) const {
    return {data_ + row * strides_[0], strides_[0], strides_[1]};
  }

 private:
  float* data_;
  std::vector<int64_t> strides_;
};

Heads<const float> read_only(const Heads<float>& heads) {
  return {heads.data, heads.row_stride, heads.head_stride};
}

void check_heads(const char* name, const py::array& array, int ndim) {
  check(array.dtype().equal(py::dtype::of<float>()), name, " has dtype ",
        py::str(array.dtype()).cast<std::string>(), ", wanted float32");
  check(array.ndim() == ndim, name, " has ", array.ndim(), " dimensions, wanted ", ndim);
  const int64_t head_dim = array.shape(ndim - 1);
  check(head_dim >= 1 && head_dim <= kMaxHeadDim, name, " has head_dim=", head_dim, ", wanted 1..",
        kMaxHeadDim);
  check(array.strides(ndim - 1) == sizeof(float) || head_dim == 1 || array.size() == 0, name,
        ": the last dimension is not contiguous");
}

// The heads and queries of a sentence that a thread takes at a time.
struct AttentionPart {
  int64_t sentence, head_begin, head_end, query_begin, query_end;
};

// The parts of a call whose attention takes so many flops in all: a few for each thread.
class AttentionParts {
 public:
  explicit AttentionParts(double flops)
      : num_threads_(threads_for(flops, INT64_MAX)),
        most_flops_(num_threads_ == 1 ? kFlopsPerPart
                                      : std::min(kFlopsPerPart, flops / (16.0 * num_threads_))) {}

  // Divides a sentence's heads and, where one is still too much, its queries.
  void add_sentence(int64_t sentence, int64_t heads, int64_t seqlen_q, double flops) {
    const double most = static_cast<double>(heads * seqlen_q);
    const auto wanted = static_cast<int64_t>(std::min(std::ceil(flops / most_flops_), most));
    const int64_t of_heads = std::clamp<int64_t>(wanted, 1, heads);
    const int64_t of_queries =
        std::clamp<int64_t>(wanted / heads, 1, std::max<int64_t>(1, seqlen_q / kFewestQueries));
    for (int64_t i = 0; i < of_heads; ++i)
      for (int64_t j = 0; j < of_queries; ++j)
        parts_.push_back({sentence, heads * i / of_heads, heads * (i + 1) / of_heads,
                          seqlen_q * j / of_queries, seqlen_q * (j + 1) / of_queries});
  }

  // work(next) without the GIL on each thread; next() is its next part, null after the last.
  template <typename Work>
  void run(Work work) const {
    compute([&](const ShouldStop& should_stop) {
      const auto count = static_cast<int64_t>(parts_.size());
      Items items(count, should_stop);
      const int64_t threads = std::clamp<int64_t>(count, 1, num_threads_);
      run_items(items, static_cast<int>(threads), [&](int member) {
        work([&]() -> const AttentionPart* {
          const std::optional<int64_t> item = items.next(member);
          return item ? &parts_[static_cast<size_t>(*item)] : nullptr;
        });
      });
    });
  }

 private:
  const int num_threads_;
  const double most_flops_;
  std::vector<AttentionPart> parts_;
};

// The time that a kernel takes that also takes exponentials and divides, by that of its products.
constexpr double kSoftmaxCost = 4.0;

FloatArray attention(const py::array& q, const py::array& k, const py::array& v,
                     const std::optional<ByteArray>& mask, double scale) {
  check_heads("q", q, 4);
  check_heads("k", k, 4);
  check_heads("v", v, 4);
  const int64_t batch = q.shape(0), heads = q.shape(1), seqlen_q = q.shape(2), D = q.shape(3);
  const int64_t seqlen_k = k.shape(2);
  // Views without strides have any length; scratch memory is computed from it.
  check(seqlen_q <= INT32_MAX && seqlen_k <= INT32_MAX, "q has ", seqlen_q, " rows and k ",
        seqlen_k, ", wanted at most ", INT32_MAX);
  for (const auto& [name, array] : {std::pair{"k", &k}, std::pair{"v", &v}})
    check(array->shape(0) == batch && array->shape(1) == heads && array->shape(2) == seqlen_k &&
              array->shape(3) == D,
          name, " has shape ", py::str(array->attr("shape")).cast<std::string>(), ", wanted (",
          batch, ", ", heads, ", ", seqlen_k, ", ", D, ")");
  if (mask)
    check(mask->ndim() == 2 && mask->shape(0) == batch && mask->shape(1) == seqlen_k,
          "mask has shape ", py::str(mask->attr("shape")).cast<std::string>(), ", wanted (", batch,
          ", ", seqlen_k, ")");
  FloatArray out({q.shape(0), q.shape(1), q.shape(2), q.shape(3)});
  const StridedFloats qs(q), ks(k), vs(v), outs(out);
  const uint8_t* keep = mask ? mask->data() : nullptr;
  if (out.size() == 0) return out;
  const Kernels& kernels = active_isa().kernels;
  const double flops = kSoftmaxCost * 4.0 * static_cast<double>(heads * seqlen_q) *
                       static_cast<double>(seqlen_k * D);  // of a sentence
  AttentionParts parts(flops * static_cast<double>(batch));
  for (int64_t b = 0; b < batch; ++b) parts.add_sentence(b, heads, seqlen_q, flops);
  // A masked key is dropped, not added as minus infinity.
  parts.run([&](auto next) {
    std::vector<int32_t> kept;
    int64_t listed = -1;
    ThreadScratch<float> scratch(attention_scratch_floats(seqlen_k, D));
    while (const AttentionPart* part = next()) {
      const int64_t b = part->sentence;
      AttentionParams p{.q = read_only(qs.sentence(b)),
                        .k = read_only(ks.sentence(b)),
                        .v = read_only(vs.sentence(b)),
                        .out = outs.sentence(b),
                        .seqlen_q = seqlen_q,
                        .seqlen_k = seqlen_k,
                        .head_dim = D,
                        .head_begin = part->head_begin,
                        .head_end = part->head_end,
                        .scale = static_cast<float>(scale),
                        .scratch = scratch.data(),
                        .query_begin = part->query_begin,
                        .query_end = part->query_end};
      if (keep != nullptr) {
        if (listed != b) {
          kept.clear();
          for (int64_t key = 0; key < seqlen_k; ++key)
            if (keep[b * seqlen_k + key]) kept.push_back(static_cast<int32_t>(key));
          listed = b;
        }
        const int64_t count = static_cast<int64_t>(kept.size());
        // Kept keys that stand in front, as padding on the right leaves them, need no list.
        if (count > 0 && kept.back() != count - 1) p.key_index = kept.data();
        p.seqlen_k = count;
      }
      if (p.seqlen_k == 0) {  // nothing to attend to: zeros
        for (int64_t h = p.head_begin; h < p.head_end; ++h)
          std::fill_n(p.out.data + h * p.out.head_stride + p.query_begin * D,
                      (p.query_end - p.query_begin) * D, 0.0f);
        continue;
      }
      kernels.attention(p);
    }
  });
  return out;
}

// A checked copy.
std::vector<int32_t> offsets_of(const IntArray& cu_seqlens, int64_t total_tokens) {
  std::vector<int32_t> offsets = copy_vector("cu_seqlens", cu_seqlens);
  check(!offsets.empty(), "cu_seqlens: wanted int32 [batch + 1], so at least one element");
  check(offsets[0] == 0, "cu_seqlens[0] is ", offsets[0], ", wanted 0");
  for (size_t i = 1; i < offsets.size(); ++i)
    check(offsets[i] >= offsets[i - 1], "cu_seqlens descends at ", i, ": ", offsets[i - 1],
          " then ", offsets[i]);
  check(offsets.back() == total_tokens, "cu_seqlens ends at ", offsets.back(),
        ", wanted the number of rows, ", total_tokens);
  return offsets;
}

// Biases by head and distance as kernels read them. Throws unless there are as many as a sentence of
// max_seqlen tokens has distances, -(P - 1) to P - 1 for some P.
class PaddedBias {
 public:
  PaddedBias(const FloatArray& bias, int64_t heads, int64_t max_seqlen) {
    check(bias.ndim() == 2 && bias.shape(0) == heads && bias.shape(1) % 2 == 1,
          "relative_bias has shape ", py::str(bias.attr("shape")).cast<std::string>(), ", wanted (",
          heads, ", 2 P - 1)");
    const int64_t distances = bias.shape(1);
    middle_ = distances / 2;
    check(max_seqlen <= middle_ + 1, "relative_bias is for sentences of ", middle_ + 1,
          " tokens, and one has ", max_seqlen);
    stride_ = relative_bias_stride(middle_ + 1);
    floats_ = Buffer(heads * stride_);
    std::fill_n(floats_.data(), heads * stride_, 0.0f);
    for (int64_t head = 0; head < heads; ++head)
      std::copy_n(bias.data() + head * distances, distances, floats_.data() + head * stride_);
  }

  const float* of_distance_0() const { return floats_.data() + middle_; }
  int64_t stride() const { return stride_; }

 private:
  Buffer floats_;
  int64_t middle_, stride_;
};

FloatArray attention_varlen(const py::array& q, const py::array& k, const py::array& v,
                            const IntArray& cu_seqlens, double scale,
                            const std::optional<FloatArray>& relative_bias) {
  check_heads("q", q, 3);
  check_heads("k", k, 3);
  check_heads("v", v, 3);
  const int64_t total = q.shape(0), heads = q.shape(1), D = q.shape(2);
  for (const auto& [name, array] : {std::pair{"k", &k}, std::pair{"v", &v}})
    check(array->shape(0) == total && array->shape(1) == heads && array->shape(2) == D, name,
          " has shape ", py::str(array->attr("shape")).cast<std::string>(), ", wanted (", total,
          ", ", heads, ", ", D, ")");
  const std::vector<int32_t> offsets = offsets_of(cu_seqlens, total);
  const size_t batch = offsets.size() - 1;
  const auto seqlen_of = [&](size_t b) { return int64_t{offsets[b + 1]} - offsets[b]; };
  const auto flops_of = [&](size_t b) {
    const auto seqlen = static_cast<double>(seqlen_of(b));
    return kSoftmaxCost * 4.0 * seqlen * seqlen * static_cast<double>(heads * D);
  };
  double flops = 0;
  int64_t max_seqlen = 0;
  for (size_t b = 0; b < batch; ++b) {
    max_seqlen = std::max(max_seqlen, seqlen_of(b));
    flops += flops_of(b);
  }
  std::optional<PaddedBias> bias;
  if (relative_bias) bias.emplace(*relative_bias, heads, max_seqlen);
  FloatArray out({q.shape(0), q.shape(1), q.shape(2)});
  if (out.size() == 0) return out;
  const StridedFloats qs(q), ks(k), vs(v), outs(out);
  const Kernels& kernels = active_isa().kernels;
  AttentionParts parts(flops);
  for (size_t b = 0; b < batch; ++b)
    if (seqlen_of(b) > 0)
      parts.add_sentence(static_cast<int64_t>(b), heads, seqlen_of(b), flops_of(b));
  parts.run([&](auto next) {
    ThreadScratch<float> scratch(attention_scratch_floats(max_seqlen, D));
    while (const AttentionPart* part = next()) {
      const auto b = static_cast<size_t>(part->sentence);
      const int64_t row = offsets[b], seqlen = seqlen_of(b);
      kernels.attention({.q = read_only(qs.tokens_from(row)),
                         .k = read_only(ks.tokens_from(row)),
                         .v = read_only(vs.tokens_from(row)),
                         .out = outs.tokens_from(row),
                         .seqlen_q = seqlen,
                         .seqlen_k = seqlen,
                         .head_dim = D,
                         .head_begin = part->head_begin,
                         .head_end = part->head_end,
                         .scale = static_cast<float>(scale),
                         .scratch = scratch.data(),
                         .bias = bias ? bias->of_distance_0() : nullptr,
                         .bias_stride = bias ? bias->stride() : 0,
                         .query_begin = part->query_begin,
                         .query_end = part->query_end});
    }
  });
  return out;
}

// Row range and mask of sentence b.
template <typename RangeOf>
FloatArray pool_rows(const float* x, int64_t batch, int64_t H, int64_t total_rows,
                     RangeOf range_of) {
  FloatArray y({static_cast<py::ssize_t>(batch), static_cast<py::ssize_t>(H)});
  if (y.size() == 0) return y;
  float* out = y.mutable_data();
  const Kernels& kernels = active_isa().kernels;
  const auto sentences = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const auto [first, count, mask] = range_of(b);
      kernels.pool({x + first * H, H, mask, out + b * H, 0, count, H, Pooling::kMean});
    }
  };
  compute([&](const ShouldStop& should_stop) {
    share(batch, 1, kMoveCost * static_cast<double>(total_rows * H), should_stop, sentences);
  });
  return y;
}

struct RowRange {
  int64_t first, count;
  const uint8_t* mask;
};

FloatArray masked_mean_pool(const FloatArray& x, const ByteArray& mask) {
  check(x.ndim() == 3, "x has ", x.ndim(), " dimensions, wanted 3: [batch, seqlen, hidden_size]");
  const int64_t batch = x.shape(0), seqlen = x.shape(1);
  check(mask.ndim() == 2 && mask.shape(0) == batch && mask.shape(1) == seqlen,
        "attention_mask has shape ", py::str(mask.attr("shape")).cast<std::string>(), ", wanted (",
        batch, ", ", seqlen, ")");
  const uint8_t* keep = mask.data();
  return pool_rows(x.data(), batch, x.shape(2), batch * seqlen,
                   [=](int64_t b) { return RowRange{b * seqlen, seqlen, keep + b * seqlen}; });
}

FloatArray mean_pool_varlen(const FloatArray& x, const IntArray& cu_seqlens) {
  check(x.ndim() == 2, "x has ", x.ndim(), " dimensions, wanted 2: [total_tokens, hidden_size]");
  const std::vector<int32_t> copy = offsets_of(cu_seqlens, x.shape(0));
  const int32_t* offsets = copy.data();
  return pool_rows(x.data(), cu_seqlens.size() - 1, x.shape(1), x.shape(0), [=](int64_t b) {
    return RowRange{offsets[b], offsets[b + 1] - offsets[b], nullptr};
  });
}

}  // namespace

void register_sentence_ops(py::module_& module) {
  module.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"),
             py::arg("mask").noconvert(), py::arg("scale"));
  module.def("attention_varlen", &attention_varlen, py::arg("q"), py::arg("k"), py::arg("v"),
             py::arg("cu_seqlens").noconvert(), py::arg("scale"),
             py::arg("relative_bias").noconvert());
  module.def("masked_mean_pool", &masked_mean_pool, py::arg("x").noconvert(),
             py::arg("attention_mask").noconvert());
  module.def("mean_pool_varlen", &mean_pool_varlen, py::arg("x").noconvert(),
             py::arg("cu_seqlens").noconvert());
}

}  // namespace minifuse
