// The kernel table: one function pointer per fused operation. Each instruction set fills one, or
// extends another's (csrc/cpu/isa_*.cpp); everything above calls through the table alone. Kernels are
// single-threaded over the range they are given, and allocate nothing.
#pragma once

#include "common/types.h"

namespace minifuse {

// A pointer to a kernel. It cannot be left out, so a table that lacks one does not compile.
template <typename F>
class Kernel {
 public:
  constexpr Kernel(F* function) : function_(function) {}
  Kernel(decltype(nullptr)) = delete;
  constexpr operator F*() const { return function_; }

 private:
  F* function_;
};

// The order in which kernels read a matrix: panels of NR outputs each, one after the other.
struct MatrixFormat {
  const char* isa;  // the instruction set whose kernels read it
  WeightType weight_type;
  int64_t panel_columns;  // NR

  Kernel<int64_t(int64_t K)> panel_bytes;
  // At most NR rows of a weight [num_rows, K] (float, bfloat16 bits or int8 codes; ldw apart) into
  // the order of the micro-kernel; zeros stand for the rows that are missing.
  Kernel<void(const void* weight, int64_t ldw, int64_t num_rows, int64_t K, void* panel)>
      pack_panel;
};

// The kernels that multiply by one type of weights.
struct LinearKernels {
  MatrixFormat format;
  int64_t tile_rows;  // MR: rows of the micro-kernel's register tile

  // Bytes that params.scratch must have for M rows of K inputs; 0: none. Monotone in M and in K.
  Kernel<int64_t(int64_t M, int64_t K)> scratch_bytes;
  // Rows that go through all panels together: at most kMaxBlockRows, and at most M.
  Kernel<int64_t(int64_t M, int64_t N, int64_t K)> block_rows;
  Kernel<void(const LinearParams& params)> linear;
  // y = LayerNorm(x W^T + bias + residual), block of rows by block of rows while they are in L2.
  // `norm` describes the second half; its x, y and M are taken from `linear`.
  Kernel<void(const LinearParams& linear, const LayerNormParams& norm)> linear_residual_layer_norm;

  // Register-only multiply-adds of this type: the arithmetic ceiling. Returns the operations done,
  // a multiplication and an addition being two.
  Kernel<double(int64_t iterations, float* sink)> peak_loop;
  // The first tile of `linear` over and over, its rows rounded once: the micro-kernel's own rate.
  // Returns the operations done.
  Kernel<double(const LinearParams& linear, int64_t iterations)> tile_loop;
};

// Everything else: float32 rows and sentences.
struct Kernels {
  LinearKernels float32, bfloat16, int8;

  Kernel<void(const LayerNormParams& params)> layer_norm;
  Kernel<void(const AttentionParams& params)> attention;
  Kernel<void(const AttentionParams& params)> attention_bfloat16;  // of a model with such weights
  Kernel<void(const AttentionParams& params)> attention_int16;  // of a model with weights in int8
  Kernel<void(const EmbedParams& params)> embed_layer_norm;
  Kernel<void(const RotaryParams& params)> rotate;
  // x[r][c] = activation(x[r][c]) * x[r][F + c] for M rows, ldx apart: the gate of F columns.
  Kernel<void(float* x, int64_t ldx, int64_t M, int64_t F, Activation activation)> gate;
  Kernel<void(const PoolParams& params)> pool;
  // x[r] /= max(||x[r]||, 1e-12) for rows of width H, ldx apart.
  Kernel<void(float* x, int64_t ldx, int64_t num_rows, int64_t H)> l2_normalize;

  Kernel<void(const SearchParams& params)> search_float32;
  Kernel<void(const SearchParams& params)> search_bfloat16;
  Kernel<void(const SearchParams& params)> search_int8;
  MatrixFormat search_int8_format;  // of its queries
  // Rows of x [num_vectors, dim] as 8-bit codes [num_vectors, stride] and scales [num_vectors, 2]
  // (SearchParams); zeros past dim.
  Kernel<void(const float* x, int64_t num_vectors, int64_t dim, uint8_t* codes, int64_t stride,
              float* scale)>
      quantize_vectors;

  Kernel<void(const AttentionTrainingParams& params)> attention_forward;
  Kernel<void(const AttentionTrainingParams& params)> attention_backward;
  // y = x * keep / (1 - p), keep drawn by hashing the seed with first, first + 1, ...; x may be y.
  Kernel<void(const float* x, float* y, int64_t n, uint64_t seed, uint64_t first, float p)> dropout;

  // Elementwise, for the tests that sweep their whole range: y[i] = f(x[i]).
  Kernel<void(const float* x, float* y, int64_t n)> exp;
  Kernel<void(const float* x, float* y, int64_t n)> erf;
  Kernel<void(const float* x, float* y, int64_t n, Activation activation)> activate;
};

// Kernels that an instruction set puts in the place of those of the set that it extends; null: none.
struct Extension {
  // Weights and rows in bfloat16, multiplied in pairs: other bits than those of the other sets.
  const LinearKernels* bfloat16 = nullptr;
  void (*attention_bfloat16)(const AttentionParams& params) = nullptr;
  // The same bits.
  const LinearKernels* int8 = nullptr;
  void (*attention_int16)(const AttentionParams& params) = nullptr;
  void (*search_int8)(const SearchParams& params) = nullptr;
  const MatrixFormat* search_int8_format = nullptr;
};

}  // namespace minifuse
