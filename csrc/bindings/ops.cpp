// Each fused operation on NumPy arrays, one function each: check, borrow, release, share the rows
// out. Shapes and dtypes are in python/minifuse/ops.py, which also turns tensors into arrays.

#include <algorithm>
#include <cmath>
#include <optional>

#include "bindings/bindings.h"
#include "encoder/weights.h"

namespace minifuse {
namespace {

// Work below this many flops stays on the calling thread: waking another costs microseconds.
constexpr double kFlopsPerThread = 1e6;

int threads_for(double flops, int64_t max_parts) {
  static const int available = default_num_threads();
  const double wanted = std::max(1.0, flops / kFlopsPerThread);
  return static_cast<int>(std::min({static_cast<double>(available), wanted,
                                    static_cast<double>(std::max<int64_t>(1, max_parts))}));
}

// f(begin, end) over [0, n) in one contiguous part per thread; `flops` in all decide how many.
template <typename F>
void share(int64_t n, int64_t granularity, double flops, F f) {
  const int64_t units = (n + granularity - 1) / granularity;
  const auto part = [&](int64_t member, int64_t size) {
    const int64_t begin = std::min(n, units * member / size * granularity);
    const int64_t end = std::min(n, units * (member + 1) / size * granularity);
    if (begin < end) f(begin, end);
  };
  const int threads = threads_for(flops, units);
  if (threads == 1) return part(0, 1);
  ThreadPool::get().run(threads, [&](int member, int size) { part(member, size); });
}

struct PackedMatrix {
  PackedLinear linear;
  const Kernels* kernels;
};

PackedMatrix pack_linear(const FloatArray& weight) {
  check(weight.ndim() == 2, "weight has ", weight.ndim(), " dimensions, wanted 2: [out, in]");
  const Kernels& kernels = active_kernels();
  PackedMatrix packed{{}, &kernels};
  PackedLinear& linear = packed.linear;
  linear.N = weight.shape(0);
  linear.K = weight.shape(1);
  linear.num_panels = (linear.N + kernels.panel_columns - 1) / kernels.panel_columns;
  linear.weight = Buffer(linear.num_panels * linear.K * kernels.panel_columns);
  const float* data = weight.data();
  const py::gil_scoped_release release;
  // A float moved costs about as much as four flops.
  share(linear.num_panels, 1, 4.0 * static_cast<double>(linear.N * linear.K),
        [&](int64_t begin, int64_t end) {
          kernels.pack_weight(data, linear.K, linear.N, linear.K, linear.weight.data(), begin, end);
        });
  return packed;
}

void check_packed(const PackedMatrix& weight) {
  check(weight.kernels == &active_kernels(), "weight was packed for ", weight.kernels->name,
        ", wanted ", active_kernels().name, ": pack it again");
}

void check_vector(const char* name, const FloatArray& array, int64_t size) {
  check(array.ndim() == 1 && array.shape(0) == size, name, " has shape ",
        py::str(array.attr("shape")).cast<std::string>(), ", wanted (", size, ",)");
}

void check_matrix(const char* name, const FloatArray& array, int64_t columns) {
  check(array.ndim() == 2 && array.shape(1) == columns, name, " has shape ",
        py::str(array.attr("shape")).cast<std::string>(), ", wanted (rows, ", columns, ")");
}

const float* data_or_null(const std::optional<FloatArray>& array) {
  return array ? array->data() : nullptr;
}

FloatArray layer_norm(const FloatArray& x, const FloatArray& gamma, const FloatArray& beta,
                      double eps, const std::optional<FloatArray>& residual) {
  check(x.ndim() == 2, "x has ", x.ndim(), " dimensions, wanted 2");
  const int64_t M = x.shape(0), H = x.shape(1);
  check_vector("gamma", gamma, H);
  check_vector("beta", beta, H);
  if (residual)
    check(residual->ndim() == 2 && residual->shape(0) == M && residual->shape(1) == H,
          "residual has another shape than x");
  FloatArray y({x.shape(0), x.shape(1)});
  const LayerNormParams whole{.x = x.data(),
                              .ldx = H,
                              .residual = data_or_null(residual),
                              .ldr = H,
                              .gamma = gamma.data(),
                              .beta = beta.data(),
                              .eps = static_cast<float>(eps),
                              .y = y.mutable_data(),
                              .ldy = H,
                              .M = M,
                              .H = H};
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;
  share(M, 4, 16.0 * static_cast<double>(M * H), [&](int64_t begin, int64_t end) {
    LayerNormParams part = whole;
    part.x += begin * H;
    part.y += begin * H;
    if (part.residual) part.residual += begin * H;
    part.M = end - begin;
    kernels.layer_norm(part);
  });
  return y;
}

LinearParams linear_params(const FloatArray& x, const PackedMatrix& weight,
                           const std::optional<FloatArray>& bias, float* y, Activation activation) {
  const PackedLinear& w = weight.linear;
  return {.x = x.data(),
          .ldx = w.K,
          .packed_weight = w.weight.data(),
          .bias = data_or_null(bias),
          .y = y,
          .ldy = w.N,
          .M = x.shape(0),
          .N = w.N,
          .K = w.K,
          .panel_begin = 0,
          .panel_end = w.num_panels,
          .activation = activation};
}

double linear_flops(const LinearParams& p) { return 2.0 * static_cast<double>(p.M * p.N * p.K); }

void check_linear(const FloatArray& x, const PackedMatrix& weight,
                  const std::optional<FloatArray>& bias) {
  check_packed(weight);
  check_matrix("x", x, weight.linear.K);
  if (bias) check_vector("bias", *bias, weight.linear.N);
}

LinearParams rows_of(LinearParams p, int64_t begin, int64_t end) {
  p.x += begin * p.ldx;
  p.y += begin * p.ldy;
  p.M = end - begin;
  return p;
}

FloatArray linear(const FloatArray& x, const PackedMatrix& weight,
                  const std::optional<FloatArray>& bias, const std::string& activation) {
  check_linear(x, weight, bias);
  FloatArray y({x.shape(0), static_cast<py::ssize_t>(weight.linear.N)});
  const LinearParams p =
      linear_params(x, weight, bias, y.mutable_data(), parse_activation(activation));
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;
  if (p.M < 8 * kernels.tile_rows) {  // few rows: share the columns, so each panel is read once
    share(p.panel_end, 1, linear_flops(p), [&](int64_t begin, int64_t end) {
      LinearParams part = p;
      part.panel_begin = begin;
      part.panel_end = end;
      kernels.linear(part);
    });
  } else {
    share(p.M, kernels.tile_rows, linear_flops(p),
          [&](int64_t begin, int64_t end) { kernels.linear(rows_of(p, begin, end)); });
  }
  return y;
}

FloatArray linear_residual_layer_norm(const FloatArray& x, const PackedMatrix& weight,
                                      const std::optional<FloatArray>& bias,
                                      const FloatArray& residual, const FloatArray& gamma,
                                      const FloatArray& beta, double eps) {
  check_linear(x, weight, bias);
  const int64_t N = weight.linear.N;
  check_matrix("residual", residual, N);
  check(residual.shape(0) == x.shape(0), "residual has ", residual.shape(0), " rows, wanted ",
        x.shape(0));
  check_vector("gamma", gamma, N);
  check_vector("beta", beta, N);
  FloatArray y({x.shape(0), static_cast<py::ssize_t>(N)});
  const LinearParams p = linear_params(x, weight, bias, y.mutable_data(), Activation::kNone);
  const LayerNormParams norm{.x = p.y,
                             .ldx = N,
                             .residual = residual.data(),
                             .ldr = N,
                             .gamma = gamma.data(),
                             .beta = beta.data(),
                             .eps = static_cast<float>(eps),
                             .y = p.y,
                             .ldy = N,
                             .M = p.M,
                             .H = N};
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;
  share(p.M, 4, linear_flops(p), [&](int64_t begin, int64_t end) {
    LayerNormParams part = norm;
    part.residual += begin * N;
    kernels.linear_residual_layer_norm(rows_of(p, begin, end), part);
  });
  return y;
}

FloatArray gelu_ffn(const FloatArray& x, const PackedMatrix& w1,
                    const std::optional<FloatArray>& b1, const PackedMatrix& w2,
                    const std::optional<FloatArray>& b2) {
  check_linear(x, w1, b1);
  check_packed(w2);
  check(w2.linear.K == w1.linear.N, "w2 has ", w2.linear.K, " inputs, wanted the ", w1.linear.N,
        " outputs of w1");
  if (b2) check_vector("b2", *b2, w2.linear.N);
  FloatArray y({x.shape(0), static_cast<py::ssize_t>(w2.linear.N)});
  const int64_t F = w1.linear.N, ldhidden = padded_stride(F);
  const LinearParams first = linear_params(x, w1, b1, nullptr, Activation::kGelu);
  const LinearParams second{.x = nullptr,  // the hidden rows of a block
                            .ldx = ldhidden,
                            .packed_weight = w2.linear.weight.data(),
                            .bias = data_or_null(b2),
                            .y = y.mutable_data(),
                            .ldy = w2.linear.N,
                            .M = x.shape(0),
                            .N = w2.linear.N,
                            .K = F,
                            .panel_begin = 0,
                            .panel_end = w2.linear.num_panels,
                            .activation = Activation::kNone};
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;
  share(first.M, 4, linear_flops(first) + linear_flops(second), [&](int64_t begin, int64_t end) {
    // The hidden rows of a block stay in L2 between the two matrices.
    constexpr int64_t kBlock = 96;
    thread_local Buffer hidden;
    const int64_t floats = std::min(kBlock, end - begin) * ldhidden;
    if (hidden.size() < floats) hidden = Buffer(floats);
    for (int64_t row = begin; row < end; row += kBlock) {
      const int64_t last = std::min(end, row + kBlock);
      LinearParams one = rows_of(first, row, last);
      one.y = hidden.data();
      one.ldy = ldhidden;
      kernels.linear(one);
      LinearParams two = rows_of(second, row, last);
      two.x = hidden.data();
      kernels.linear(two);
    }
  });
  return y;
}

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

float* attention_scratch(int64_t seqlen_k, int64_t head_dim) {
  thread_local Buffer scratch;
  const int64_t floats = attention_scratch_floats(seqlen_k, head_dim);
  if (scratch.size() < floats) scratch = Buffer(floats);
  return scratch.data();
}

FloatArray attention(const py::array& q, const py::array& k, const py::array& v,
                     const std::optional<ByteArray>& mask, double scale) {
  check_heads("q", q, 4);
  check_heads("k", k, 4);
  check_heads("v", v, 4);
  const int64_t batch = q.shape(0), heads = q.shape(1), seqlen_q = q.shape(2), D = q.shape(3);
  const int64_t seqlen_k = k.shape(2);
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
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;
  const double flops = 4.0 * static_cast<double>(batch * heads * seqlen_q * seqlen_k * D);
  // An item is one head of one sentence; a masked key is dropped, not added as minus infinity.
  share(batch * heads, 1, 4.0 * flops, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> kept;
    int64_t listed = -1;
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
      p.scratch = attention_scratch(p.seqlen_k, D);
      kernels.attention(p);
    }
  });
  return out;
}

void check_cu_seqlens(const IntArray& cu_seqlens, int64_t total_tokens) {
  check(cu_seqlens.ndim() == 1 && cu_seqlens.size() >= 1,
        "cu_seqlens: wanted int32 [batch + 1], so at least one element");
  const int32_t* offsets = cu_seqlens.data();
  check(offsets[0] == 0, "cu_seqlens[0] is ", offsets[0], ", wanted 0");
  for (int64_t i = 1; i < cu_seqlens.size(); ++i)
    check(offsets[i] >= offsets[i - 1], "cu_seqlens descends at ", i, ": ", offsets[i - 1],
          " then ", offsets[i]);
  const int32_t last = offsets[cu_seqlens.size() - 1];
  check(last == total_tokens, "cu_seqlens ends at ", last, ", wanted the number of rows, ",
        total_tokens);
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
  check_cu_seqlens(cu_seqlens, total);
  FloatArray out({q.shape(0), q.shape(1), q.shape(2)});
  const HeadView qv = view_of(q, true), kv = view_of(k, true), vv = view_of(v, true);
  const HeadView ov = view_of(out, true);
  const int32_t* offsets = cu_seqlens.data();
  const int64_t batch = cu_seqlens.size() - 1;
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;

  // Sentences differ, so the heads are shared out: every thread gets the same share of each.
  double flops = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const double seqlen = offsets[b + 1] - offsets[b];
    flops += 4.0 * seqlen * seqlen * static_cast<double>(heads * D);
  }
  share(heads, 1, 4.0 * flops, [&](int64_t begin, int64_t end) {
    for (int64_t b = 0; b < batch; ++b) {
      AttentionParams p = attention_params(qv, kv, vv, ov, D, static_cast<float>(scale));
      p.q += offsets[b] * qv.row_stride;
      p.k += offsets[b] * kv.row_stride;
      p.v += offsets[b] * vv.row_stride;
      p.out += offsets[b] * ov.row_stride;
      p.seqlen_q = p.seqlen_k = offsets[b + 1] - offsets[b];
      p.head_begin = begin;
      p.head_end = end;
      p.scratch = attention_scratch(p.seqlen_k, D);
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
  float* out = y.mutable_data();
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;
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
  check_cu_seqlens(cu_seqlens, x.shape(0));
  const int32_t* offsets = cu_seqlens.data();
  return pool_rows(x.data(), cu_seqlens.size() - 1, x.shape(1), x.shape(0), [=](int64_t b) {
    return RowRange{offsets[b], offsets[b + 1] - offsets[b], nullptr};
  });
}

FloatArray l2_normalize(const FloatArray& x) {
  check(x.ndim() == 2, "x has ", x.ndim(), " dimensions, wanted 2");
  const int64_t M = x.shape(0), H = x.shape(1);
  FloatArray y({x.shape(0), x.shape(1)});
  float* out = y.mutable_data();
  std::copy_n(x.data(), M * H, out);
  const Kernels& kernels = active_kernels();
  const py::gil_scoped_release release;
  kernels.l2_normalize(out, H, M, H);
  return y;
}

FloatArray vector_math(const std::string& name, const FloatArray& x) {
  const Kernels& kernels = active_kernels();
  FloatArray y(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  if (name == "exp") {
    kernels.exp(x.data(), y.mutable_data(), x.size());
  } else if (name == "erf") {
    kernels.erf(x.data(), y.mutable_data(), x.size());
  } else {
    kernels.activate(x.data(), y.mutable_data(), x.size(), parse_activation(name));
  }
  return y;
}

}  // namespace

void register_ops(py::module_& module) {
  py::class_<PackedMatrix>(module, "PackedLinear")
      .def_property_readonly("out_features", [](const PackedMatrix& p) { return p.linear.N; })
      .def_property_readonly("in_features", [](const PackedMatrix& p) { return p.linear.K; })
      .def_property_readonly("isa",
                             [](const PackedMatrix& p) { return std::string(p.kernels->name); })
      .def("__repr__", [](const PackedMatrix& p) {
        return "PackedLinear(in_features=" + std::to_string(p.linear.K) +
               ", out_features=" + std::to_string(p.linear.N) + ", isa='" + p.kernels->name + "')";
      });
  module.def("pack_linear", &pack_linear, py::arg("weight").noconvert());
  module.def("layer_norm", &layer_norm, py::arg("x").noconvert(), py::arg("gamma").noconvert(),
             py::arg("beta").noconvert(), py::arg("eps"), py::arg("residual").noconvert());
  module.def("linear", &linear, py::arg("x").noconvert(), py::arg("weight"),
             py::arg("bias").noconvert(), py::arg("activation"));
  module.def("linear_residual_layer_norm", &linear_residual_layer_norm, py::arg("x").noconvert(),
             py::arg("weight"), py::arg("bias").noconvert(), py::arg("residual").noconvert(),
             py::arg("gamma").noconvert(), py::arg("beta").noconvert(), py::arg("eps"));
  module.def("gelu_ffn", &gelu_ffn, py::arg("x").noconvert(), py::arg("w1"),
             py::arg("b1").noconvert(), py::arg("w2"), py::arg("b2").noconvert());
  module.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"),
             py::arg("mask").noconvert(), py::arg("scale"));
  module.def("attention_varlen", &attention_varlen, py::arg("q"), py::arg("k"), py::arg("v"),
             py::arg("cu_seqlens").noconvert(), py::arg("scale"));
  module.def("masked_mean_pool", &masked_mean_pool, py::arg("x").noconvert(),
             py::arg("attention_mask").noconvert());
  module.def("mean_pool_varlen", &mean_pool_varlen, py::arg("x").noconvert(),
             py::arg("cu_seqlens").noconvert());
  module.def("l2_normalize", &l2_normalize, py::arg("x").noconvert());
  module.def("vector_math", &vector_math, py::arg("name"), py::arg("x").noconvert());
}

}  // namespace minifuse
