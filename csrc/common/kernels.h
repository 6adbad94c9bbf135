// The kernel tables: one function pointer per fused operation. Each instruction set fills one
// (csrc/cpu/isa_*.cpp); everything above it calls through the table alone. Kernels are
// single-threaded over the range they are given, and allocate nothing.
#pragma once

#include "common/types.h"

namespace minifuse {

// The order in which kernels read a matrix: panels of NR outputs each, one after the other.
struct MatrixFormat {
  const char* isa;  // the instruction set whose kernels read it
  WeightType weight_type;
  int64_t panel_columns;  // NR

  int64_t (*panel_bytes)(int64_t K);
  // At most NR rows of a weight [num_rows, K] (float, bfloat16 bits or int8 codes; ldw apart) into
  // the order of the micro-kernel; zeros stand for the rows that are missing.
  void (*pack_panel)(const void* weight, int64_t ldw, int64_t num_rows, int64_t K, void* panel);
};

// The kernels that multiply by one type of weights.
struct LinearKernels {
  MatrixFormat format;
  int64_t tile_rows;  // MR: rows of the micro-kernel's register tile

  // Bytes that params.scratch must have for M rows of K inputs; 0: none. Monotone in M and in K.
  int64_t (*scratch_bytes)(int64_t M, int64_t K);
  // Rows that go through all panels together: at most kMaxBlockRows, and at most M.
  int64_t (*block_rows)(int64_t M, int64_t N, int64_t K);
  void (*linear)(const LinearParams& params);
  // y = LayerNorm(x W^T + bias + residual), block of rows by block of rows while they are in L2.
  // `norm` describes the second half; its x, y and M are taken from `linear`.
  void (*linear_residual_layer_norm)(const LinearParams& linear, const LayerNormParams& norm);

  // Register-only multiply-adds of this type: the arithmetic ceiling. Returns the operations done,
  // a multiplication and an addition being two.
  double (*peak_loop)(int64_t iterations, float* sink);
  // The first tile of `linear` over and over, its rows rounded once: the micro-kernel's own rate.
  // Returns the operations done.
  double (*tile_loop)(const LinearParams& linear, int64_t iterations);
};

// Everything else: float32 rows and sentences.
struct Kernels {
  LinearKernels float32, bfloat16, int8;

  void (*layer_norm)(const LayerNormParams& params);
  void (*attention)(const AttentionParams& params);
  void (*embed_layer_norm)(const EmbedParams& params);
  void (*pool)(const PoolParams& params);
  // x[r] /= max(||x[r]||, 1e-12) for rows of width H, ldx apart.
  void (*l2_normalize)(float* x, int64_t ldx, int64_t num_rows, int64_t H);

  void (*search_float32)(const SearchParams& params);
  void (*search_bfloat16)(const SearchParams& params);
  void (*search_int8)(const SearchParams& params);
  // Rows of x [num_vectors, dim] as 8-bit codes [num_vectors, stride] and scales [num_vectors, 2]
  // (SearchParams); zeros past dim.
  void (*quantize_vectors)(const float* x, int64_t num_vectors, int64_t dim, uint8_t* codes,
                           int64_t stride, float* scale);

  void (*attention_forward)(const AttentionTrainingParams& params);
  void (*attention_backward)(const AttentionTrainingParams& params);
  // y = x * keep / (1 - p), keep drawn by hashing the seed with first, first + 1, ...; x may be y.
  void (*dropout)(const float* x, float* y, int64_t n, uint64_t seed, uint64_t first, float p);

  // Elementwise, for the tests that sweep their whole range: y[i] = f(x[i]).
  void (*exp)(const float* x, float* y, int64_t n);
  void (*erf)(const float* x, float* y, int64_t n);
  void (*activate)(const float* x, float* y, int64_t n, Activation activation);
};

// Integer kernels that replace those of the base table, with the same bits.
struct Int8Kernels {
  LinearKernels linear;
  void (*search)(const SearchParams& params);
};

// Kernels that multiply bfloat16 in pairs, both operands rounded to it. Their bits differ from those
// of the other sets.
struct Bfloat16Kernels {
  LinearKernels linear;
  void (*attention)(const AttentionParams& params);
};

}  // namespace minifuse
