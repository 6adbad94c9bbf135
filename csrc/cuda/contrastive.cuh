// loss[i] = log sum_j exp(scale a_i . b_j) - scale a_i . b_i: a block takes 64 anchors past all
// candidates, 128 at a time; the scores [batch, num_candidates] exist as one tile of registers. The
// running maximum and sum are those of attention.cuh.
#pragma once

#include "cuda/kernels.h"
#include "cuda/layernorm.cuh"
#include "cuda/tile.cuh"

namespace minifuse::cuda {

// Half as many rows for float32, whose fragments are split into two parts: more would spill.
template <typename T>
using ContrastiveShape = TileShape<2, 2, (sizeof(T) == 4 ? 1 : 2), 8>;
// Maximum and sum of a row by warp column, and the score of its positive.
template <typename T, typename Shape = ContrastiveShape<T>>
inline constexpr int kContrastiveSharedBytes =
    Shape::kSharedBytes +
    Shape::kRows * (2 * Shape::kWarpColumns + 1) * static_cast<int>(sizeof(float));

template <typename T>
MINIFUSE_KERNEL(ContrastiveShape<T>::kThreads)
contrastive_loss_kernel(const ContrastiveParams p) {
  using Shape = ContrastiveShape<T>;
  constexpr int kWarps = Shape::kWarpColumns, kRowsOfThread = 2 * Shape::kM;
  constexpr float kMinusInfinity = -__builtin_huge_valf();
  const int first_row = ptx::block_index() * Shape::kRows;
  const int lane = ptx::lane_index(), warp_column = ptx::warp_index() % kWarps;
  float* statistics =
      reinterpret_cast<float*>(ptx::shared_memory() + Shape::kSharedBytes);  // [kRows][kWarps][2]
  float* positive = statistics + 2 * Shape::kRows * kWarps;  // [kRows]
  const T* a = static_cast<const T*>(p.a) + int64_t{first_row} * p.D;
  const float scale_log2 = p.scale * 1.4426950408889634f;

  float maximum[kRowsOfThread], sum[kRowsOfThread] = {};
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) maximum[i] = kMinusInfinity;
  for (int candidate = 0; candidate < p.num_candidates; candidate += Shape::kColumns) {
    float acc[Shape::kM][Shape::kN][4];
    multiply_tile<Shape>(acc, Rows<T>{a, p.D, p.batch - first_row},
                         Rows<T>{static_cast<const T*>(p.b) + int64_t{candidate} * p.D, p.D,
                                 p.num_candidates - candidate},
                         p.D, ptx::shared_memory());
    float seen[kRowsOfThread];
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) seen[i] = kMinusInfinity;
    for_each_pair<Shape>([&](int m, int n, int i, int row, int column) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float& score = acc[m][n][i + j];
        score = candidate + column + j < p.num_candidates ? score * scale_log2 : kMinusInfinity;
        if (candidate + column + j == first_row + row) ptx::store(positive + row, score);
        if (score > seen[2 * m + i / 2]) seen[2 * m + i / 2] = score;
      }
    });
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const float most = quad_max(seen[i]);
      const float next = maximum[i] > most ? maximum[i] : most;
      // A warp whose columns are all past the last candidate has seen nothing yet: 0 stays 0.
      sum[i] *= next == kMinusInfinity ? 1.0f : ptx::exp2(maximum[i] - next);
      maximum[i] = next;
    }
    for_each_pair<Shape>([&](int m, int n, int i, int, int) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (maximum[2 * m + i / 2] != kMinusInfinity)
          sum[2 * m + i / 2] += ptx::exp2(acc[m][n][i + j] - maximum[2 * m + i / 2]);
    });
  }

  const int row_of_thread = ptx::warp_index() / kWarps * Shape::kM * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const float total = quad_sum(sum[i]);
    if (lane % 4 == 0)
      ptx::store(reinterpret_cast<Pair<float>*>(statistics) + (row_of_thread + 8 * i) * kWarps +
                     warp_column,
                 Pair<float>{maximum[i], total});
  }
  ptx::barrier();
  for (int row = ptx::thread_index(); row < Shape::kRows; row += Shape::kThreads) {
    if (first_row + row >= p.batch) continue;
    float most = kMinusInfinity, total = 0.0f;
#pragma unroll
    for (int pass = 0; pass < 2; ++pass)
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const auto s =
            ptx::load(reinterpret_cast<const Pair<float>*>(statistics) + row * kWarps + w);
        if (pass == 0 && s.values[0] > most) most = s.values[0];
        if (pass == 1 && s.values[0] != kMinusInfinity)
          total += s.values[1] * ptx::exp2(s.values[0] - most);
      }
    const float log_sum = most * 0.69314718055994531f + ptx::log(total);
    ptx::store(p.loss + first_row + row,
               log_sum - ptx::load(positive + row) * 0.69314718055994531f);
  }
}

}  // namespace minifuse::cuda
