// A step of int8.inl.h without dot-product instructions. vpmaddubsw adds the products of two codes
// in 16 bits, which the weights' codes never overflow (quantize.h), vpmaddwd by ones adds two of
// these. On Zen 3 32 multiply-adds take these three instructions where codes widened to 16 bits
// take four.

struct i32x16 {
  __m256i lo, hi;
};

// Read where they are used: the accumulators leave no register for them.
struct weights64 {
  const int8_t* at;
};

inline i32x16 zero_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline weights64 load_weights(const int8_t* p) { return {p}; }
inline i32x16 broadcast_codes(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  const __m256i v = _mm256_set1_epi32(four);
  return {v, v};
}
// In place: as intrinsics GCC 12 renames the accumulators of a 6 x 16 tile and spills some.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  using Vector = const __m256i_u*;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i product;
  __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                   : "+x"(acc.lo), "=&x"(product)
                   : "x"(x.lo), "m"(*reinterpret_cast<Vector>(weights.at)), "x"(ones));
  __asm__ volatile("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                   : "+x"(acc.hi), "=&x"(product)
                   : "x"(x.hi), "m"(*reinterpret_cast<Vector>(weights.at + 32)), "x"(ones));
}
inline f32x16 to_float(i32x16 v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
inline void store_codes(uint8_t* p, f32x16 v) {
  const __m256i halves = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
  const __m256i bytes = _mm256_packus_epi16(halves, halves);  // 0-3 8-11 twice, 4-7 12-15 twice
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
}
