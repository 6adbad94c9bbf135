// Operations on independent rows, on NumPy arrays: linear layers and what is fused to them, LayerNorm,
// L2 normalisation. One function each: check, borrow, release, share the rows out. Shapes and dtypes
// are in python/minifuse/ops.py, which also turns tensors into arrays.

#include <algorithm>
#include <optional>

#include "bindings/bindings.h"
#include "bindings/share.h"
#include "encoder/weights.h"

namespace minifuse {
namespace {

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

void register_row_ops(py::module_& module) {
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
  module.def("l2_normalize", &l2_normalize, py::arg("x").noconvert());
  module.def("vector_math", &vector_math, py::arg("name"), py::arg("x").noconvert());
}

}  // namespace minifuse
