// y [M, N] = activation(x W^T + bias): a block computes a tile of 128 rows and 128 columns.
//
// Four warps of 64 x 64: a step of K costs a warp 8 ldmatrix (32 cycles of shared memory) for 32
// mma (32 cycles of an H100's tensor cores, 64 of an A100's); 32 x 32 would double the reads. 80 KB
// of shared memory leave two blocks an SM, one computing while the other's epilogue stores.
#pragma once

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/kernels/tile.cuh"

namespace minifuse::cuda {

using LinearShape = TileShape<2, 2, 4, 8>;

// activation(acc + bias) of the tile at a column: put(row, column, pair) within the tile, as far as N.
template <typename Shape, typename T, typename F>
MINIFUSE_DEVICE void activate_tile(const float (&acc)[Shape::kM][Shape::kN][4],
                                   const LinearParams& p, int first_column, F put) {
  const float* biases = p.bias ? p.bias + first_column : nullptr;
  const int num_columns = p.N - first_column;
  with_activation(p.activation, [&](auto activate) {
    for_each_pair<Shape>([&](int m, int n, int i, int row, int column) {
      if (column >= num_columns) return;
      Pair<float> bias = {0.0f, 0.0f};
      if (biases) bias = ptx::load(reinterpret_cast<const Pair<float>*>(biases + column));
      put(row, column,
          to_pair<T>(activate(acc[m][n][i] + bias.values[0]),
                     activate(acc[m][n][i + 1] + bias.values[1])));
    });
  });
}

// y = activation(acc + bias) for the tile at a row and column.
template <typename Shape, typename T>
MINIFUSE_DEVICE void store_linear(const float (&acc)[Shape::kM][Shape::kN][4],
                                  const LinearParams& p, int first_row, int first_column) {
  // Pointer to the tile, so that 32 bits reach all of it.
  T* y = static_cast<T*>(p.y) + first_row * p.ldy + first_column;
  const int num_rows = p.M - first_row, stride = static_cast<int>(p.ldy);
  activate_tile<Shape, T>(acc, p, first_column, [&](int row, int column, const Pair<T>& pair) {
    if (row < num_rows) ptx::store(reinterpret_cast<Pair<T>*>(y + row * stride + column), pair);
  });
}

template <typename T>
MINIFUSE_KERNEL(LinearShape::kThreads)
linear_kernel(const LinearParams p) {
  const int num_column_tiles = (p.N + LinearShape::kColumns - 1) / LinearShape::kColumns;
  const int first_row = ptx::block_index() / num_column_tiles * LinearShape::kRows;
  const int first_column = ptx::block_index() % num_column_tiles * LinearShape::kColumns;
  const T* x = static_cast<const T*>(p.x);
  const T* weight = static_cast<const T*>(p.weight);

  float acc[LinearShape::kM][LinearShape::kN][4];
  multiply_tile<LinearShape>(acc, Rows<T>{x + first_row * p.ldx, p.ldx, p.M - first_row},
                             Rows<T>{weight + int64_t{first_column} * p.K, p.K, p.N - first_column},
                             p.K, ptx::shared_memory());
  store_linear<LinearShape, T>(acc, p, first_row, first_column);
}

}  // namespace minifuse::cuda
