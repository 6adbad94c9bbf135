// The fused ops on a device's memory that somebody else owns, torch's: addresses and shapes in, the
// kernel started on the stream that is named. python/minifuse/native/cuda_ops.py makes the tensors fit.

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "cuda/runtime.h"

namespace minifuse {
namespace {

// The activations that a device's kernels have.
Activation device_activation(const std::string& name) {
  const Activation activation = parse_activation(name);
  check(activation <= Activation::kRelu, "activation is '", name,
        "', wanted one of gelu, gelu_new, relu on a device");
  return activation;
}

// A matrix on the device as Python gives it: address, rows, columns, elements from row to row.
struct View {
  uintptr_t address;
  int64_t rows, columns, stride;

  explicit View(const std::tuple<uintptr_t, int64_t, int64_t, int64_t>& fields)
      : address(std::get<0>(fields)),
        rows(std::get<1>(fields)),
        columns(std::get<2>(fields)),
        stride(std::get<3>(fields)) {}

  void* data() const { return reinterpret_cast<void*>(address); }
};
using Fields = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;
using OptionalFields = std::optional<Fields>;

// Borrows the arrays of one call for its kernels, under their names, until the call ends.
class Loan {
 public:
  explicit Loan(cuda::Runtime& runtime) : rules_(runtime.memory_rules()) {}
  ~Loan() {
    for (const void* memory : lent_) rules_->take_back(memory);
  }
  Loan(const Loan&) = delete;

  // Borrows an array to read, whose elements have `size` bytes; `alignment` divides its address.
  const void* in(const char* name, const View& view, int64_t size, int64_t alignment = 16) {
    return lend(name, view, size, alignment, true);
  }
  void* out(const char* name, const View& view, int64_t size) {
    return lend(name, view, size, 16, false);
  }
  const float* floats(const char* name, const OptionalFields& fields, int64_t wanted) {
    if (!fields) return nullptr;
    const View view(*fields);
    check(view.rows == 1 && view.columns == wanted, name, " has ", view.rows * view.columns,
          " elements, wanted ", wanted);
    return static_cast<const float*>(in(name, view, sizeof(float)));
  }
  // A byte a row, or null.
  const uint8_t* mask(const OptionalFields& fields, int64_t wanted) {
    if (!fields) return nullptr;
    const View view(*fields);
    check(view.rows == 1 && view.columns == wanted, "mask has ", view.rows * view.columns,
          " elements, wanted ", wanted);
    return static_cast<const uint8_t*>(in("mask", view, 1, 1));
  }

 private:
  void* lend(const char* name, const View& view, int64_t size, int64_t alignment,
             bool is_read_only) {
    check(view.rows >= 0 && view.rows <= INT32_MAX && view.columns >= 0 &&
              view.columns <= INT32_MAX && view.stride < (1 << 24) &&
              (view.stride >= view.columns || view.rows <= 1),
          name, ": ", view.rows, " rows and ", view.columns, " columns ", view.stride, " apart");
    check(static_cast<int64_t>(view.address) % alignment == 0, name, " is not aligned to ",
          alignment, " bytes");
    if (rules_ == nullptr || view.rows == 0 || view.columns == 0) return view.data();
    const int64_t count = (view.rows - 1) * view.stride + view.columns;
    rules_->lend(view.data(), static_cast<size_t>(count * size), name, is_read_only);
    lent_.push_back(view.data());
    return view.data();
  }

  cuda::MemoryRules* rules_;  // null: nobody checks
  std::vector<const void*> lent_;
};

void check_shape(const char* name, const View& view, int64_t rows, int64_t columns) {
  check(view.rows == rows && view.columns == columns, name, " has shape (", view.rows, ", ",
        view.columns, "), wanted (", rows, ", ", columns, ")");
}

class CudaOps {
 public:
  CudaOps(int device, const std::string& dtype)
      : runtime_(cuda::open_device(device)),
        kernels_(runtime_->kernels(dtype)),
        size_(kernels_.element_bytes) {}

  void layer_norm(uintptr_t stream, const Fields& x_fields, const Fields& gamma, const Fields& beta,
                  double eps, const OptionalFields& residual, const Fields& y_fields) {
    const View x(x_fields), y(y_fields);
    check_shape("y", y, x.rows, x.columns);
    Loan loan(*runtime_);
    const cuda::RowNormParams p{.x = loan.in("x", x, size_),
                                .ldx = x.stride,
                                .y = loan.out("y", y, size_),
                                .ldy = y.stride,
                                .M = static_cast<int>(x.rows),
                                .H = static_cast<int>(x.columns),
                                .norm = norm_of(loan, gamma, beta, eps, residual, x)};
    start(stream, [&](cuda::Stream s) { kernels_.layer_norm(s, p); });
  }

  void linear(uintptr_t stream, const Fields& x, const Fields& weight, const OptionalFields& bias,
              const std::string& activation, const Fields& y) {
    Loan loan(*runtime_);
    const cuda::LinearParams p = linear_of(loan, View(x), View(weight), bias, activation, View(y));
    start(stream, [&](cuda::Stream s) { kernels_.linear(s, p); });
  }

  void linear_residual_layer_norm(uintptr_t stream, const Fields& x, const Fields& weight,
                                  const OptionalFields& bias, const Fields& residual,
                                  const Fields& gamma, const Fields& beta, double eps,
                                  const Fields& y) {
    Loan loan(*runtime_);
    const View out(y);
    const cuda::LinearNormParams p{linear_of(loan, View(x), View(weight), bias, "none", out),
                                   norm_of(loan, gamma, beta, eps, residual, out)};
    start(stream, [&](cuda::Stream s) { kernels_.linear_residual_layer_norm(s, p); });
  }

  // The mask's rows are those of k, a byte each; tiles as attention_tiles() makes them, or none for
  // `batch` sentences of one length.
  void attention(uintptr_t stream, const Fields& q_fields, const Fields& k_fields,
                 const Fields& v_fields, const OptionalFields& mask, const OptionalFields& tiles,
                 int64_t batch, int num_heads, double scale, const Fields& out_fields) {
    const View q(q_fields), k(k_fields), v(v_fields), out(out_fields);
    check(num_heads > 0 && q.columns % num_heads == 0, "q: ", q.columns, " columns and ", num_heads,
          " heads");
    check_shape("k", k, k.rows, q.columns);
    check_shape("v", v, k.rows, q.columns);
    check_shape("out", out, q.rows, q.columns);
    Loan loan(*runtime_);
    cuda::AttentionParams p{.q = loan.in("q", q, size_),
                            .k = loan.in("k", k, size_),
                            .v = loan.in("v", v, size_),
                            .ldq = q.stride,
                            .ldk = k.stride,
                            .ldv = v.stride,
                            .mask = loan.mask(mask, k.rows),
                            .out = loan.out("out", out, size_),
                            .ldout = out.stride,
                            .tiles = nullptr,
                            .seqlen_q = 0,
                            .seqlen_k = 0,
                            .num_tiles = 0,
                            .num_heads = num_heads,
                            .head_dim = static_cast<int>(q.columns / num_heads),
                            .scale = static_cast<float>(scale)};
    if (tiles) {
      const View rows(*tiles);
      check_shape("tiles", rows, rows.rows, 4);
      p.tiles = static_cast<const cuda::AttentionTile*>(loan.in("tiles", rows, sizeof(int32_t)));
      p.num_tiles = static_cast<int>(rows.rows);
    } else if (batch > 0) {
      check(q.rows % batch == 0 && k.rows % batch == 0, q.rows, " rows of q and ", k.rows,
            " of k, wanted multiples of ", batch);
      p.seqlen_q = static_cast<int>(q.rows / batch);
      p.seqlen_k = static_cast<int>(k.rows / batch);
      p.num_tiles = static_cast<int>(
          batch * ((p.seqlen_q + cuda::kAttentionQueries - 1) / cuda::kAttentionQueries));
    }
    start(stream, [&](cuda::Stream s) { kernels_.attention(s, p); });
  }

  // y [batch, H] in float32.
  void mean_pool(uintptr_t stream, const Fields& x_fields, const Fields& cu_seqlens_fields,
                 const OptionalFields& mask, const Fields& y_fields) {
    const View x(x_fields), cu_seqlens(cu_seqlens_fields), y(y_fields);
    check(cu_seqlens.columns >= 1, "cu_seqlens is empty");
    check_shape("cu_seqlens", cu_seqlens, 1, y.rows + 1);
    check_shape("y", y, y.rows, x.columns);
    Loan loan(*runtime_);
    const cuda::PoolParams p{.x = loan.in("x", x, size_),
                             .ldx = x.stride,
                             .cu_seqlens = static_cast<const int32_t*>(
                                 loan.in("cu_seqlens", cu_seqlens, sizeof(int32_t))),
                             .mask = loan.mask(mask, x.rows),
                             .y = static_cast<float*>(loan.out("y", y, sizeof(float))),
                             .ldy = y.stride,
                             .batch = static_cast<int>(y.rows),
                             .H = static_cast<int>(x.columns),
                             .first_row = 0,
                             .pooling = Pooling::kMean};
    start(stream, [&](cuda::Stream s) { kernels_.pool(s, p); });
  }

 private:
  cuda::LinearParams linear_of(Loan& loan, const View& x, const View& weight,
                               const OptionalFields& bias, const std::string& activation,
                               const View& y) {
    check_shape("weight", weight, weight.rows, x.columns);
    check_shape("y", y, x.rows, weight.rows);
    check(weight.stride == weight.columns, "weight is not contiguous");
    return {.x = loan.in("x", x, size_),
            .ldx = x.stride,
            .weight = loan.in("weight", weight, size_),
            .bias = loan.floats("bias", bias, weight.rows),
            .y = loan.out("y", y, size_),
            .ldy = y.stride,
            .M = static_cast<int>(x.rows),
            .N = static_cast<int>(weight.rows),
            .K = static_cast<int>(x.columns),
            .activation = device_activation(activation)};
  }

  cuda::NormParams norm_of(Loan& loan, const Fields& gamma, const Fields& beta, double eps,
                           const OptionalFields& residual, const View& rows) {
    cuda::NormParams norm{.residual = nullptr,
                          .ldr = 0,
                          .gamma = loan.floats("gamma", gamma, rows.columns),
                          .beta = loan.floats("beta", beta, rows.columns),
                          .eps = static_cast<float>(eps)};
    if (residual) {
      const View view(*residual);
      check_shape("residual", view, rows.rows, rows.columns);
      norm.residual = loan.in("residual", view, size_);
      norm.ldr = view.stride;
    }
    return norm;
  }

  void start(uintptr_t stream, const std::function<void(cuda::Stream)>& launch) {
    runtime_->on_stream(stream, launch);
  }

  std::shared_ptr<cuda::Runtime> runtime_;
  const cuda::Kernels& kernels_;
  int64_t size_;
};

void check_offsets(const char* name, const IntArray& offsets, int64_t num_rows) {
  check(offsets.ndim() == 1 && offsets.size() >= 1, name, ": wanted [batch + 1]");
  const int32_t* at = offsets.data();
  const py::ssize_t last = offsets.size() - 1;
  check(at[0] == 0 && at[last] == num_rows, name, " goes from ", at[0], " to ", at[last],
        ", wanted 0 to ", num_rows);
  for (py::ssize_t i = 0; i < last; ++i) check(at[i] <= at[i + 1], name, " descends at ", i + 1);
}

// int32 [num_tiles, 4]: sixteen queries of a sentence at a time, and its keys.
IntArray attention_tiles(const IntArray& cu_seqlens) {
  std::vector<cuda::AttentionTile> tiles;
  const int32_t* at = cu_seqlens.data();
  for (py::ssize_t i = 0; i + 1 < cu_seqlens.size(); ++i)
    cuda::for_each_attention_tile(at[i], at[i + 1] - at[i], at[i], at[i + 1] - at[i],
                                  [&](const cuda::AttentionTile& tile) { tiles.push_back(tile); });
  IntArray rows({static_cast<py::ssize_t>(tiles.size()), py::ssize_t{4}});
  std::copy_n(reinterpret_cast<const int32_t*>(tiles.data()), 4 * tiles.size(),
              rows.mutable_data());
  return rows;
}

}  // namespace

void register_cuda_ops(py::module_& module) {
  module.def("check_offsets", &check_offsets, py::arg("name"), py::arg("offsets").noconvert(),
             py::arg("num_rows"));
  module.def("attention_tiles", &attention_tiles, py::arg("cu_seqlens").noconvert());
  py::class_<CudaOps>(module, "Ops", py::module_local())
      .def("__init__", constructor(+[](int device, const std::string& dtype) {
             return std::make_unique<CudaOps>(device, dtype);
           }),
           py::detail::is_new_style_constructor(), py::arg("device"), py::arg("dtype"))
      .def("layer_norm", &CudaOps::layer_norm)
      .def("linear", &CudaOps::linear)
      .def("linear_residual_layer_norm", &CudaOps::linear_residual_layer_norm)
      .def("attention", &CudaOps::attention)
      .def("mean_pool", &CudaOps::mean_pool);
}

}  // namespace minifuse
