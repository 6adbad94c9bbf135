// The element types of activations and weights, and what the matrix instructions do with them. An
// instruction takes kStepBytes of K from every row, whatever the type: 16 elements of 16 bits or 8
// of float32, whose fragments lie alike in bytes.
#pragma once

#include "cuda/ptx.cuh"

namespace minifuse::cuda {

inline constexpr int kStepBytes = 32;

// Two neighbouring elements as a thread stores them.
template <typename T>
using Pair = Vector<T, 2>;

MINIFUSE_DEVICE float to_float(float x) { return x; }
MINIFUSE_DEVICE float to_float(Bfloat16 x) { return ptx::from_bits(uint32_t{x.bits} << 16); }
MINIFUSE_DEVICE float to_float(Half x) { return ptx::from_half(x.bits); }

MINIFUSE_DEVICE uint32_t pack(Bfloat16, float low, float high) {
  return ptx::pack_bfloat16(low, high);
}
MINIFUSE_DEVICE uint32_t pack(Half, float low, float high) { return ptx::pack_half(low, high); }

template <typename T>
MINIFUSE_DEVICE Pair<T> to_pair(float first, float second) {
  if constexpr (sizeof(T) == 4) {
    return {first, second};
  } else {
    const uint32_t bits = pack(T{}, first, second);
    return {{{static_cast<uint16_t>(bits)}, {static_cast<uint16_t>(bits >> 16)}}};
  }
}

// d += a b^T over one step of K; the fragments as ptx.cuh describes them.
MINIFUSE_DEVICE void multiply(Bfloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                              uint32_t b1) {
  ptx::mma_bfloat16(d, a, b0, b1);
}
MINIFUSE_DEVICE void multiply(Half, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                              uint32_t b1) {
  ptx::mma_half(d, a, b0, b1);
}

// float32 as a sum of two tf32 numbers, x = high + low with an error of 2^-22 |x|; of the four
// products the one of two low parts is below float32's own rounding and left out. The small ones
// go first (three bfloat16 parts would err by 4e-6 over K = 384, this by less than 1e-6).
struct Tf32Parts {
  uint32_t high, low;
};
MINIFUSE_DEVICE Tf32Parts split(uint32_t bits) {
  const float x = ptx::from_bits(bits);
  const uint32_t high = ptx::to_tf32(x);
  return {high, ptx::to_tf32(x - ptx::from_bits(high))};
}
MINIFUSE_DEVICE void multiply(float, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                              uint32_t b1) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Tf32Parts parts = split(a[i]);
    high[i] = parts.high;
    low[i] = parts.low;
  }
  const Tf32Parts first = split(b0), second = split(b1);
  ptx::mma_tf32(d, low, first.high, second.high);
  ptx::mma_tf32(d, high, first.low, second.low);
  ptx::mma_tf32(d, high, first.high, second.high);
}

}  // namespace minifuse::cuda
