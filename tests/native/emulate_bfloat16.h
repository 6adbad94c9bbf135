// The vectors of AVX-512 with its steps of bfloat16 on plain floats: a machine without either runs the
// source of the kernels all the same. Included once, within a namespace of its own.

#define kTileRows kScalarTileRows
#define kTileVectors kScalarTileVectors
#define kMapVectors kScalarMapVectors
#include "cpu/vectors/vec_scalar.h"
#undef kTileRows
#undef kTileVectors
#undef kMapVectors
constexpr int kTileRows = 12, kTileVectors = 2, kMapVectors = 8;  // vec_avx512.h

struct bf16x32 {
  uint16_t lane[32];
};
inline float widened(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &word, 4);
  return value;
}
inline bf16x32 load_pairs(const uint16_t* p) {
  bf16x32 pairs;
  __builtin_memcpy(pairs.lane, p, 64);
  return pairs;
}
inline bf16x32 broadcast_pair(const uint16_t* p) {
  bf16x32 pairs;
  for (int i = 0; i < 16; ++i) __builtin_memcpy(pairs.lane + 2 * i, p, 4);
  return pairs;
}
inline void dot(f32x16& acc, const bf16x32& x, const bf16x32& w) {
  for (int i = 0; i < 16; ++i)
    for (const int j : {2 * i + 1, 2 * i})
      acc.lane[i] = __builtin_fmaf(widened(x.lane[j]), widened(w.lane[j]), acc.lane[i]);
}
inline void store_bfloat16(uint16_t* p, f32x16 v) { to_bfloat16(v.lane, 16, p); }
inline void store_pairs(uint16_t* p, f32x16 even, f32x16 odd) {
  for (int i = 0; i < 16; ++i) {
    to_bfloat16(even.lane + i, 1, p + 2 * i);
    to_bfloat16(odd.lane + i, 1, p + 2 * i + 1);
  }
}
