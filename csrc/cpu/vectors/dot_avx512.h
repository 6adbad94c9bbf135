// A step of int8.inl.h in 512 bits without VNNI: as dot_avx2.h.

using weights64 = i32x16;

inline weights64 load_weights(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i product;
  __asm__("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
          : "+v"(acc.v), "=&v"(product)
          : "v"(x.v), "v"(weights.v), "v"(ones));
}
// acc[i] += x[2 i] w[2 i] + x[2 i + 1] w[2 i + 1] in words of 16 bits (attention_int16.inl.h).
inline void dot_words(i32x16& acc, i32x16 x, weights64 weights) {
  __m512i product;
  __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
          : "+v"(acc.v), "=&v"(product)
          : "v"(x.v), "v"(weights.v));
}
