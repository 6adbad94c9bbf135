// y[i] = LayerNorm(a[i] + b[i]) * gamma + beta for rows in memory, one warp a row, each lane every
// 32nd pair of columns. The rows are read again in each pass: from L1, and no register array bounds H.
// Two passes, the second also summing the differences, which corrects the mean (DESIGN section 3).
#pragma once

#include "cuda/elements.cuh"
#include "cuda/kernels.h"

namespace minifuse::cuda {

inline constexpr int kRowNormWarps = 4;

// The sum over a warp, the same in every lane.
MINIFUSE_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += ptx::shuffle_xor(x, mask);
  return x;
}

// One row of H elements, by a warp; b may be null.
template <typename T>
MINIFUSE_DEVICE void normalize_row(const T* a, const T* b, const float* gamma, const float* beta,
                                   float eps, int H, T* y) {
  const auto pair_at = [&](int column) -> Pair<float> {
    const auto u = ptx::load(reinterpret_cast<const Pair<T>*>(a + column));
    Pair<float> sum = {to_float(u.values[0]), to_float(u.values[1])};
    if (b) {
      const auto v = ptx::load(reinterpret_cast<const Pair<T>*>(b + column));
      sum.values[0] += to_float(v.values[0]);
      sum.values[1] += to_float(v.values[1]);
    }
    return sum;
  };
  const int first = 2 * ptx::lane_index();
  const float reciprocal_width = ptx::reciprocal(static_cast<float>(H));

  float sum = 0.0f;
  for (int column = first; column < H; column += 64) {
    const Pair<float> v = pair_at(column);
    sum += v.values[0] + v.values[1];
  }
  float mean = warp_sum(sum) * reciprocal_width;
  float difference = 0.0f, square = 0.0f;
  for (int column = first; column < H; column += 64) {
    const Pair<float> v = pair_at(column);
    const float d0 = v.values[0] - mean, d1 = v.values[1] - mean;
    difference += d0 + d1;
    square = ptx::fma(d0, d0, ptx::fma(d1, d1, square));
  }
  difference = warp_sum(difference);
  const float variance =
      (warp_sum(square) - difference * difference * reciprocal_width) * reciprocal_width;
  const float rstd = ptx::reciprocal(ptx::sqrt((variance > 0.0f ? variance : 0.0f) + eps));
  mean += difference * reciprocal_width;

  for (int column = first; column < H; column += 64) {
    const Pair<float> v = pair_at(column);
    const auto g = ptx::load(reinterpret_cast<const Pair<float>*>(gamma + column));
    const auto s = ptx::load(reinterpret_cast<const Pair<float>*>(beta + column));
    ptx::store(reinterpret_cast<Pair<T>*>(y + column),
               to_pair<T>(ptx::fma((v.values[0] - mean) * rstd, g.values[0], s.values[0]),
                          ptx::fma((v.values[1] - mean) * rstd, g.values[1], s.values[1])));
  }
}

template <typename T>
MINIFUSE_KERNEL(32 * kRowNormWarps)
layer_norm_kernel(const RowNormParams p) {
  const int row = ptx::block_index() * kRowNormWarps + ptx::warp_index();
  if (row >= p.M) return;
  const T* residual = static_cast<const T*>(p.norm.residual);
  normalize_row(static_cast<const T*>(p.x) + row * p.ldx,
                residual ? residual + row * p.norm.ldr : nullptr, p.norm.gamma, p.norm.beta,
                p.norm.eps, p.H, static_cast<T*>(p.y) + row * p.ldy);
}

}  // namespace minifuse::cuda
