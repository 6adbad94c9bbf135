// y[i] = LayerNorm(word[ids[i]] + position[positions[i]]), token type 0 being part of position: a
// warp a row, each lane every 32nd pair of columns. The rows are read again in each pass: from L1,
// and no register array bounds H.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/kernels.h"

namespace minifuse::cuda {

inline constexpr int kEmbedWarps = 4;

// The sum over a warp, the same in every lane.
MINIFUSE_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += ptx::shuffle_xor(x, mask);
  return x;
}

template <typename T>
MINIFUSE_KERNEL(32 * kEmbedWarps)
embed_layer_norm_kernel(const EmbedParams p) {
  const int row = ptx::block_index() * kEmbedWarps + ptx::warp_index();
  if (row >= p.M) return;
  const T* word = static_cast<const T*>(p.word) + int64_t{ptx::load(p.ids + row)} * p.H;
  const T* position =
      static_cast<const T*>(p.position) + int64_t{ptx::load(p.positions + row)} * p.H;
  const auto pair_at = [&](int column) -> Pair<float> {
    const auto w = ptx::load(reinterpret_cast<const Pair<T>*>(word + column));
    const auto q = ptx::load(reinterpret_cast<const Pair<T>*>(position + column));
    return {to_float(w.values[0]) + to_float(q.values[0]),
            to_float(w.values[1]) + to_float(q.values[1])};
  };
  const int first = 2 * ptx::lane_index();
  const float reciprocal_width = ptx::reciprocal(static_cast<float>(p.H));

  float sum = 0.0f;
  for (int column = first; column < p.H; column += 64) {
    const Pair<float> v = pair_at(column);
    sum += v.values[0] + v.values[1];
  }
  float mean = warp_sum(sum) * reciprocal_width;
  float difference = 0.0f, square = 0.0f;
  for (int column = first; column < p.H; column += 64) {
    const Pair<float> v = pair_at(column);
    const float d0 = v.values[0] - mean, d1 = v.values[1] - mean;
    difference += d0 + d1;
    square = ptx::fma(d0, d0, ptx::fma(d1, d1, square));
  }
  difference = warp_sum(difference);
  const float variance =
      (warp_sum(square) - difference * difference * reciprocal_width) * reciprocal_width;
  const float rstd = ptx::reciprocal(ptx::sqrt((variance > 0.0f ? variance : 0.0f) + p.eps));
  mean += difference * reciprocal_width;

  T* y = static_cast<T*>(p.y) + row * p.ldy;
  for (int column = first; column < p.H; column += 64) {
    const Pair<float> v = pair_at(column);
    const auto gamma = ptx::load(reinterpret_cast<const Pair<float>*>(p.gamma + column));
    const auto beta = ptx::load(reinterpret_cast<const Pair<float>*>(p.beta + column));
    ptx::store(reinterpret_cast<Pair<T>*>(y + column),
               to_pair<T>(ptx::fma((v.values[0] - mean) * rstd, gamma.values[0], beta.values[0]),
                          ptx::fma((v.values[1] - mean) * rstd, gamma.values[1], beta.values[1])));
  }
}

}  // namespace minifuse::cuda
