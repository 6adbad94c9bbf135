// f32x16 as two 256-bit registers (AVX2 and FMA). Lane i of the pair is lane i of the scalar form,
// so that every sum has the same order and every result the same bits.

// 6 x 16: twelve accumulators, two weight vectors and a broadcast fill 15 of the 16 registers.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 1;
// Vectors that go in step through a chain of dependent operations (math.inl.h): 2 x 3 x 2
// registers.
constexpr int kMapVectors = 2;

struct f32x16 {
  __m256 lo, hi;
};

inline f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline f32x16 broadcast(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

// All ones in the first n of eight lanes (n may be negative or above 8).
inline __m256i first_mask(int64_t n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
}
inline f32x16 load_first(const float* p, int64_t n) {
  const __m256 lo = _mm256_maskload_ps(p, first_mask(n));
  const __m256 hi = n > 8 ? _mm256_maskload_ps(p + 8, first_mask(n - 8)) : _mm256_setzero_ps();
  return {lo, hi};
}
inline void store(float* p, f32x16 v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline void store_first(float* p, f32x16 v, int64_t n) {
  _mm256_maskstore_ps(p, first_mask(n), v.lo);
  if (n > 8) _mm256_maskstore_ps(p + 8, first_mask(n - 8), v.hi);
}
inline f32x16 keep_first(f32x16 v, int64_t n, float fill) {
  const __m256 f = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(f, v.lo, _mm256_castsi256_ps(first_mask(n))),
          _mm256_blendv_ps(f, v.hi, _mm256_castsi256_ps(first_mask(n - 8)))};
}
inline f32x16 add(f32x16 a, f32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline f32x16 sub(f32x16 a, f32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline f32x16 mul(f32x16 a, f32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline f32x16 div(f32x16 a, f32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
// acc += a b in place. As an intrinsic GCC 12 renames the accumulators of a 6 x 16 tile, hoists
// broadcasts over them and spills four in the inner loop.
inline void accumulate(f32x16& acc, f32x16 a, f32x16 b) {
  __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(acc.lo) : "x"(a.lo), "x"(b.lo));
  __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(acc.hi) : "x"(a.hi), "x"(b.hi));
}
inline f32x16 max(f32x16 a, f32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline f32x16 min(f32x16 a, f32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline f32x16 max_magnitude(f32x16 most, f32x16 v) {
  const auto larger = [](__m256 a, __m256 b) {
    const __m256i magnitude =
        _mm256_and_si256(_mm256_castps_si256(b), _mm256_set1_epi32(0x7FFFFFFF));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), magnitude));
  };
  return {larger(most.lo, v.lo), larger(most.hi, v.hi)};
}
inline uint32_t greater_mask(f32x16 a, f32x16 b) {
  const int lo = _mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ));
  const int hi = _mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ));
  return static_cast<uint32_t>(lo | hi << 8);
}
inline f32x16 shift_into_exponent(f32x16 v) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v.lo), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v.hi), 23))};
}
inline float reduce_add(f32x16 v) {
  const __m256 eight = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(f32x16 v) {
  const __m256 eight = _mm256_max_ps(v.lo, v.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
// A panel's columns of one step of k from bfloat16 (float_formats.inl.h). The mask stays in memory:
// it would be the seventeenth register of a 6 x 16 tile.
alignas(32) constexpr uint32_t kOddHalves[8] = {0xFFFF0000, 0xFFFF0000, 0xFFFF0000, 0xFFFF0000,
                                                0xFFFF0000, 0xFFFF0000, 0xFFFF0000, 0xFFFF0000};
inline void widen_columns(const uint16_t* p, f32x16 (&column)[kTileVectors]) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  __m256i odd;
  __asm__("vpand %2, %1, %0"
          : "=x"(odd)
          : "x"(pairs), "m"(*reinterpret_cast<const __m256i*>(kOddHalves)));
  column[0] = {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_castsi256_ps(odd)};
}
inline float scalar_sqrt(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

inline void transpose_8x8(const float* const* rows, int64_t column, float* dst,
                          int64_t dst_stride) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(rows[i] + column);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + i * dst_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(dst + (i + 4) * dst_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
inline void transpose_16x16(const float* const* rows, float* dst, int64_t dst_stride) {
  for (int half = 0; half < 16; half += 8) {
    transpose_8x8(rows + half, 0, dst + half, dst_stride);
    transpose_8x8(rows + half, 8, dst + half + 8 * dst_stride, dst_stride);
  }
}

// Sixteen sums of int8.inl.h, or sixteen groups of four codes of a row; what multiplies them with
// weights is in dot_*.h.
struct i32x16 {
  __m256i lo, hi;
};

inline i32x16 zero_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
// One group of four in every lane.
inline i32x16 broadcast_codes(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  const __m256i v = _mm256_set1_epi32(four);
  return {v, v};
}
inline i32x16 load_codes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline int32_t reduce_add(i32x16 v) {
  const __m256i eight = _mm256_add_epi32(v.lo, v.hi);
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}
inline f32x16 to_float(i32x16 v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
// The low 16 bits of each lane's.
inline void store_words(uint16_t* p, f32x16 v) {
  const __m256i low = _mm256_set1_epi32(0xFFFF);
  const __m256i words = _mm256_packus_epi32(_mm256_and_si256(_mm256_castps_si256(v.lo), low),
                                            _mm256_and_si256(_mm256_castps_si256(v.hi), low));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(words, 0xD8));
}
// The same of both, a pair (even, odd) of words for each lane.
inline void store_word_pairs(uint16_t* p, f32x16 even, f32x16 odd) {
  const __m256i lo = _mm256_slli_epi32(_mm256_castps_si256(odd.lo), 16);
  const __m256i hi = _mm256_slli_epi32(_mm256_castps_si256(odd.hi), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_blend_epi16(_mm256_castps_si256(even.lo), lo, 0xAA));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 16),
                      _mm256_blend_epi16(_mm256_castps_si256(even.hi), hi, 0xAA));
}
// Sixteen values in [0, 255] to the nearest integers, ties to even.
inline void store_codes(uint8_t* p, f32x16 v) {
  const __m256i halves = _mm256_packs_epi32(_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi));
  const __m256i bytes = _mm256_packus_epi16(halves, halves);  // 0-3 8-11 twice, 4-7 12-15 twice
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
}
