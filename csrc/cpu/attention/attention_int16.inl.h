// out = softmax(scale * q k^T) v as attention.inl.h computes it, by integers of 16 bits: the attention
// of models with weights in int8. Their sums are exact and the float32 arithmetic around them is the
// same on every instruction set, and so are the bits.
//
//   code = round(x / s)     of q and k: s one for the sentence and a head of k with all heads of q that
//                           read it, |code| <= 8190 for D = 32
//                           of v: s one for each column of it, |code| <= 1023
//   S = scale s_q s_k (codes of q) (codes of k)^T + bias     [MR, seqlen_k], in units of ln 2
//   P = round(32767 2^(S - max))                             in the first half of S's rows
//   O = s_v (P (codes of v)) / sum P                         [MR, D]
//
// A scale belongs to a sentence, so the batch changes no bit; a value of q or k that is no number reaches
// all that share its scale. The weights have more bits than the values: much of BERT's attention is one large weight
// on [SEP], whose values are small, and hundreds of small weights. Those below a 65,534th of the largest
// count as nothing, which is at most 3 % of the sum for kMostKeys keys; with more, float32 is used.

constexpr float kLargestValue = 1023.0f, kLargestWeight = 32767.0f;
constexpr int64_t kMostKeys = 2048;
// P V is turned into float32 after so many keys, counted from the sentence's first one: a window then
// changes no sum.
constexpr int64_t kKeysPerSum = 64;
static_assert(int64_t{32767} * 1023 * kKeysPerSum <= INT32_MAX);
static_assert(kKeysPerSum % kMaxPanelColumns == 0);

// Added to a value below 2^22 in size it rounds to an integer, to nearest even, and leaves the
// integer's low 16 bits in the float's.
constexpr float kRoundToWord = 12582912.0f;  // 1.5 * 2^23
constexpr float kLog2E = 1.44269504f;

struct WordStep {
  using Value = uint16_t;
  using Weight = uint16_t;
  using Factor = i32x16;
  using Column = weights64;
  using Sum = i32x16;
  static constexpr int kInputs = 2;

  template <int kVectors>
  MINIFUSE_INLINE static void load_columns(const uint16_t* b, weights64 (&column)[kVectors]) {
    unrolled<kVectors>([&](auto j) MINIFUSE_INLINE {
      column[j.value] = load_weights(reinterpret_cast<const int8_t*>(b + 32 * j.value));
    });
  }
  MINIFUSE_INLINE static i32x16 factor(const uint16_t* x) {
    return broadcast_codes(reinterpret_cast<const uint8_t*>(x));
  }
  MINIFUSE_INLINE static void add(i32x16& acc, const i32x16& x, const weights64& column) {
    dot_words(acc, x, column);
  }
};

// acc = a [kRows, 2 num_pairs] b, rows of a lda words apart, b a panel or its first vectors.
template <int kRows, int kVectors>
MINIFUSE_INLINE inline void multiply_words(const uint16_t* a, int64_t lda, const uint16_t* b,
                                           int64_t num_pairs, i32x16 (&acc)[kRows][kVectors]) {
  over_tile<kRows, kVectors>([&](auto i, auto j)
                                 MINIFUSE_INLINE { acc[i.value][j.value] = zero_sums(); });
  Ahead none;
  multiply_steps<WordStep, 0>(a, lda, b, 2 * kPanelColumns, num_pairs, acc, none);
}

inline f32x16 to_word(f32x16 v, f32x16 inverse) { return fma(v, inverse, broadcast(kRoundToWord)); }

// The largest magnitudes of rows of `width` floats, sixteen columns on top of each other.
inline f32x16 largest_of_rows(const float* x, int64_t stride, int64_t num_rows, int64_t width) {
  f32x16 largest = zero();
  int64_t c = 0;
  for (; c + 16 <= width; c += 16)
    for (int64_t row = 0; row < num_rows; ++row)
      largest = max_magnitude(largest, load(x + row * stride + c));
  for (int64_t row = 0; c < width && row < num_rows; ++row)
    largest = max_magnitude(largest, load_first(x + row * stride + c, width - c));
  return largest;
}

// The same of a sentence's keys or values.
inline f32x16 largest_of_keys(const AttentionParams& p, const float* x, int64_t stride,
                              int64_t width) {
  if (p.key_index == nullptr) return largest_of_rows(x, stride, p.seqlen_k, width);
  f32x16 largest = zero();
  for (int64_t key = 0; key < p.seqlen_k; ++key)
    largest =
        max_magnitude(largest, largest_of_rows(x + p.key_index[key] * stride, stride, 1, width));
  return largest;
}

// Codes are value * inverse, rounded; values come back as code * scale. Both are NaN where a value is
// NaN or infinite. Well before the inverse would overflow, it stays.
struct WordScale {
  float inverse, scale;

  WordScale(f32x16 magnitudes, float largest_code) {
    const float poison = reduce_add(mul(magnitudes, zero()));
    const float largest = reduce_max(max(broadcast(1e-30f), magnitudes)) + poison;
    inverse = largest_code / largest;
    scale = largest / largest_code;
  }
};

// The sum of D products of two codes fits 32 bits.
inline float largest_code(int64_t head_dim) {
  const float most = scalar_sqrt(2147483648.0f / static_cast<float>(head_dim)) - 1.0f;
  return most < 32767.0f ? static_cast<float>(static_cast<int32_t>(most)) : 32767.0f;
}

inline void round_words(const float* x, int64_t width, f32x16 inverse, uint16_t* words) {
  for (int64_t c = 0; c < width; c += 16)
    store_words(words + c, to_word(load_upto(x + c, width - c), inverse));
}

// Values as pairs of words, and the scale of each column, up to the end of the last panel.
inline void round_values(const AttentionParams& p, const float* v, uint16_t* panels,
                         float* scales) {
  alignas(64) float inverse[kMaxHeadDim];
  for (int64_t c = 0; c < round_up(p.head_dim, kPanelColumns); c += 16) {
    const int64_t left = p.head_dim - c;
    f32x16 largest = zero();
    if (left > 0) largest = largest_of_keys(p, v + c, p.v.row_stride, left < 16 ? left : 16);
    // An infinite one has the inverse 0: an infinite scale meets sums of 0, which gives NaN.
    largest = max(broadcast(1e-30f), largest);
    store(inverse + c, div(broadcast(kLargestValue), largest));
    store(scales + c, mul(largest, broadcast(1.0f / kLargestValue)));
  }
  pair_values(p, v, panels, [&](int64_t c, f32x16 even, f32x16 odd, uint16_t* words) {
    const f32x16 of_columns = load(inverse + c);
    store_word_pairs(words, to_word(even, of_columns), to_word(odd, of_columns));
  });
}

// 2^x for x <= 0 as a weight in [0, 32767], relative error 8e-5, before it is rounded. NaN stays NaN.
// x = n + f, |f| <= 1/2, and 2^f by a polynomial.
inline f32x16 vec_weight(f32x16 x) {
  constexpr float kMagic = 12582912.0f + 127.0f;  // as in vec_exp
  x = max(broadcast(-126.0f), x);
  const f32x16 shifted = add(x, broadcast(kMagic));
  const f32x16 f = sub(x, sub(shifted, broadcast(kMagic)));
  f32x16 p = broadcast(0.05517167f * kLargestWeight);
  p = fma(p, f, broadcast(0.24261112f * kLargestWeight));
  p = fma(p, f, broadcast(0.69326099f * kLargestWeight));
  p = fma(p, f, broadcast(0.99992807f * kLargestWeight));
  return mul(p, shift_into_exponent(shifted));
}

// Scores of kRows rows -> their weights as words in each row's first half, zeros past the last key up
// to the next 16; inverse_sum[r] = 1 / sum of row r. Sixteen scores are read before they are written over.
template <int kRows>
inline void softmax_words(float* scores, int64_t lds, int64_t seqlen_k,
                          float (&inverse_sum)[kRows]) {
  float highest[kRows];
  highest_of_rows<kRows>(scores, lds, seqlen_k, highest);
  const f32x16 round = broadcast(kRoundToWord);
  for (int i = 0; i < kRows; ++i) {
    const float* row = scores + i * lds;
    uint16_t* words = reinterpret_cast<uint16_t*>(scores + i * lds);
    const f32x16 h = broadcast(highest[i]);
    f32x16 sum = zero();
    for (int64_t j = 0; j < seqlen_k; j += 16) {
      const int64_t left = seqlen_k - j;
      f32x16 weight = add(vec_weight(sub(load(row + j), h)), round);
      if (left < 16) weight = keep_first(weight, left, kRoundToWord);
      store_words(words + j, weight);
      sum =
          add(sum, sub(weight, round));  // of the rounded ones: equal values have their own average
    }
    inverse_sum[i] = 1.0f / reduce_add(sum);
  }
}

// A head in words.
struct WordHead {
  const uint16_t* keys;
  const uint16_t* values;
  const float* value_scales;
  float query_inverse;  // of the queries' scale
  float factor;  // of a sum of products of codes: the score in units of ln 2
};

// O = P V for NR columns from c on, with the weights of the tile's keys in `weights`.
template <int kRows>
MINIFUSE_INLINE inline void weigh_values(const AttentionParams& p, const TileRange& range,
                                         const WordHead& head, int64_t c, const uint16_t* weights,
                                         int64_t ld, f32x16 (&sum)[kRows][kTileVectors]) {
  const uint16_t* panel =
      head.values + c * ((p.seqlen_k + 1) / 2) * 2 + range.first_key * kPanelColumns;
  const auto end_of_sum = [&](int64_t end) { return end < range.num_keys ? end : range.num_keys; };
  int64_t begin = 0, end = end_of_sum(kKeysPerSum - range.first_key % kKeysPerSum);
  i32x16 acc[kRows][kTileVectors];
  multiply_words(weights, ld, panel, (end + 1) / 2, acc);
  over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    sum[i.value][j.value] = to_float(acc[i.value][j.value]);
  });
  for (begin = end; begin < range.num_keys; begin = end) {
    end = end_of_sum(begin + kKeysPerSum);
    multiply_words(weights + begin, ld, panel + begin * kPanelColumns, (end - begin + 1) / 2, acc);
    over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
      sum[i.value][j.value] = add(sum[i.value][j.value], to_float(acc[i.value][j.value]));
    });
  }
}

// S of a tile for 16 * kVectors keys. Where GCC 12 inlines it, the accumulators lie in memory.
template <int kRows, int kVectors, int64_t kStride>
__attribute__((noinline)) void score_words(const uint16_t* q, const uint16_t* keys,
                                           int64_t num_pairs, float factor, const float* bias,
                                           float* scores, int64_t lds) {
  i32x16 acc[kRows][kVectors];
  multiply_words(q, kStride, keys, num_pairs, acc);
  over_tile<kRows, kVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    store(scores + i.value * lds + 16 * j.value,
          mul(to_float(acc[i.value][j.value]), broadcast(factor)));
  });
  if (bias == nullptr) return;
  over_tile<kRows, kVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    float* score = scores + i.value * lds + 16 * j.value;
    store(score, fma(load(bias + 16 * j.value - i.value), broadcast(kLog2E), load(score)));
  });
}

template <int kRows>
__attribute__((noinline)) void attention_int16_tile(const AttentionParams& p,
                                                    const TileRange& range, const float* q,
                                                    const float* bias, const WordHead& head,
                                                    float* scores, int64_t lds, float* out) {
  constexpr int64_t kStride = kMaxHeadDim + 32;  // an odd number of cache lines
  alignas(64) uint16_t rounded[kRows * kStride];
  for (int64_t i = 0; i < kRows; ++i)
    round_words(q + i * p.q.row_stride, p.head_dim, broadcast(head.query_inverse),
                rounded + i * kStride);

  const int64_t num_pairs = (p.head_dim + 1) / 2;
  const auto score = [&](auto vectors, int64_t key) {
    score_words<kRows, vectors.value, kStride>(
        rounded, head.keys + (range.first_key + key) * num_pairs * 2, num_pairs, head.factor,
        bias ? bias + key : nullptr, scores + key, lds);
  };
  int64_t key = 0;
  for (; key + kPanelColumns - 16 < range.num_keys; key += kPanelColumns)
    score(Int<kTileVectors>{}, key);
  if (key < range.num_keys) score(Int<1>{}, key);  // at most 16 keys in the last panel
  const bool is_limited = p.keys_before < kAllKeys || p.keys_after < kAllKeys;
  if (is_limited) fill_unreached<kRows>(p, range, scores, lds, -3.402823466e+38f);
  float inverse_sum[kRows];
  softmax_words<kRows>(scores, lds, range.num_keys, inverse_sum);

  for (int64_t c = 0; c < p.head_dim; c += kPanelColumns) {
    f32x16 sum[kRows][kTileVectors];
    weigh_values<kRows>(p, range, head, c, reinterpret_cast<const uint16_t*>(scores), 2 * lds, sum);
    over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
      sum[i.value][j.value] = mul(mul(sum[i.value][j.value], broadcast(inverse_sum[i.value])),
                                  load(head.value_scales + c + 16 * j.value));
    });
    store_columns<kRows>(p, c, sum, out);
  }
}

void attention_int16(const AttentionParams& p) {
  const bool is_long = p.seqlen_k > kMostKeys && p.keys_before + p.keys_after >= kMostKeys;
  if (is_long) return attention(p);
  const int64_t lds = padded_stride(round_up(p.seqlen_k, kPanelColumns));
  uint16_t* key_panels = reinterpret_cast<uint16_t*>(p.scratch);
  float* scores = p.scratch + p.head_dim * round_up(p.seqlen_k, kPanelColumns);
  uint16_t* value_panels = reinterpret_cast<uint16_t*>(scores + kTileRows * lds);
  alignas(64) float value_scales[kMaxHeadDim];
  WordHead words = {key_panels, value_panels, value_scales, 0.0f, 0.0f};
  const float most = largest_code(p.head_dim);
  over_heads_and_tiles(
      p,
      [&](int64_t head) {
        // All queries that read these keys count, whichever of them this call computes.
        f32x16 largest = zero();
        for (int64_t h = head * p.queries_per_key; h < (head + 1) * p.queries_per_key; ++h)
          largest = max_magnitude(largest, largest_of_rows(p.q.data + h * p.q.head_stride,
                                                           p.q.row_stride, p.seqlen_q, p.head_dim));
        const WordScale of_queries(largest, most);
        const float* k = p.k.data + head * p.k.head_stride;
        const WordScale of_keys(largest_of_keys(p, k, p.k.row_stride, p.head_dim), most);
        words.query_inverse = of_queries.inverse;
        words.factor = of_queries.scale * of_keys.scale * (p.scale * kLog2E);
        if (words.factor > 3.402823466e+38f) words.factor = 3.402823466e+38f;  // 0 times it is 0
        pair_keys(p, k, key_panels, [&](const float* row, uint16_t* to) {
          round_words(row, p.head_dim, broadcast(of_keys.inverse), to);
        });
        round_values(p, p.v.data + head * p.v.head_stride, value_panels, value_scales);
      },
      [&](auto height, const TileRange& range, const float* q, const float* bias, float* out) {
        attention_int16_tile<height.value>(p, range, q, bias, words, scores, lds, out);
      });
}
