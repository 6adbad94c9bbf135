// A step of int8.inl.h in 512 bits without VNNI: as dot_avx2.h.

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
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i product;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
          : "+v"(acc.v), "=&v"(product)
          : "v"(x.v), "v"(weights.v), "v"(ones));
}
inline f32x16 to_float(i32x16 v) { return {_mm512_cvtepi32_ps(v.v)}; }
inline void store_codes(uint8_t* p, f32x16 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.v)));
}
