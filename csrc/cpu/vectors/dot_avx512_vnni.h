// A step of int8.inl.h by AVX-512 VNNI: one vpdpbusd.

using weights64 = i32x16;

inline weights64 load_weights(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
// As an intrinsic GCC 12 spills accumulators around it.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(x.v), "v"(weights.v));
}
// acc[i] += x[2 i] w[2 i] + x[2 i + 1] w[2 i + 1] in words of 16 bits (attention_int16.inl.h).
inline void dot_words(i32x16& acc, i32x16 x, weights64 weights) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(x.v), "v"(weights.v));
}
