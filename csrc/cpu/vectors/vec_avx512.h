// f32x16 as one 512-bit register (AVX-512 F, VL, BW, DQ).

// 12 x 32: 24 accumulators, two weight vectors and a broadcast leave five registers spare. Per
// step of k 14 loads stand against 24 fused multiply-adds, so the loads never bind.
constexpr int kTileRows = 12;
constexpr int kTileVectors = 2;
// Vectors that go in step through a chain of dependent operations (math.inl.h): 8 x 3 registers,
// and 8 multiply-adds of 4 cycles keep two units busy.
constexpr int kMapVectors = 8;

struct f32x16 {
  __m512 v;
};

inline f32x16 zero() { return {_mm512_setzero_ps()}; }
inline f32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }

// n in [0, 16]; larger values keep every lane.
inline __mmask16 first_mask(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1u << (n < 0 ? 0 : n)) - 1u);
}
inline f32x16 load_first(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first_mask(n), p)};
}
inline void store(float* p, f32x16 v) { _mm512_storeu_ps(p, v.v); }
inline void store_first(float* p, f32x16 v, int64_t n) {
  _mm512_mask_storeu_ps(p, first_mask(n), v.v);
}
inline f32x16 keep_first(f32x16 v, int64_t n, float fill) {
  return {_mm512_mask_blend_ps(first_mask(n), _mm512_set1_ps(fill), v.v)};
}
inline f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// acc += a b in place. As an intrinsic GCC 12 renames the accumulators of a 12 x 32 tile and spills
// some in the inner loop.
inline void accumulate(f32x16& acc, f32x16 a, f32x16 b) {
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
}
inline f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline f32x16 max_magnitude(f32x16 most, f32x16 v) {
  const __m512i magnitude =
      _mm512_and_si512(_mm512_castps_si512(v.v), _mm512_set1_epi32(0x7FFFFFFF));
  return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(most.v), magnitude))};
}
inline uint32_t greater_mask(f32x16 a, f32x16 b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
}
inline f32x16 shift_into_exponent(f32x16 v) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v.v), 23))};
}
inline float reduce_add(f32x16 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(f32x16 v) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v.v), _mm512_extractf32x8_ps(v.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
// A panel's columns of one step of k from bfloat16 (float_formats.inl.h).
inline void widen_columns(const uint16_t* p, f32x16 (&column)[kTileVectors]) {
  const __m512i pairs = _mm512_loadu_si512(p);
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
  column[0] = {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))};
  column[1] = {_mm512_castsi512_ps(_mm512_and_si512(pairs, odd))};
}
inline float scalar_sqrt(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// Four rounds of pairwise exchange: 32-bit, 64-bit, then 128-bit quarters twice.
inline void transpose_16x16(const float* const* rows, float* dst, int64_t dst_stride) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(rows[i]);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  // r[4 g + c] holds columns c, 4 + c, 8 + c, 12 + c (one per quarter) of rows 4 g .. 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 even_lo = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);       // columns c, 8 + c
    const __m512 even_hi = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
    const __m512 odd_lo = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xDD);  // columns 4 + c, 12 + c
    const __m512 odd_hi = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xDD);
    _mm512_storeu_ps(dst + c * dst_stride, _mm512_shuffle_f32x4(even_lo, even_hi, 0x88));
    _mm512_storeu_ps(dst + (8 + c) * dst_stride, _mm512_shuffle_f32x4(even_lo, even_hi, 0xDD));
    _mm512_storeu_ps(dst + (4 + c) * dst_stride, _mm512_shuffle_f32x4(odd_lo, odd_hi, 0x88));
    _mm512_storeu_ps(dst + (12 + c) * dst_stride, _mm512_shuffle_f32x4(odd_lo, odd_hi, 0xDD));
  }
}

// Sixteen sums of int8.inl.h, or sixteen groups of four codes of a row; what multiplies them with
// weights is in dot_*.h.
struct i32x16 {
  __m512i v;
};

inline i32x16 zero_sums() { return {_mm512_setzero_si512()}; }
// One group of four in every lane.
inline i32x16 broadcast_codes(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}
inline i32x16 load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline int32_t reduce_add(i32x16 v) {
  const __m256i eight =
      _mm256_add_epi32(_mm512_castsi512_si256(v.v), _mm512_extracti64x4_epi64(v.v, 1));
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}
inline f32x16 to_float(i32x16 v) { return {_mm512_cvtepi32_ps(v.v)}; }
// The low 16 bits of each lane's.
inline void store_words(uint16_t* p, f32x16 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_castps_si512(v.v)));
}
// The same of both, a pair (even, odd) of words for each lane.
inline void store_word_pairs(uint16_t* p, f32x16 even, f32x16 odd) {
  const __m512i high = _mm512_slli_epi32(_mm512_castps_si512(odd.v), 16);
  _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_castps_si512(even.v), high));
}
// Sixteen values in [0, 255] to the nearest integers, ties to even.
inline void store_codes(uint8_t* p, f32x16 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.v)));
}
