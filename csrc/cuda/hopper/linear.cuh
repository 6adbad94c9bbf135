// y [M, N] = activation(x W^T + bias) on sm_90a: a block computes 128 rows and 192 columns. Two stages
// leave room for two blocks an SM, one of which multiplies while the other stores.
#pragma once

#include "cuda/hopper/boxes.cuh"
#include "cuda/kernels/linear.cuh"

namespace minifuse::cuda {

using HopperLinearShape = BoxShape<24, 1, 2>;

// The tile of y by way of shared memory, whose rows are then written in whole pieces of 16 bytes.
template <typename Shape, typename T>
MINIFUSE_DEVICE void store_linear_pieces(const float (&acc)[1][Shape::kN][4], const LinearParams& p,
                                         int first_row, int first_column, std::byte* shared) {
  constexpr int kPiece = 8, kStride = Shape::kColumns * static_cast<int>(sizeof(T)) + kRowPadding;
  static_assert(Shape::kRows * kStride <= Shape::kSharedBytes);
  using Piece = Vector<uint32_t, 4>;
  const int num_rows = p.M - first_row, num_columns = p.N - first_column;
  activate_tile<Shape, T>(acc, p, first_column, [&](int row, int column, const Pair<T>& pair) {
    ptx::store(
        reinterpret_cast<Pair<T>*>(shared + row * kStride + column * static_cast<int>(sizeof(T))),
        pair);
  });
  ptx::barrier();  // the tile is there
  T* y = static_cast<T*>(p.y) + first_row * p.ldy + first_column;
  constexpr int kPieces = Shape::kColumns / kPiece;  // of a row
  for (int i = ptx::thread_index(); i < Shape::kRows * kPieces; i += Shape::kThreads) {
    const int row = i / kPieces, column = i % kPieces * kPiece;
    if (row < num_rows && column < num_columns)
      ptx::store(reinterpret_cast<Piece*>(y + row * p.ldy + column),
                 ptx::load(reinterpret_cast<const Piece*>(shared + row * kStride +
                                                          column * static_cast<int>(sizeof(T)))));
  }
}

template <typename T>
MINIFUSE_KERNEL(HopperLinearShape::kThreads)
hopper_linear_kernel(const MINIFUSE_GRID_CONSTANT HopperLinearParams p) {
  using Shape = HopperLinearShape;
  const int num_column_tiles = (p.op.N + Shape::kColumns - 1) / Shape::kColumns;
  const int first_row = ptx::block_index() / num_column_tiles * Shape::kRows;
  const int first_column = ptx::block_index() % num_column_tiles * Shape::kColumns;
  float acc[1][Shape::kN][4];
  multiply_boxes<Shape>(T{}, acc, p.x, first_row, p.weight, first_column, p.op.K,
                        ptx::shared_memory(), [] {});
  if (p.op.N % 8 == 0 && p.op.ldy % 8 == 0)
    store_linear_pieces<Shape, T>(acc, p.op, first_row, first_column, ptx::shared_memory());
  else
    store_linear<Shape, T>(acc, p.op, first_row, first_column);
}

}  // namespace minifuse::cuda
