// The kernel table: one function pointer per fused operation. Each instruction set fills one
// table (csrc/cpu/isa_*.cpp); everything above it calls through the table alone. Kernels are
// single-threaded over the range they are given, and allocate nothing.
#pragma once

#include "common/types.h"

namespace minifuse {

struct Kernels {
  const char* name;
  int64_t tile_rows;      // MR: rows of the micro-kernel's register tile
  int64_t panel_columns;  // NR: columns of a weight panel

  // weight [N, K] (rows ldw apart) -> packed [ceil(N / NR), K, NR], panels [begin, end).
  void (*pack_weight)(const float* weight, int64_t ldw, int64_t N, int64_t K, float* packed,
                      int64_t panel_begin, int64_t panel_end);
  void (*linear)(const LinearParams& params);
  // y = LayerNorm(x W^T + bias + residual), block of rows by block of rows while they are in L2.
  // `norm` describes the second half; its x, y and M are taken from `linear`.
  void (*linear_residual_layer_norm)(const LinearParams& linear, const LayerNormParams& norm);
  void (*layer_norm)(const LayerNormParams& params);
  void (*attention)(const AttentionParams& params);
  void (*embed_layer_norm)(const EmbedParams& params);
  void (*pool)(const PoolParams& params);
  // x[r] /= max(||x[r]||, 1e-12) for rows of width H, ldx apart.
  void (*l2_normalize)(float* x, int64_t ldx, int64_t num_rows, int64_t H);

  // Elementwise, for the tests that sweep their whole range: y[i] = f(x[i]).
  void (*exp)(const float* x, float* y, int64_t n);
  void (*erf)(const float* x, float* y, int64_t n);
  void (*activate)(const float* x, float* y, int64_t n, Activation activation);

  // Register-only fused multiply-adds: the arithmetic ceiling. Returns the flops done.
  double (*fma_loop)(int64_t iterations, float* sink);
};

}  // namespace minifuse
