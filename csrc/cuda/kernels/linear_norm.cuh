// y [M, H] = LayerNorm(x W^T + bias + residual): a block owns whole rows, so that what LayerNorm
// needs is in its registers and the product never reaches memory.
//
// Eight warps share the columns: kN = H / 64 tiles of 8 each. The accumulators set the height: 64
// rows of 384 columns are 96 registers a thread, 64 of 512 are 128, 32 of 768 are 96; 16 of 1,024
// leave the shared memory of sm_80 room for two stages.
#pragma once

#include "cuda/kernels.h"
#include "cuda/kernels/layernorm.cuh"
#include "cuda/kernels/tile.cuh"

namespace minifuse::cuda {

// For hidden sizes up to 64 kN.
template <int kN>
struct LinearNormShape : TileShape<1, 8,
                                   (kN <= 8    ? 4
                                    : kN <= 12 ? 2
                                               : 1),
                                   kN, (kN <= 6 ? 4 : 2)> {};

template <typename Shape>
inline constexpr int kLinearNormSharedBytes =
    Shape::kSharedBytes > kNormSharedBytes<Shape> ? Shape::kSharedBytes : kNormSharedBytes<Shape>;

template <typename T, int kN>
MINIFUSE_KERNEL(LinearNormShape<kN>::kThreads)
linear_residual_layer_norm_kernel(const LinearNormParams p) {
  using Shape = LinearNormShape<kN>;
  const int first_row = ptx::block_index() * Shape::kRows;
  const T* x = static_cast<const T*>(p.linear.x);
  const T* weight = static_cast<const T*>(p.linear.weight);
  float acc[Shape::kM][Shape::kN][4];
  multiply_tile<Shape>(acc,
                       Rows<T>{x + first_row * p.linear.ldx, p.linear.ldx, p.linear.M - first_row},
                       Rows<T>{weight, p.linear.K, p.linear.N}, p.linear.K, ptx::shared_memory());
  residual_layer_norm<Shape>(acc, p.linear.bias, p.norm, p.linear.N,
                             GlobalRows<T>(p.norm, p.linear.y, p.linear.ldy, first_row, p.linear.M),
                             ptx::shared_memory());
}

}  // namespace minifuse::cuda
