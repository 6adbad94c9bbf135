// A step of int8.inl.h by AVX-512 VNNI: one vpdpbusd.

struct i32x16 {
  __m512i v;
};
using weights64 = i32x16;

inline i32x16 zero_sums() { return {_mm512_setzero_si512()}; }
inline weights64 load_weights(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
inline i32x16 broadcast_codes(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}
// As an intrinsic GCC 12 spills accumulators around it.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(x.v), "v"(weights.v));
}
inline f32x16 to_float(i32x16 v) { return {_mm512_cvtepi32_ps(v.v)}; }
inline void store_codes(uint8_t* p, f32x16 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.v)));
}
