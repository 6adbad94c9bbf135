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

// A view of q, k, v or out with any strides but a contiguous last dimension.
struct HeadView {
  float* data;
  int64_t batch_stride, head_stride, row_stride;
};

HeadView view_of(const py::array& array, bool is_varlen) {
  const auto stride = [&](int axis) { return array.strides(axis) / int64_t{sizeof(float)}; };
  float* data = static_cast<float*>(const_cast<void*>(array.data()));
  if (is_varlen) return {data, 0, stride(1), stride(0)};
  return {data, stride(0), stride(1), stride(2)};
}

void check_heads(const char* name, const py::array& array, int ndim) {
  check(array.dtype().is(py::dtype::of<float>()), name, " has dtype ",
        py::str(array.dtype()).cast<std::string>(), ", wanted float32");
  check(array.ndim() == ndim, name, " has ", array.ndim(), " dimensions, wanted ", ndim);
  const int64_t head_dim = array.shape(ndim - 1);
  check(head_dim >= 1 && head_dim <= kMaxHeadDim, name, " has head_dim=", head_dim, ", wanted 1..",
        kMaxHeadDim);
  check(array.strides(ndim - 1) == sizeof(float) || head_dim == 1 || array.size() == 0, name,
        ": the last dimension is not contiguous");
}

// softmax(scale q k^T) v for `seqlen_q` queries and the keys given, heads [begin, end).
AttentionParams attention_params(const HeadView& q, const HeadView& k, const HeadView& v,
                                 const HeadView& out, int64_t head_dim, float scale) {
  return {.q = q.data,
          .k = k.data,
          .v = v.data,
          .out = out.data,
          .q_row_stride = q.row_stride,
          .k_row_stride = k.row_stride,
          .v_row_stride = v.row_stride,
          .out_row_stride = out.row_stride,
          .q_head_stride = q.head_stride,
          .k_head_stride = k.head_stride,
          .v_head_stride = v.head_stride,
          .out_head_stride = out.head_stride,
          .seqlen_q = 0,
          .seqlen_k = 0,
          .head_dim = head_dim,
          .key_index = nullptr,
          .head_begin = 0,
          .head_end = 0,
          .scale = scale,
          .scratch = nullptr};
}

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
  const HeadView qv = view_of(q, false), kv = view_of(k, false), vv = view_of(v, false);
  const HeadView ov = view_of(out, false);
  const uint8_t* keep = mask ? mask->data() : nullptr;
  if (out.size() == 0) return out;
  const Kernels& kernels = active_isa().kernels;
  const ReleaseGil release;
  const double flops = 4.0 * static_cast<double>(batch * heads * seqlen_q * seqlen_k * D);
  // An item is one head of one sentence; a masked key is dropped, not added as minus infinity.
  share(batch * heads, 1, 4.0 * flops, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> kept;
    int64_t listed = -1;
    ThreadScratch<float> scratch(attention_scratch_floats(seqlen_k, D));
    for (int64_t item = begin; item < end;) {
      const int64_t b = item / heads, head = item % heads;
      AttentionParams p = attention_params(qv, kv, vv, ov, D, static_cast<float>(scale));
      p.q += b * qv.batch_stride;
      p.k += b * kv.batch_stride;
      p.v += b * vv.batch_stride;
      p.out += b * ov.batch_stride;
      p.seqlen_q = seqlen_q;
      p.seqlen_k = seqlen_k;
      p.head_begin = head;
      p.head_end = std::min(heads, head + end - item);
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
      item += p.head_end - p.head_begin;
      if (p.seqlen_k == 0) {  // nothing to attend to: zeros
        for (int64_t h = p.head_begin; h < p.head_end; ++h)
          std::fill_n(p.out + h * p.out_head_stride, seqlen_q * D, 0.0f);
        continue;
      }
      p.scratch = scratch.data();
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

FloatArray attention_varlen(const py::array& q, const py::array& k, const py::array& v,
                            const IntArray& cu_seqlens, double scale) {
  check_heads("q", q, 3);
  check_heads("k", k, 3);
  check_heads("v", v, 3);
  const int64_t total = q.shape(0), heads = q.shape(1), D = q.shape(2);
  for (const auto& [name, array] : {std::pair{"k", &k}, std::pair{"v", &v}})
    check(array->shape(0) == total && array->shape(1) == heads && array->shape(2) == D, name,
          " has shape ", py::str(array->attr("shape")).cast<std::string>(), ", wanted (", total,
          ", ", heads, ", ", D, ")");
  const std::vector<int32_t> offsets = offsets_of(cu_seqlens, total);
  FloatArray out({q.shape(0), q.shape(1), q.shape(2)});
  if (out.size() == 0) return out;
  const HeadView qv = view_of(q, true), kv = view_of(k, true), vv = view_of(v, true);
  const HeadView ov = view_of(out, true);
  const size_t batch = offsets.size() - 1;
  const Kernels& kernels = active_isa().kernels;
  const ReleaseGil release;

  // Sentences differ, so the heads are shared out: every thread gets the same share of each.
  double flops = 0;
  int64_t max_seqlen = 0;
  for (size_t b = 0; b < batch; ++b) {
    const double seqlen = offsets[b + 1] - offsets[b];
    max_seqlen = std::max<int64_t>(max_seqlen, offsets[b + 1] - offsets[b]);
    flops += 4.0 * seqlen * seqlen * static_cast<double>(heads * D);
  }
  share(heads, 1, 4.0 * flops, [&](int64_t begin, int64_t end) {
    ThreadScratch<float> scratch(attention_scratch_floats(max_seqlen, D));
    for (size_t b = 0; b < batch; ++b) {
      AttentionParams p = attention_params(qv, kv, vv, ov, D, static_cast<float>(scale));
      p.q += offsets[b] * qv.row_stride;
      p.k += offsets[b] * kv.row_stride;
      p.v += offsets[b] * vv.row_stride;
      p.out += offsets[b] * ov.row_stride;
      p.seqlen_q = p.seqlen_k = offsets[b + 1] - offsets[b];
      p.head_begin = begin;
      p.head_end = end;
      p.scratch = scratch.data();
      kernels.attention(p);
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
  const ReleaseGil release;
  share(batch, 1, 4.0 * static_cast<double>(total_rows * H), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const auto [first, count, mask] = range_of(b);
      kernels.pool({x + first * H, H, mask, out + b * H, 0, count, H, Pooling::kMean});
    }
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
             py::arg("cu_seqlens").noconvert(), py::arg("scale"));
  module.def("masked_mean_pool", &masked_mean_pool, py::arg("x").noconvert(),
             py::arg("attention_mask").noconvert());
  module.def("mean_pool_varlen", &mean_pool_varlen, py::arg("x").noconvert(),
             py::arg("cu_seqlens").noconvert());
}

}  // namespace minifuse
