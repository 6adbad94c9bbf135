// One vector a sentence from its rows: a block a sentence, each thread every 128th pair of columns,
// rows added in ascending order. The poolings are those of csrc/cpu/rows/pool.inl.h.
#pragma once

#include "cuda/elements.cuh"

namespace minifuse::cuda {

inline constexpr int kPoolThreads = 128;

template <typename T>
MINIFUSE_KERNEL(kPoolThreads)
pool_kernel(const PoolParams p) {
  const int sentence = ptx::block_index();
  const int begin = ptx::load(p.cu_seqlens + sentence);
  const int seqlen = ptx::load(p.cu_seqlens + sentence + 1) - begin;
  const uint8_t* mask = p.mask ? p.mask + begin : nullptr;
  const auto is_kept = [&](int row) { return !mask || ptx::load(mask + row) != 0; };
  int count = seqlen - p.first_row;  // rows that take part, if any
  if (mask) {
    count = 0;
    for (int row = p.first_row; row < seqlen; ++row) count += is_kept(row);
  }
  const T* x = static_cast<const T*>(p.x) + begin * p.ldx;
  float* y = p.y + sentence * p.ldy;

  const bool is_max = p.pooling == Pooling::kMax;
  const bool is_weighted = p.pooling == Pooling::kWeightedMean;
  int first = p.first_row, last = seqlen;
  if (p.pooling == Pooling::kCls) last = first + 1;
  if (p.pooling == Pooling::kLastToken) first = seqlen - 1;
  float divisor = 1.0f;
  if (p.pooling == Pooling::kMean) divisor = static_cast<float>(count);
  if (p.pooling == Pooling::kMeanSqrtLen) divisor = ptx::sqrt(static_cast<float>(count));
  if (is_weighted)  // of the places first + 1 .. seqlen
    divisor = 0.5f * static_cast<float>(count) * static_cast<float>(first + 1 + seqlen);

  const float factor = ptx::reciprocal(divisor);
  for (int column = 2 * ptx::thread_index(); column < p.H; column += 2 * kPoolThreads) {
    float a = 0.0f, b = 0.0f;
    for (int row = first; count > 0 && row < last; ++row) {
      if (!is_kept(row)) continue;
      const auto pair = ptx::load(reinterpret_cast<const Pair<T>*>(x + row * p.ldx + column));
      const float u = to_float(pair.values[0]), v = to_float(pair.values[1]);
      if (is_max) {
        a = row == first || u > a ? u : a;
        b = row == first || v > b ? v : b;
      } else {
        const float weight = is_weighted ? static_cast<float>(row + 1) : 1.0f;
        a = ptx::fma(u, weight, a);
        b = ptx::fma(v, weight, b);
      }
    }
    if (count > 0) {
      a *= factor;
      b *= factor;
    }
    ptx::store(reinterpret_cast<Pair<float>*>(y + column), Pair<float>{a, b});
  }
}

}  // namespace minifuse::cuda
