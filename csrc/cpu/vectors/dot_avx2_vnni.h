// A step of int8.inl.h by vpdpbusd in 256 bits: AVX-VNNI, or AVX-512 VNNI with VL where
// MINIFUSE_EVEX_VNNI is defined (the same operation in another encoding).

using weights64 = i32x16;

inline weights64 load_weights(const int8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
#if defined(MINIFUSE_EVEX_VNNI)
#define MINIFUSE_VPDPBUSD "vpdpbusd %2, %1, %0"
#define MINIFUSE_VPDPWSSD "vpdpwssd %2, %1, %0"
#else
#define MINIFUSE_VPDPBUSD "%{vex%} vpdpbusd %2, %1, %0"
#define MINIFUSE_VPDPWSSD "%{vex%} vpdpwssd %2, %1, %0"
#endif
// As an intrinsic GCC 12 spills accumulators around it.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  __asm__ volatile(MINIFUSE_VPDPBUSD : "+x"(acc.lo) : "x"(x.lo), "x"(weights.lo));
  __asm__ volatile(MINIFUSE_VPDPBUSD : "+x"(acc.hi) : "x"(x.hi), "x"(weights.hi));
}
// acc[i] += x[2 i] w[2 i] + x[2 i + 1] w[2 i + 1] in words of 16 bits (attention_int16.inl.h).
inline void dot_words(i32x16& acc, i32x16 x, weights64 weights) {
  __asm__ volatile(MINIFUSE_VPDPWSSD : "+x"(acc.lo) : "x"(x.lo), "x"(weights.lo));
  __asm__ volatile(MINIFUSE_VPDPWSSD : "+x"(acc.hi) : "x"(x.hi), "x"(weights.hi));
}
