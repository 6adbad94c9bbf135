// A step of bfloat16_dot.inl.h by AVX-512 BF16: one vdpbf16ps, which adds the product of the high
// halves, then that of the low ones, each time rounding to nearest and taking denormals for zeros.

struct bf16x32 {
  __m512i v;
};

inline bf16x32 load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
// Two values in every lane.
inline bf16x32 broadcast_pair(const uint16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, 4);
  return {_mm512_set1_epi32(pair)};
}
// As an intrinsic GCC 12 may spill accumulators around it.
inline void dot(f32x16& acc, bf16x32 x, bf16x32 weights) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc.v) : "v"(x.v), "v"(weights.v));
}

inline __m256i rounded(f32x16 v) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v.v));  // to nearest even
}
// Sixteen values, in order.
inline void store_bfloat16(uint16_t* p, f32x16 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(v));
}
// Sixteen pairs (even, odd).
inline void store_pairs(uint16_t* p, f32x16 even, f32x16 odd) {
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(odd)), 16);
  _mm512_storeu_si512(p, _mm512_or_si512(_mm512_cvtepu16_epi32(rounded(even)), high));
}
