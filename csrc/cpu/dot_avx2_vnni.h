// A step of int8.inl.h by vpdpbusd in 256 bits: AVX-VNNI, or AVX-512 VNNI with VL where
// MINIFUSE_EVEX_VNNI is defined (the same operation in another encoding).

struct i32x16 {
  __m256i lo, hi;
};
using weights64 = i32x16;

inline i32x16 zero_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline weights64 load_weights(const int8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline i32x16 broadcast_codes(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  const __m256i v = _mm256_set1_epi32(four);
  return {v, v};
}
#if defined(MINIFUSE_EVEX_VNNI)
#define MINIFUSE_VPDPBUSD "vpdpbusd %2, %1, %0"
#else
#define MINIFUSE_VPDPBUSD "%{vex%} vpdpbusd %2, %1, %0"
#endif
// As an intrinsic GCC 12 spills accumulators around it.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  __asm__ volatile(MINIFUSE_VPDPBUSD : "+x"(acc.lo) : "x"(x.lo), "x"(weights.lo));
  __asm__ volatile(MINIFUSE_VPDPBUSD : "+x"(acc.hi) : "x"(x.hi), "x"(weights.hi));
}
inline f32x16 to_float(i32x16 v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
inline void store_codes(uint8_t* p, f32x16 v) {
  const __m256i halves = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
  const __m256i bytes = _mm256_packus_epi16(halves, halves);  // 0-3 8-11 twice, 4-7 12-15 twice
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
}
