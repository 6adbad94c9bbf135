// f32x16 as sixteen plain floats: the reference that any CPU runs, and the meaning of the others.
// x86-64's baseline has fma in its own instructions, for speed (<emmintrin.h>).

constexpr int kTileRows = 4;
constexpr int kTileVectors = 1;
constexpr int kMapVectors = 1;

struct f32x16 {
  float lane[16];
};

template <typename F>
inline f32x16 map_lanes(F f) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
  return r;
}

inline f32x16 zero() {
  return map_lanes([](int) { return 0.0f; });
}
inline f32x16 broadcast(float x) {
  return map_lanes([=](int) { return x; });
}
inline f32x16 load(const float* p) {
  return map_lanes([=](int i) { return p[i]; });
}
// The first n lanes from memory, zeros behind them; nothing past p[n - 1] is read.
inline f32x16 load_first(const float* p, int64_t n) {
  return map_lanes([=](int i) { return i < n ? p[i] : 0.0f; });
}
inline void store(float* p, f32x16 v) {
  for (int i = 0; i < 16; ++i) p[i] = v.lane[i];
}
inline void store_first(float* p, f32x16 v, int64_t n) {
  for (int i = 0; i < 16 && i < n; ++i) p[i] = v.lane[i];
}
// Lanes from n on are replaced by fill.
inline f32x16 keep_first(f32x16 v, int64_t n, float fill) {
  return map_lanes([&](int i) { return i < n ? v.lane[i] : fill; });
}
inline f32x16 add(f32x16 a, f32x16 b) {
  return map_lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline f32x16 sub(f32x16 a, f32x16 b) {
  return map_lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline f32x16 mul(f32x16 a, f32x16 b) {
  return map_lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline f32x16 div(f32x16 a, f32x16 b) {
  return map_lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
#if defined(__SSE2__)
// fmaf, for which x86-64's baseline has no instruction and the library takes up to 200 ns. The product
// of two floats is exact in double precision; their sum with a third may be rounded there, and a
// second time to float. Twice is as good as once, unless the first result lies halfway between two
// floats or below the normal ones, where floats are spaced wider. Such sums come here.
__attribute__((noinline)) f32x16 fma_of_doubtful_sums(const f32x16& a, const f32x16& b,
                                                      const f32x16& c) {
  return map_lanes([&](int i) {
    const double product = static_cast<double>(a.lane[i]) * b.lane[i];
    const double sum = product + c.lane[i];
    // The error of the sum, exactly (Knuth's TwoSum): without one, there is one rounding only.
    const double added = sum - product;
    const double error = (product - (sum - added)) + (c.lane[i] - added);
    return error == 0 ? static_cast<float>(sum) : __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
  });
}
inline f32x16 fma(const f32x16& a, const f32x16& b, const f32x16& c) {
  f32x16 r;
  const auto multiply_add = [](__m128 x, __m128 y, __m128 z) {
    return _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(x), _mm_cvtps_pd(y)), _mm_cvtps_pd(z));
  };
  const auto upper = [](__m128 x) { return _mm_movehl_ps(x, x); };
  const __m128i least_normal = _mm_set1_epi32(0x38100000);  // upper word of 2^-126
  __m128i is_doubtful = _mm_setzero_si128();
  for (int i = 0; i < 16; i += 4) {
    const __m128 x = _mm_loadu_ps(a.lane + i), y = _mm_loadu_ps(b.lane + i);
    const __m128 z = _mm_loadu_ps(c.lane + i);
    const __m128d sum = multiply_add(x, y, z), next = multiply_add(upper(x), upper(y), upper(z));
    _mm_storeu_ps(r.lane + i, _mm_movelh_ps(_mm_cvtpd_ps(sum), _mm_cvtpd_ps(next)));
    // The lower and upper words of the four sums.
    const __m128 s = _mm_castpd_ps(sum), t = _mm_castpd_ps(next);
    const __m128i low = _mm_castps_si128(_mm_shuffle_ps(s, t, _MM_SHUFFLE(2, 0, 2, 0)));
    const __m128i high =
        _mm_and_si128(_mm_castps_si128(_mm_shuffle_ps(s, t, _MM_SHUFFLE(3, 1, 3, 1))),
                      _mm_set1_epi32(0x7fffffff));
    // A double has 29 bits more than a float: a one and zeros in them are halfway.
    const __m128i is_halfway = _mm_cmpeq_epi32(_mm_slli_epi32(low, 3), _mm_set1_epi32(INT32_MIN));
    const __m128i is_small = _mm_and_si128(_mm_cmpgt_epi32(high, _mm_setzero_si128()),
                                           _mm_cmplt_epi32(high, least_normal));
    is_doubtful = _mm_or_si128(is_doubtful, _mm_or_si128(is_halfway, is_small));
  }
  if (_mm_movemask_epi8(is_doubtful) != 0) [[unlikely]]
    return fma_of_doubtful_sums(a, b, c);
  return r;
}
#else
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return map_lanes([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
#endif
inline void accumulate(f32x16& acc, f32x16 a, f32x16 b) { acc = fma(a, b, acc); }
// As maxps and minps: the second operand where the comparison is false, so also for NaN.
inline f32x16 max(f32x16 a, f32x16 b) {
  return map_lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline f32x16 min(f32x16 a, f32x16 b) {
  return map_lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// The larger magnitude, lane by lane; `most` is one. NaN is larger than infinity.
inline f32x16 max_magnitude(f32x16 most, f32x16 v) {
  return map_lanes([&](int i) {
    uint32_t a, b;
    __builtin_memcpy(&a, &most.lane[i], 4);
    __builtin_memcpy(&b, &v.lane[i], 4);
    b &= 0x7FFFFFFF;
    const uint32_t larger = a > b ? a : b;
    float value;
    __builtin_memcpy(&value, &larger, 4);
    return value;
  });
}
// Bit i: a's lane i is above b's; never for NaN.
inline uint32_t greater_mask(f32x16 a, f32x16 b) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(a.lane[i] > b.lane[i]) << i;
  return mask;
}
// The lanes' bits shifted left by 23, read as floats: turns a biased exponent into a power of two.
inline f32x16 shift_into_exponent(f32x16 v) {
  return map_lanes([&](int i) {
    uint32_t bits;
    __builtin_memcpy(&bits, &v.lane[i], 4);
    bits <<= 23;
    float r;
    __builtin_memcpy(&r, &bits, 4);
    return r;
  });
}
// The fixed tree of every sum: lanes i and i + 8, then i + 4, i + 2, i + 1.
inline float reduce_add(f32x16 v) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v.lane[i] = v.lane[i] + v.lane[i + half];
  return v.lane[0];
}
inline float reduce_max(f32x16 v) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      v.lane[i] = v.lane[i] > v.lane[i + half] ? v.lane[i] : v.lane[i + half];
  return v.lane[0];
}
// A panel's columns of one step of k from bfloat16 (float_formats.inl.h).
inline void widen_columns(const uint16_t* p, f32x16 (&column)[kTileVectors]) {
  column[0] = map_lanes([&](int i) {
    const uint32_t bits = static_cast<uint32_t>(p[i % 8 * 2 + i / 8]) << 16;
    float r;
    __builtin_memcpy(&r, &bits, 4);
    return r;
  });
}
inline float scalar_sqrt(float x) { return __builtin_sqrtf(x); }

// dst[c * dst_stride + r] = rows[r][c] for a 16 x 16 block.
inline void transpose_16x16(const float* const* rows, float* dst, int64_t dst_stride) {
  for (int c = 0; c < 16; ++c)
    for (int r = 0; r < 16; ++r) dst[c * dst_stride + r] = rows[r][c];
}

// Sixteen sums of int8.inl.h, or sixteen groups of four codes of a row; what multiplies them with
// weights is in dot_*.h.
struct i32x16 {
  int32_t lane[16];
};

inline i32x16 zero_sums() { return {}; }
// One group of four in every lane.
inline i32x16 broadcast_codes(const uint8_t* p) {
  i32x16 r;
  for (int i = 0; i < 16; ++i) __builtin_memcpy(&r.lane[i], p, 4);
  return r;
}
// Sixteen groups of four.
inline i32x16 load_codes(const uint8_t* p) {
  i32x16 r;
  __builtin_memcpy(r.lane, p, 64);
  return r;
}
inline int32_t reduce_add(i32x16 v) {
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += v.lane[i];
  return sum;
}
inline f32x16 to_float(i32x16 v) {
  return map_lanes([&](int i) { return static_cast<float>(v.lane[i]); });
}
// The low 16 bits of each lane's.
inline void store_words(uint16_t* p, f32x16 v) {
  uint32_t bits[16];
  uint16_t words[16];
  __builtin_memcpy(bits, v.lane, 64);
  for (int i = 0; i < 16; ++i) words[i] = static_cast<uint16_t>(bits[i]);
  __builtin_memcpy(p, words, 32);  // what lies there is read as floats elsewhere
}
// The same of both, a pair (even, odd) of words for each lane.
inline void store_word_pairs(uint16_t* p, f32x16 even, f32x16 odd) {
  uint16_t words[2][16];
  store_words(words[0], even);
  store_words(words[1], odd);
  uint16_t pairs[32];
  for (int i = 0; i < 16; ++i) pairs[2 * i] = words[0][i], pairs[2 * i + 1] = words[1][i];
  __builtin_memcpy(p, pairs, 64);
}
// Sixteen values in [0, 255] to the nearest integers, ties to even.
inline void store_codes(uint8_t* p, f32x16 v) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>((v.lane[i] + 12582912.0f) - 12582912.0f);
}
