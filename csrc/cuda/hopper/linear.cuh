// y [M, N] = activation(x W^T + bias) on sm_90a: a block computes 128 rows and 192 columns.
#pragma once

#include "cuda/hopper/boxes.cuh"
#include "cuda/linear.cuh"

namespace minifuse::cuda {

using HopperLinearShape = BoxShape<24, 1, 4>;

template <typename T>
MINIFUSE_KERNEL(HopperLinearShape::kThreads)
hopper_linear_kernel(const MINIFUSE_GRID_CONSTANT HopperLinearParams p) {
  using Shape = HopperLinearShape;
  const int num_column_tiles = (p.op.N + Shape::kColumns - 1) / Shape::kColumns;
  const int first_row = ptx::block_index() / num_column_tiles * Shape::kRows;
  const int first_column = ptx::block_index() % num_column_tiles * Shape::kColumns;
  float acc[1][Shape::kN][4];
  multiply_boxes<Shape>(T{}, acc, p.x, first_row, p.weight, first_column, p.op.K,
                        ptx::shared_memory());
  store_linear<Shape, T>(acc, p.op, first_row, first_column);
}

}  // namespace minifuse::cuda
