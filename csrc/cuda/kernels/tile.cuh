// acc [rows, columns] = A B^T for a tile of a block: A and B flow chunk by chunk of K into a ring of
// shared memory while the tensor cores work on the chunk before. Every element is one chain of matrix
// instructions over K, ascending, whatever the tile and whatever else is in it: its bits depend on
// its own row of A and row of B alone.
//
//   shared, a ring of kStages:  A chunk [kRows, kChunkBytes]  B chunk [kColumns, kChunkBytes]
//   rows kChunkBytes + 16 apart: the 8 rows that ldmatrix reads at a time fall into different banks
#pragma once

#include "cuda/elements.cuh"

namespace minifuse::cuda {

inline constexpr int kChunkBytes = 64;  // of K: two steps
inline constexpr int kRowPadding = 16;

// A matrix [num_rows, K] in global memory, K a multiple of a chunk. Rows past num_rows read as
// zeros.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;  // elements from row to row; 16 bytes divide it
  int num_rows;
};

// Division of a tile among the warps of a block: kWarpRows x kWarpColumns warps, each with kM tiles
// of 16 rows and kN tiles of 8 columns (kN even: B comes in pairs). Four stages hide a fetch from L2; two
// are left to tiles so wide that four would not fit the shared memory of sm_80.
template <int kWarpRowsValue, int kWarpColumnsValue, int kMValue, int kNValue, int kStagesValue = 4>
struct TileShape {
  static constexpr int kStages = kStagesValue;
  static constexpr int kWarpRows = kWarpRowsValue, kWarpColumns = kWarpColumnsValue;
  static constexpr int kM = kMValue, kN = kNValue;
  static constexpr int kRows = kWarpRows * kM * 16, kColumns = kWarpColumns * kN * 8;
  static constexpr int kThreads = 32 * kWarpRows * kWarpColumns;
  static constexpr int kStageBytes = (kRows + kColumns) * (kChunkBytes + kRowPadding);
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kN % 2 == 0);
};

// Starts the copy of kCount rows, num_bytes wide from a column on, to shared memory; the work of
// kThreads threads, this being the one numbered `thread`.
template <int kThreads, int kCount, typename T>
MINIFUSE_DEVICE void copy_rows(std::byte* shared, int shared_stride, const Rows<T>& rows,
                               int64_t column, int num_bytes, int thread) {
  const int num_pieces = num_bytes / 16;  // of 16 bytes in a row
  for (int i = thread; i < kCount * num_pieces; i += kThreads) {
    const int row = i / num_pieces, piece = i % num_pieces;
    const bool is_there = row < rows.num_rows;
    const T* from = rows.data + (is_there ? row * rows.stride + column : 0);
    ptx::copy_async16(shared + row * shared_stride + 16 * piece,
                      reinterpret_cast<const std::byte*>(from) + (is_there ? 16 * piece : 0),
                      is_there ? 16 : 0);
  }
}

// A step of K from shared memory, as ptx.cuh lays fragments out: 16 rows of the first operand, or 16
// of the second, two neighbouring tiles.
MINIFUSE_DEVICE void load_rows(uint32_t (&fragment)[4], const std::byte* a, int stride) {
  const int lane = ptx::lane_index();
  ptx::load_matrices(fragment, a + (lane % 16) * stride + 16 * (lane / 16));
}
MINIFUSE_DEVICE void load_columns(uint32_t (&fragment)[4], const std::byte* b, int stride) {
  const int lane = ptx::lane_index();
  ptx::load_matrices(fragment, b + (lane % 8 + 8 * (lane / 16)) * stride + 16 * (lane / 8 % 2));
}

// acc += a b^T over one step of K: 16 kM rows from `a` and 8 kN from `b`, both in shared memory.
template <typename T, int kM, int kN>
MINIFUSE_DEVICE void multiply_step(float (&acc)[kM][kN][4], const std::byte* a, int a_stride,
                                   const std::byte* b, int b_stride) {
  uint32_t a_fragment[kM][4];
#pragma unroll
  for (int m = 0; m < kM; ++m) load_rows(a_fragment[m], a + 16 * m * a_stride, a_stride);
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t b_fragment[4];
    load_columns(b_fragment, b + 8 * n * b_stride, b_stride);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      multiply(T{}, acc[m][n], a_fragment[m], b_fragment[0], b_fragment[1]);
      multiply(T{}, acc[m][n + 1], a_fragment[m], b_fragment[2], b_fragment[3]);
    }
  }
}

// acc = A B^T over all of K, for this warp's part of the tile.
template <typename Shape, typename T>
MINIFUSE_DEVICE void multiply_tile(float (&acc)[Shape::kM][Shape::kN][4], const Rows<T>& a,
                                   const Rows<T>& b, int K, std::byte* shared) {
  constexpr int kStride = kChunkBytes + kRowPadding;
  constexpr int kStages = Shape::kStages;
  constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
  const int warp = ptx::warp_index();
  const int a_row = warp / Shape::kWarpColumns * Shape::kM * 16;
  const int b_row = warp % Shape::kWarpColumns * Shape::kN * 8;
  const int num_chunks = K / kChunk;

  const auto fetch = [&](int chunk) {
    if (chunk < num_chunks) {
      std::byte* stage = shared + chunk % kStages * Shape::kStageBytes;
      copy_rows<Shape::kThreads, Shape::kRows>(stage, kStride, a, chunk * kChunk, kChunkBytes,
                                               ptx::thread_index());
      copy_rows<Shape::kThreads, Shape::kColumns>(stage + Shape::kRows * kStride, kStride, b,
                                                  chunk * kChunk, kChunkBytes, ptx::thread_index());
    }
    ptx::copy_commit();  // an empty group keeps the count
  };

#pragma unroll
  for (int m = 0; m < Shape::kM; ++m)
#pragma unroll
    for (int n = 0; n < Shape::kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0f;
#pragma unroll
  for (int chunk = 0; chunk < kStages - 1; ++chunk) fetch(chunk);
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    ptx::copy_wait<kStages - 2>();  // this thread's part of the chunk is there
    ptx::barrier();  // everyone's; and the chunk before has been used up
    fetch(chunk + kStages - 1);  // into its place
    const std::byte* stage = shared + chunk % kStages * Shape::kStageBytes;
    const std::byte* a_tile = stage + a_row * kStride;
    const std::byte* b_tile = stage + (Shape::kRows + b_row) * kStride;
#pragma unroll
    for (int byte = 0; byte < kChunkBytes; byte += kStepBytes)
      multiply_step<T>(acc, a_tile + byte, kStride, b_tile + byte, kStride);
  }
  ptx::copy_wait<0>();
  ptx::barrier();  // the ring may be used again
}

// Calls f(m, n, i, row, column) for every pair of neighbouring elements acc[m][n][i], [i + 1] of
// this thread; row and column within the tile.
template <typename Shape, typename F>
MINIFUSE_DEVICE void for_each_pair(F f) {
  const int lane = ptx::lane_index(), warp = ptx::warp_index();
  const int row = warp / Shape::kWarpColumns * Shape::kM * 16 + lane / 4;
  const int column = warp % Shape::kWarpColumns * Shape::kN * 8 + 2 * (lane % 4);
#pragma unroll
  for (int m = 0; m < Shape::kM; ++m)
#pragma unroll
    for (int n = 0; n < Shape::kN; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        f(m, n, 2 * half, row + 16 * m + 8 * half, column + 8 * n);
}

}  // namespace minifuse::cuda
