// out = softmax(scale * q k^T) v as attention.inl.h computes it, with q, k, v and the weights
// exp(s - max) rounded to bfloat16 and multiplied in pairs; scores, maxima and sums stay float32.
//
//   q [seqlen_q, D]   k, v [seqlen_k, D]   out [seqlen_q, D]     D = head_dim
//
//   panels of keys and values: attention_pairs.inl.h
//   S = q K^T  [MR, seqlen_k]     P = exp(scale S + bias - max), as bfloat16 in the first half of
//                                 S's rows
//   O = P V / sum                 the micro-kernel of bfloat16_dot.inl.h twice

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
  uint16_t* key_panels = reinterpret_cast<uint16_t*>(p.scratch);
  float* scores = p.scratch + p.head_dim * round_up(p.seqlen_k, kPanelColumns);
  uint16_t* value_panels = reinterpret_cast<uint16_t*>(scores + kTileRows * lds);
  over_heads_and_tiles(
      p,
      [&](int64_t head) {
        pair_keys(p, p.k.data + head * p.k.head_stride, key_panels,
                  [&](const float* row, uint16_t* words) { round_row(row, p.head_dim, words); });
        pair_values(p, p.v.data + head * p.v.head_stride, value_panels,
                    [](int64_t, f32x16 even, f32x16 odd, uint16_t* words) {
                      store_pairs(words, even, odd);
                    });
      },
      [&](auto height, const TileRange& range, const float* q, const float* bias, float* out) {
        attention_bfloat16_tile<height.value>(p, range, q, bias, key_panels, value_panels, scores,
                                              lds, out);
      });
}
