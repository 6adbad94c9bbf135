// y [M, N] = activation(x W^T + bias): a block computes a tile of 128 rows and 128 columns.
//
// Four warps of 64 x 64: a step of K costs a warp 8 ldmatrix (32 cycles of shared memory) for 32
// mma (32 cycles of an H100's tensor cores, 64 of an A100's); 32 x 32 would double the reads. 80 KB
// of shared memory leave two blocks an SM, one computing while the other's epilogue stores.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/tile.cuh"

namespace minifuse::cuda {

using LinearShape = TileShape<2, 2, 4, 8>;

template <typename T>
MINIFUSE_KERNEL(LinearShape::kThreads)
linear_kernel(const LinearParams p) {
  const int num_column_tiles = (p.N + LinearShape::kColumns - 1) / LinearShape::kColumns;
  const int first_row = ptx::block_index() / num_column_tiles * LinearShape::kRows;
  const int first_column = ptx::block_index() % num_column_tiles * LinearShape::kColumns;
  const T* x = static_cast<const T*>(p.x);
  const T* weight = static_cast<const T*>(p.weight);
  T* y = static_cast<T*>(p.y);

  float acc[LinearShape::kM][LinearShape::kN][4];
  multiply_tile<LinearShape>(acc, Rows<T>{x + first_row * p.ldx, p.ldx, p.M - first_row},
                             Rows<T>{weight + int64_t{first_column} * p.K, p.K, p.N - first_column},
                             p.K, ptx::shared_memory());

  for_each_pair<LinearShape>([&](int m, int n, int i, int row, int column) {
    row += first_row;
    column += first_column;
    if (row >= p.M || column >= p.N) return;
    Pair<float> bias = {0.0f, 0.0f};
    if (p.bias) bias = ptx::load(reinterpret_cast<const Pair<float>*>(p.bias + column));
    ptx::store(reinterpret_cast<Pair<T>*>(y + row * p.ldy + column),
               to_pair<T>(activate(acc[m][n][i] + bias.values[0], p.activation),
                          activate(acc[m][n][i + 1] + bias.values[1], p.activation)));
  });
}

}  // namespace minifuse::cuda
