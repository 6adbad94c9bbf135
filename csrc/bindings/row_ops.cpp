// Operations on independent rows, on NumPy arrays: linear layers and what is fused to them,
// LayerNorm, L2 normalisation. One function each: check, borrow, release, share the rows out.
// Shapes and dtypes are in python/minifuse/ops.py, which also turns tensors into arrays.

#include <algorithm>
#include <optional>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/share.h"
#include "linear/quantize.h"
#include "linear/packed_linear.h"

namespace minifuse {
namespace {

// The cost of a float in flops: in a norm, in a function, and quantised with a search for its scale.
constexpr double kNormCost = 16.0, kFunctionCost = 32.0, kSearchCost = 100.0;
// A group's Cholesky factor, in flops.
constexpr double kFactorCost = static_cast<double>(kInt8Group * kInt8Group * kInt8Group) / 3.0;

// Far more than any model has. A weight without columns may claim any number of rows, for which
// panels and scales would still be made.
constexpr int64_t kMostFeatures = int64_t{1} << 26;

void check_weight(const FloatArray& weight) {
  check(weight.ndim() == 2, "weight has ", weight.ndim(), " dimensions, wanted 2: [out, in]");
  check(weight.shape(0) <= kMostFeatures && weight.shape(1) <= kMostFeatures, "weight has shape (",
        weight.shape(0), ", ", weight.shape(1), "), wanted at most ", kMostFeatures,
        " outputs and inputs");
}

PackedLinear pack_linear(const FloatArray& weight, const std::string& dtype) {
  check_weight(weight);
  PackedLinear packed(active_isa().linear(parse_weight_type(dtype)).format, weight.shape(0),
                      weight.shape(1));
  const float* data = weight.data();
  const double cost = packed.format->weight_type == WeightType::kInt8 ? kSearchCost : kMoveCost;
  compute([&](const ShouldStop& should_stop) {
    share(packed.num_panels, 1, cost * static_cast<double>(packed.N * packed.K), should_stop,
          [&](int64_t begin, int64_t end) { packed.pack(data, packed.K, begin, end); });
  });
  return packed;
}

// w[n][k] ~ scale[g][n] codes[n][k] input_scale[k], k in group g, after SmoothQuant and GPTQ.
py::tuple quantize_linear(const FloatArray& weight, const FloatArray& max_input,
                          const FloatArray& moments) {
  check_weight(weight);
  const py::ssize_t N = weight.shape(0), K = weight.shape(1);
  check(max_input.ndim() == 1 && max_input.size() == K, "max_input has ", max_input.size(),
        " elements, wanted in_features=", K);
  const py::ssize_t groups = int8_groups(K);
  check(moments.ndim() == 3 && moments.shape(0) == groups && moments.shape(1) == kInt8Group &&
            moments.shape(2) == kInt8Group,
        "moments are misshapen, wanted [", groups, ", ", kInt8Group, ", ", kInt8Group, "]");
  CodeArray codes({N, K});
  FloatArray scale({groups, N}), input_scale(K);
  const float* w = weight.data();
  int8_t* code = codes.mutable_data();
  float *scales = scale.mutable_data(), *inputs = input_scale.mutable_data();
  const float *maxima = max_input.data(), *moment = moments.data();
  compute([&](const ShouldStop& should_stop) {
    smoothing_scales(w, K, N, K, maxima, inputs);
    std::vector<float> feedback(static_cast<size_t>(groups * kInt8Group * kInt8Group));
    share(groups, 1, kFactorCost * static_cast<double>(groups), should_stop,
          [&](int64_t begin, int64_t end) {
            for (int64_t group = begin; group < end; ++group)
              rounding_feedback(moment, inputs, K, group, feedback.data());
          });
    share(N, 1, kSearchCost * static_cast<double>(N * K), should_stop,
          [&](int64_t begin, int64_t end) {
            quantize_rows(w + begin * K, K, end - begin, K, inputs, feedback.data(),
                          code + begin * K, scales + begin, N);
          });
  });
  return py::make_tuple(codes, scale, input_scale);
}

const char* dtype_name(const PackedLinear& packed) {
  switch (packed.format->weight_type) {
    case WeightType::kBfloat16:
      return "bfloat16";
    case WeightType::kInt8:
      return "int8";
    default:
      return "float32";
  }
}

// Returns the kernels that read a weight; throws where it was packed for another instruction set.
const LinearKernels& kernels_of(const PackedLinear& weight) {
  const LinearKernels& wanted = active_isa().linear(weight.format->weight_type);
  check(weight.format == &wanted.format, "weight was packed for ", weight.format->isa, ", wanted ",
        wanted.format.isa, ": pack it again");
  return wanted;
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
  if (y.size() == 0) return y;
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
  const Kernels& kernels = active_isa().kernels;
  compute([&](const ShouldStop& should_stop) {
    share(M, 4, kNormCost * static_cast<double>(M * H), should_stop,
          [&](int64_t begin, int64_t end) { kernels.layer_norm(rows_of(whole, begin, end)); });
  });
  return y;
}

LinearParams linear_params(const FloatArray& x, const PackedLinear& weight,
                           const std::optional<FloatArray>& bias, float* y, Activation activation) {
  LinearParams params = weight.params(x.data(), weight.K, y, weight.N, x.shape(0), activation);
  params.bias = data_or_null(bias);
  return params;
}

double linear_flops(const LinearParams& p) { return 2.0 * static_cast<double>(p.M * p.N * p.K); }

void check_linear(const FloatArray& x, const PackedLinear& weight,
                  const std::optional<FloatArray>& bias) {
  kernels_of(weight);
  check_matrix("x", x, weight.K);
  if (bias) check_vector("bias", *bias, weight.N);
}

// Scratch memory for what the calling thread is about to compute.
ThreadScratch<std::byte> scratch_for(const LinearKernels& kernels, int64_t M, int64_t K) {
  return ThreadScratch<std::byte>(kernels.scratch_bytes(M, K));
}

FloatArray linear(const FloatArray& x, const PackedLinear& weight,
                  const std::optional<FloatArray>& bias, const std::string& activation) {
  check_linear(x, weight, bias);
  FloatArray y({x.shape(0), static_cast<py::ssize_t>(weight.N)});
  const LinearParams p =
      linear_params(x, weight, bias, y.mutable_data(), parse_activation(activation));
  if (y.size() == 0) return y;
  const LinearKernels& kernels = kernels_of(weight);
  const auto columns = [&](int64_t begin, int64_t end) {
    auto scratch = scratch_for(kernels, p.M, p.K);
    LinearParams part = with_scratch(p, scratch.buffer());
    part.panel_begin = begin;
    part.panel_end = end;
    kernels.linear(part);
  };
  const auto rows = [&](int64_t begin, int64_t end) {
    auto scratch = scratch_for(kernels, end - begin, p.K);
    kernels.linear(with_scratch(rows_of(p, begin, end), scratch.buffer()));
  };
  compute([&](const ShouldStop& should_stop) {
    if (p.M < 8 * kernels.tile_rows)  // few rows: share the columns, so each panel is read once
      share(p.panel_end, 1, linear_flops(p), should_stop, columns);
    else
      share(p.M, kernels.tile_rows, kernels.block_rows(p.M, p.N, p.K), linear_flops(p), should_stop,
            rows);
  });
  return y;
}

FloatArray linear_residual_layer_norm(const FloatArray& x, const PackedLinear& weight,
                                      const std::optional<FloatArray>& bias,
                                      const FloatArray& residual, const FloatArray& gamma,
                                      const FloatArray& beta, double eps) {
  check_linear(x, weight, bias);
  const int64_t N = weight.N;
  check_matrix("residual", residual, N);
  check(residual.shape(0) == x.shape(0), "residual has ", residual.shape(0), " rows, wanted ",
        x.shape(0));
  check_vector("gamma", gamma, N);
  check_vector("beta", beta, N);
  FloatArray y({x.shape(0), static_cast<py::ssize_t>(N)});
  if (y.size() == 0) return y;
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
  const LinearKernels& kernels = kernels_of(weight);
  compute([&](const ShouldStop& should_stop) {
    const int64_t block = kernels.block_rows(p.M, p.N, p.K);
    share(p.M, 4, block, linear_flops(p), should_stop, [&](int64_t begin, int64_t end) {
      auto scratch = scratch_for(kernels, end - begin, p.K);
      kernels.linear_residual_layer_norm(with_scratch(rows_of(p, begin, end), scratch.buffer()),
                                         rows_of(norm, begin, end));
    });
  });
  return y;
}

FloatArray gelu_ffn(const FloatArray& x, const PackedLinear& w1,
                    const std::optional<FloatArray>& b1, const PackedLinear& w2,
                    const std::optional<FloatArray>& b2) {
  check_linear(x, w1, b1);
  const LinearKernels &kernels1 = kernels_of(w1), &kernels2 = kernels_of(w2);
  check(w2.K == w1.N, "w2 has ", w2.K, " inputs, wanted the ", w1.N, " outputs of w1");
  if (b2) check_vector("b2", *b2, w2.N);
  FloatArray y({x.shape(0), static_cast<py::ssize_t>(w2.N)});
  if (y.size() == 0) return y;
  const int64_t F = w1.N, ldhidden = padded_stride(F);
  const LinearParams first = linear_params(x, w1, b1, nullptr, Activation::kGelu);
  LinearParams second = w2.params(nullptr, ldhidden, y.mutable_data(), w2.N, x.shape(0),
                                  Activation::kNone);  // x: the hidden rows of a block
  second.bias = data_or_null(b2);
  // The hidden rows of a block stay in L2 between the two matrices.
  constexpr int64_t kBlock = 96, kMostFloats = int64_t{8} << 20;
  const int64_t block = std::clamp<int64_t>(kMostFloats / ldhidden, 1, kBlock);
  const auto rows = [&](int64_t begin, int64_t end) {
    const int64_t most = std::min(block, end - begin);
    ThreadScratch<float> hidden(most * ldhidden);
    ThreadScratch<std::byte> scratch(
        std::max(kernels1.scratch_bytes(most, first.K), kernels2.scratch_bytes(most, second.K)));
    for (int64_t row = begin; row < end; row += block) {
      const int64_t last = std::min(end, row + block);
      LinearParams one = with_scratch(rows_of(first, row, last), scratch.buffer());
      one.y = hidden.data();
      one.ldy = ldhidden;
      kernels1.linear(one);
      LinearParams two = with_scratch(rows_of(second, row, last), scratch.buffer());
      two.x = hidden.data();
      kernels2.linear(two);
    }
  };
  compute([&](const ShouldStop& should_stop) {
    share(first.M, 4, block, linear_flops(first) + linear_flops(second), should_stop, rows);
  });
  return y;
}

FloatArray l2_normalize(const FloatArray& x) {
  check(x.ndim() == 2, "x has ", x.ndim(), " dimensions, wanted 2");
  const int64_t M = x.shape(0), H = x.shape(1);
  FloatArray y({x.shape(0), x.shape(1)});
  if (y.size() == 0) return y;
  const float* from = x.data();
  float* out = y.mutable_data();
  const Kernels& kernels = active_isa().kernels;
  compute([&](const ShouldStop& should_stop) {
    share(M, 4, kMoveCost * static_cast<double>(M * H), should_stop,
          [&](int64_t begin, int64_t end) {
            std::copy(from + begin * H, from + end * H, out + begin * H);
            kernels.l2_normalize(out + begin * H, H, end - begin, H);
          });
  });
  return y;
}

FloatArray vector_math(const std::string& name, const FloatArray& x) {
  const Kernels& kernels = active_isa().kernels;
  const bool is_exp = name == "exp", is_erf = name == "erf";
  const Activation activation = is_exp || is_erf ? Activation::kNone : parse_activation(name);
  FloatArray y(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  if (y.size() == 0) return y;
  const float* from = x.data();
  float* to = y.mutable_data();
  const int64_t size = y.size();
  compute([&](const ShouldStop& should_stop) {
    share(size, 64, kFunctionCost * static_cast<double>(size), should_stop,
          [&](int64_t begin, int64_t end) {
            if (is_exp)
              kernels.exp(from + begin, to + begin, end - begin);
            else if (is_erf)
              kernels.erf(from + begin, to + begin, end - begin);
            else
              kernels.activate(from + begin, to + begin, end - begin, activation);
          });
  });
  return y;
}

}  // namespace

void register_row_ops(py::module_& module) {
  py::class_<PackedLinear>(module, "PackedLinear")
      .def_property_readonly("out_features", [](const PackedLinear& p) { return p.N; })
      .def_property_readonly("in_features", [](const PackedLinear& p) { return p.K; })
      .def_property_readonly("dtype", [](const PackedLinear& p) { return dtype_name(p); })
      .def_property_readonly("isa",
                             [](const PackedLinear& p) { return std::string(p.format->isa); })
      .def("__repr__", [](const PackedLinear& p) {
        return "PackedLinear(in_features=" + std::to_string(p.K) +
               ", out_features=" + std::to_string(p.N) + ", dtype='" + dtype_name(p) + "', isa='" +
               p.format->isa + "')";
      });
  module.def("pack_linear", &pack_linear, py::arg("weight").noconvert(), py::arg("dtype"));
  module.def("quantize_linear", &quantize_linear, py::arg("weight").noconvert(),
             py::arg("max_input").noconvert(), py::arg("moments").noconvert());
  module.attr("INT8_GROUP") = kInt8Group;
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
