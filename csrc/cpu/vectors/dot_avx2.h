// A step of int8.inl.h without dot-product instructions. vpmaddubsw adds the products of two codes
// in 16 bits, which the weights' codes never overflow (quantize.h), vpmaddwd by ones adds two of
// these. On Zen 3 32 multiply-adds take these three instructions where codes widened to 16 bits
// take four.

// Read where they are used: the accumulators leave no register for them.
struct weights64 {
  const int8_t* at;
};

inline weights64 load_weights(const int8_t* p) { return {p}; }
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
// acc[i] += x[2 i] w[2 i] + x[2 i + 1] w[2 i + 1] in words of 16 bits (attention_int16.inl.h).
inline void dot_words(i32x16& acc, i32x16 x, weights64 weights) {
  using Vector = const __m256i_u*;
  __m256i product;
  __asm__ volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
                   : "+x"(acc.lo), "=&x"(product)
                   : "x"(x.lo), "m"(*reinterpret_cast<Vector>(weights.at)));
  __asm__ volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
                   : "+x"(acc.hi), "=&x"(product)
                   : "x"(x.hi), "m"(*reinterpret_cast<Vector>(weights.at + 32)));
}
