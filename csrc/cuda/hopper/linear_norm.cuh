// y [M, H] = LayerNorm(x W^T + bias + residual) on sm_90a, H <= 384: a block owns 128 whole rows.
#pragma once

#include "cuda/hopper/boxes.cuh"
#include "cuda/layernorm.cuh"

namespace minifuse::cuda {

// For hidden sizes up to 16 kPartTiles.
template <int kPartTiles>
using HopperLinearNormShape = BoxShape<kPartTiles, 2, 3>;

template <typename T, int kPartTiles>
MINIFUSE_KERNEL(HopperLinearNormShape<kPartTiles>::kThreads)
hopper_linear_residual_layer_norm_kernel(const MINIFUSE_GRID_CONSTANT HopperLinearNormParams p) {
  using Shape = HopperLinearNormShape<kPartTiles>;
  static_assert(kNormSharedBytes<Shape> <= Shape::kSharedBytes);
  const LinearParams& linear = p.op.linear;
  const int first_row = ptx::block_index() * Shape::kRows;
  float acc[1][Shape::kN][4];
  multiply_boxes<Shape>(T{}, acc, p.x, first_row, p.weight, 0, linear.K, ptx::shared_memory());
  residual_layer_norm<Shape>(acc, linear.bias, p.op.norm, first_row, linear.M, linear.N,
                             static_cast<T*>(linear.y), linear.ldy, ptx::shared_memory());
}

}  // namespace minifuse::cuda
