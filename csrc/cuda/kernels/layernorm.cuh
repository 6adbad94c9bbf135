// The epilogue of a tile that holds whole rows: y = LayerNorm(acc + bias + residual) * gamma + beta.
//
// A row lies in the registers of four lanes of each of kWarpColumns warps; its sums go over the
// lanes by shuffles, over the warps through shared memory, always in the same order. Two passes, the
// second also summing the differences, which corrects the mean (DESIGN section 3).
#pragma once

#include "cuda/kernels.h"
#include "cuda/kernels/tile.cuh"

namespace minifuse::cuda {

// The sum of a quad's lanes, the same in all four.
MINIFUSE_DEVICE float quad_sum(float x) {
  x += ptx::shuffle_xor(x, 1);
  return x + ptx::shuffle_xor(x, 2);
}
MINIFUSE_DEVICE float quad_max(float x) {
  float other = ptx::shuffle_xor(x, 1);
  x = x > other ? x : other;
  other = ptx::shuffle_xor(x, 2);
  return x > other ? x : other;
}

template <typename Shape>
inline constexpr int kNormSharedBytes =
    3 * Shape::kRows * Shape::kWarpColumns * static_cast<int>(sizeof(float));

// The rows of a block in global memory: where the residual comes from and y goes, two neighbours at a
// time. Of the block's own, so that 32 bits reach all of them.
template <typename T>
struct GlobalRows {
  using Element = T;
  MINIFUSE_DEVICE GlobalRows(const NormParams& norm, void* y, int64_t ldy, int first_row, int M)
      : residual(static_cast<const T*>(norm.residual) + first_row * norm.ldr),
        residual_stride(static_cast<int>(norm.ldr)),
        y(static_cast<T*>(y) + first_row * ldy),
        stride(static_cast<int>(ldy)),
        num_rows(M - first_row) {}

  MINIFUSE_DEVICE Pair<T> get(int row, int column) const {
    if (row >= num_rows) return to_pair<T>(0.0f, 0.0f);
    return ptx::load(reinterpret_cast<const Pair<T>*>(residual + row * residual_stride + column));
  }
  MINIFUSE_DEVICE void put(int row, int column, const Pair<T>& pair) const {
    if (row < num_rows) ptx::store(reinterpret_cast<Pair<T>*>(y + row * stride + column), pair);
  }

  const T* residual;
  int residual_stride;
  T* y;
  int stride, num_rows;
};

// acc: columns 0..H-1 of a block's rows, whose residual is read from `rows` and whose y is put there.
// shared: kNormSharedBytes.
template <typename Shape, typename Rows>
MINIFUSE_DEVICE void residual_layer_norm(float (&acc)[Shape::kM][Shape::kN][4], const float* bias,
                                         const NormParams& norm, int H, const Rows& rows,
                                         std::byte* shared) {
  constexpr int kWarps = Shape::kWarpColumns, kRowsOfThread = 2 * Shape::kM;
  constexpr int kSums = Shape::kRows * kWarps;
  float* sums = reinterpret_cast<float*>(shared);  // [3][kRows][kWarps]
  const int lane = ptx::lane_index(), warp_column = ptx::warp_index() % kWarps;
  const int row_of_thread = ptx::warp_index() / kWarps * Shape::kM * 16 + lane / 4;
  const auto row_of = [&](int i) { return row_of_thread + 8 * i; };  // i = 2 m + half

  float row_sum[kRowsOfThread] = {};
  for_each_pair<Shape>([&](int m, int n, int i, int row, int column) {
    if (column >= H) return;
    Pair<float> b = {0.0f, 0.0f};
    if (bias) b = ptx::load(reinterpret_cast<const Pair<float>*>(bias + column));
    const auto r = rows.get(row, column);
    acc[m][n][i] += b.values[0] + to_float(r.values[0]);
    acc[m][n][i + 1] += b.values[1] + to_float(r.values[1]);
    row_sum[2 * m + i / 2] += acc[m][n][i] + acc[m][n][i + 1];
  });

  // The sums of a row over all its threads, through the given third of shared memory.
  const auto put = [&](int which, int i, float sum) {
    sum = quad_sum(sum);
    if (lane % 4 == 0) ptx::store(sums + which * kSums + row_of(i) * kWarps + warp_column, sum);
  };
  const auto total = [&](int which, int i) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      sum += ptx::load(sums + which * kSums + row_of(i) * kWarps + w);
    return sum;
  };
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) put(0, i, row_sum[i]);
  ptx::barrier();
  const float reciprocal_width = ptx::reciprocal(static_cast<float>(H));
  float mean[kRowsOfThread], difference[kRowsOfThread] = {}, square[kRowsOfThread] = {};
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) mean[i] = total(0, i) * reciprocal_width;

  for_each_pair<Shape>([&](int m, int n, int i, int, int column) {
    if (column >= H) return;
    const float d0 = acc[m][n][i] - mean[2 * m + i / 2];
    const float d1 = acc[m][n][i + 1] - mean[2 * m + i / 2];
    difference[2 * m + i / 2] += d0 + d1;
    square[2 * m + i / 2] = ptx::fma(d0, d0, ptx::fma(d1, d1, square[2 * m + i / 2]));
  });
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    put(1, i, difference[i]);
    put(2, i, square[i]);
  }
  ptx::barrier();
  float rstd[kRowsOfThread];
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
    const float sum = total(1, i);
    const float variance = (total(2, i) - sum * sum * reciprocal_width) * reciprocal_width;
    rstd[i] = ptx::reciprocal(ptx::sqrt((variance > 0.0f ? variance : 0.0f) + norm.eps));
    mean[i] += sum * reciprocal_width;
  }

  // Some columns' gamma and beta at a time: a load behind a store to y would have to wait for it.
  constexpr int kBlock = Shape::kN % 4 == 0 ? 4 : 2;
  const int first_column = warp_column * Shape::kN * 8 + 2 * (lane % 4);
#pragma unroll
  for (int first = 0; first < Shape::kN; first += kBlock) {
    Pair<float> gamma[kBlock], beta[kBlock];
#pragma unroll
    for (int j = 0; j < kBlock; ++j) {
      const int column = first_column + 8 * (first + j);
      if (column >= H) break;
      gamma[j] = ptx::load(reinterpret_cast<const Pair<float>*>(norm.gamma + column));
      beta[j] = ptx::load(reinterpret_cast<const Pair<float>*>(norm.beta + column));
    }
#pragma unroll
    for (int j = 0; j < kBlock; ++j) {
      const int n = first + j, column = first_column + 8 * n;
      if (column >= H) break;
#pragma unroll
      for (int i = 0; i < kRowsOfThread; ++i) {
        const float x0 = (acc[i / 2][n][2 * (i % 2)] - mean[i]) * rstd[i];
        const float x1 = (acc[i / 2][n][2 * (i % 2) + 1] - mean[i]) * rstd[i];
        rows.put(
            row_of(i), column,
            to_pair<typename Rows::Element>(ptx::fma(x0, gamma[j].values[0], beta[j].values[0]),
                                            ptx::fma(x1, gamma[j].values[1], beta[j].values[1])));
      }
    }
  }
}

}  // namespace minifuse::cuda
