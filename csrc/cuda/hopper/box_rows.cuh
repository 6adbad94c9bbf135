// The 128 rows of a block in shared memory, in boxes of 64 columns: the residual as TMA left it, and y
// in its place, copied out in whole pieces. (Straight from the registers of a product a row would be
// read and written four bytes at a time, and each read would be waited for.)
#pragma once

#include "cuda/hopper/boxes.cuh"

namespace minifuse::cuda {

inline constexpr int kRowsBoxBytes = 128 * kBoxRowBytes;

template <typename T>
struct BoxRows {
  using Element = T;
  static constexpr int kPiece = 8;  // elements in 16 bytes

  // Piece c of a box's row r is at place c ^ (r % 8), as ptx.cuh says.
  MINIFUSE_DEVICE std::byte* at(int row, int column) const {
    const int piece = column % kBoxColumns / kPiece ^ row % 8;
    return boxes + column / kBoxColumns * kRowsBoxBytes + row * kBoxRowBytes + 16 * piece +
           column % kPiece * static_cast<int>(sizeof(T));
  }
  MINIFUSE_DEVICE Pair<T> get(int row, int column) const {
    return ptx::load(reinterpret_cast<const Pair<T>*>(at(row, column)));
  }
  MINIFUSE_DEVICE void put(int row, int column, const Pair<T>& pair) const {
    ptx::store(reinterpret_cast<Pair<T>*>(at(row, column)), pair);
  }

  // To y's rows first_row.. of M, which begin at multiples of 16 bytes; a warp takes a row at a time.
  template <int kThreads>
  MINIFUSE_DEVICE void copy_out(void* y, int64_t ldy, int first_row, int M, int H) const {
    using Piece = Vector<uint32_t, 4>;
    T* to = static_cast<T*>(y) + first_row * ldy;
    for (int row = ptx::warp_index(); row < 128 && first_row + row < M; row += kThreads / 32)
      for (int column = kPiece * ptx::lane_index(); column < H; column += 32 * kPiece)
        ptx::store(reinterpret_cast<Piece*>(to + row * ldy + column),
                   ptx::load(reinterpret_cast<const Piece*>(at(row, column))));
  }

  std::byte* boxes;
};

}  // namespace minifuse::cuda
