// out = softmax(scale * q k^T) v as attention.inl.h computes it, with q, k, v and the weights
// exp(s - max) rounded to bfloat16 and multiplied in pairs; scores, maxima and sums stay float32.
//
//   q [seqlen_q, D]   k, v [seqlen_k, D]   out [seqlen_q, D]     D = head_dim
//
//   key panels    [ceil(seqlen_k / NR), ceil(D / 2), NR]   pairs along D, keys in lanes
//   value panels  [ceil(D / NR), ceil(seqlen_k / 2), NR]   pairs of keys, columns of v in lanes
//   S = q K^T  [MR, seqlen_k]     P = exp(scale S + bias - max), as bfloat16 in the first half of
//                                 S's rows
//   O = P V / sum                 the micro-kernel of bfloat16_dot.inl.h twice

// Sixteen keys at a time are rounded, then transposed as words of two values each.
inline void pair_keys(const AttentionParams& p, const float* k, float* panels) {
  const int64_t D = p.head_dim, num_words = (D + 1) / 2;
  constexpr int64_t kWords = kMaxHeadDim / 2;
  alignas(64) float rounded[16][kWords];
  for (int64_t first = 0; first < round_up(p.seqlen_k, kPanelColumns); first += 16) {
    const float* rows[16];
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t key = first + i;
      rows[i] = rounded[i];
      if (key < p.seqlen_k)
        round_row(k + (p.key_index ? p.key_index[key] : key) * p.k.row_stride, D,
                  reinterpret_cast<uint16_t*>(rounded[i]));
      else
        for (int64_t w = 0; w < kWords; w += 16) store(rounded[i] + w, zero());
    }
    float* out = panels + first / kPanelColumns * num_words * kPanelColumns + first % kPanelColumns;
    int64_t w = 0;
    for (; w + 16 <= num_words; w += 16) {
      transpose_16x16(rows, out + w * kPanelColumns, kPanelColumns);
      for (int64_t i = 0; i < 16; ++i) rows[i] += 16;
    }
    for (; w < num_words; ++w)
      for (int64_t i = 0; i < 16; ++i)
        __builtin_memcpy(out + w * kPanelColumns + i, rows[i]++, sizeof(float));
  }
}

inline void pair_values(const AttentionParams& p, const float* v, uint16_t* panels) {
  const int64_t num_pairs = (p.seqlen_k + 1) / 2;
  const auto row_of = [&](int64_t key) {
    return v + (p.key_index ? p.key_index[key] : key) * p.v.row_stride;
  };
  for (int64_t c = 0; c < p.head_dim; c += 16) {
    const int64_t left = p.head_dim - c;
    uint16_t* out =
        panels + c / kPanelColumns * num_pairs * 2 * kPanelColumns + c % kPanelColumns * 2;
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
      const int64_t odd = 2 * pair + 1;
      store_pairs(out + pair * 2 * kPanelColumns, load_upto(row_of(2 * pair) + c, left),
                  odd < p.seqlen_k ? load_upto(row_of(odd) + c, left) : zero());
    }
  }
  // The last panel's second half, where head_dim ends in its first.
  const int64_t filled = round_up(p.head_dim, 16);
  if (filled % kPanelColumns != 0) {
    uint16_t* out = panels + filled / kPanelColumns * num_pairs * 2 * kPanelColumns +
                    filled % kPanelColumns * 2;
    for (int64_t pair = 0; pair < num_pairs; ++pair)
      store_pairs(out + pair * 2 * kPanelColumns, zero(), zero());
  }
}

template <int kRows>
__attribute__((noinline)) void attention_bfloat16_tile(const AttentionParams& p,
                                                       const TileRange& range, const float* q,
                                                       const float* bias,
                                                       const uint16_t* key_panels,
                                                       const uint16_t* value_panels, float* scores,
                                                       int64_t lds, float* out) {
  constexpr int64_t kStride = kMaxHeadDim + 32;  // an odd number of cache lines
  alignas(64) uint16_t rounded[kRows * kStride];
  const int64_t num_words = (p.head_dim + 1) / 2;
  // Pairs of all keys, and of those that the tile reaches, which begin at a whole panel.
  const int64_t num_pairs = (p.seqlen_k + 1) / 2, num_reached = (range.num_keys + 1) / 2;
  const uint16_t* panels = key_panels + range.first_key * num_words * 2;
  for (int64_t i = 0; i < kRows; ++i)
    round_row(q + i * p.q.row_stride, p.head_dim, rounded + i * kStride);
  for (int64_t key = 0; key < range.num_keys; key += kPanelColumns) {
    f32x16 acc[kRows][kTileVectors];
    clear(acc);
    multiply_pairs(rounded, kStride, panels + key * num_words * 2, num_words, acc);
    store_scores(p.scale, bias ? bias + key : nullptr, acc, scores + key, lds);
  }

  float inverse_sum[kRows];
  softmax_reached<kRows>(p, range, scores, lds, inverse_sum);
  // Each row into its own first half: sixteen are read before they are written over.
  for (int64_t i = 0; i < kRows; ++i)
    round_row(scores + i * lds, round_up(range.num_keys, 16),
              reinterpret_cast<uint16_t*>(scores + i * lds));

  for (int64_t c = 0; c < p.head_dim; c += kPanelColumns) {
    f32x16 acc[kRows][kTileVectors];
    clear(acc);
    multiply_pairs(reinterpret_cast<const uint16_t*>(scores), 2 * lds,
                   value_panels + c * num_pairs * 2 + range.first_key * kPanelColumns, num_reached,
                   acc);
    store_context<kRows>(p, c, acc, inverse_sum, out);
  }
}

void attention_bfloat16(const AttentionParams& p) {
  const int64_t lds = padded_stride(round_up(p.seqlen_k, kPanelColumns));
  float* key_panels = p.scratch;
  float* scores = key_panels + p.head_dim * round_up(p.seqlen_k, kPanelColumns);
  uint16_t* value_panels = reinterpret_cast<uint16_t*>(scores + kTileRows * lds);
  over_heads_and_tiles(
      p,
      [&](int64_t head) {
        pair_keys(p, p.k.data + head * p.k.head_stride, key_panels);
        pair_values(p, p.v.data + head * p.v.head_stride, value_panels);
      },
      [&](auto height, const TileRange& range, const float* q, const float* bias, float* out) {
        attention_bfloat16_tile<height.value>(p, range, q, bias,
                                              reinterpret_cast<const uint16_t*>(key_panels),
                                              value_panels, scores, lds, out);
      });
}
