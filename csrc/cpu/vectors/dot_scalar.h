// A step of int8.inl.h in plain integers: the meaning of the others. x86-64's baseline has its own
// instructions for it: an int8 encode takes an eighth of the time.

struct weights64 {
  int8_t code[64];
};

inline weights64 load_weights(const int8_t* p) {
  weights64 w;
  __builtin_memcpy(w.code, p, 64);
  return w;
}
// acc[i] += sum over four codes of x times the four weights of column i.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
#if defined(__SSE2__)
  const __m128i zero = _mm_setzero_si128();
  for (int i = 0; i < 16; i += 4) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x.lane + i));
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights.code + 4 * i));
    // Each in 16 bits, then the sums of two products, then of four.
    const __m128i low =
        _mm_madd_epi16(_mm_unpacklo_epi8(codes, zero), _mm_srai_epi16(_mm_unpacklo_epi8(w, w), 8));
    const __m128i high =
        _mm_madd_epi16(_mm_unpackhi_epi8(codes, zero), _mm_srai_epi16(_mm_unpackhi_epi8(w, w), 8));
    const __m128 a = _mm_castsi128_ps(low), b = _mm_castsi128_ps(high);
    const __m128i fours =
        _mm_add_epi32(_mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0))),
                      _mm_castps_si128(_mm_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1))));
    __m128i* sums = reinterpret_cast<__m128i*>(acc.lane + i);
    _mm_storeu_si128(sums, _mm_add_epi32(_mm_loadu_si128(sums), fours));
  }
#else
  uint8_t codes[64];
  __builtin_memcpy(codes, x.lane, 64);
  for (int i = 0; i < 64; ++i) acc.lane[i / 4] += codes[i] * weights.code[i];
#endif
}
// acc[i] += x[2 i] w[2 i] + x[2 i + 1] w[2 i + 1] in words of 16 bits (attention_int16.inl.h).
inline void dot_words(i32x16& acc, i32x16 x, weights64 weights) {
#if defined(__SSE2__)
  for (int i = 0; i < 16; i += 4) {
    __m128i* sums = reinterpret_cast<__m128i*>(acc.lane + i);
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x.lane + i));
    const __m128i w = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights.code + 4 * i));
    _mm_storeu_si128(sums, _mm_add_epi32(_mm_loadu_si128(sums), _mm_madd_epi16(values, w)));
  }
#else
  int16_t values[32], w[32];
  __builtin_memcpy(values, x.lane, 64);
  __builtin_memcpy(w, weights.code, 64);
  for (int i = 0; i < 32; ++i) acc.lane[i / 2] += values[i] * w[i];
#endif
}
