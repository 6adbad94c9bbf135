// Keys and values of a head in pairs of 16-bit values, as the attention kernels of 16 bits multiply
// them (attention_bfloat16.inl.h, attention_int16.inl.h).
//
//   key panels    [ceil(seqlen_k / NR), ceil(D / 2), NR]   pairs along D, keys in lanes
//   value panels  [ceil(D / NR), ceil(seqlen_k / 2), NR]   pairs of keys, columns of v in lanes

// round(row, words) writes the words of a key's row, zeros behind them up to the next 16. Sixteen keys at
// a time are rounded, then transposed as pairs of words.
template <typename Round>
inline void pair_keys(const AttentionParams& p, const float* k, uint16_t* panels, Round round) {
  const int64_t D = p.head_dim, num_words = (D + 1) / 2;
  constexpr int64_t kWords = kMaxHeadDim / 2;
  alignas(64) float rounded[16][kWords];
  for (int64_t first = 0; first < round_up(p.seqlen_k, kPanelColumns); first += 16) {
    const float* rows[16];
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t key = first + i;
      rows[i] = rounded[i];
      if (key < p.seqlen_k)
        round(k + (p.key_index ? p.key_index[key] : key) * p.k.row_stride,
              reinterpret_cast<uint16_t*>(rounded[i]));
      else
        for (int64_t w = 0; w < num_words; w += 16) store(rounded[i] + w, zero());
    }
    float* out = reinterpret_cast<float*>(panels) +
                 first / kPanelColumns * num_words * kPanelColumns + first % kPanelColumns;
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

// store_pair(column, even, odd, words) writes sixteen columns from `column` on of two keys' values.
template <typename StorePair>
inline void pair_values(const AttentionParams& p, const float* v, uint16_t* panels,
                        StorePair store_pair) {
  const int64_t num_pairs = (p.seqlen_k + 1) / 2;
  const auto row_of = [&](int64_t key) {
    return v + (p.key_index ? p.key_index[key] : key) * p.v.row_stride;
  };
  // The last panel's second half is there where head_dim ends in its first.
  for (int64_t c = 0; c < round_up(p.head_dim, kPanelColumns); c += 16) {
    const int64_t left = p.head_dim - c;
    uint16_t* out =
        panels + c / kPanelColumns * num_pairs * 2 * kPanelColumns + c % kPanelColumns * 2;
    int64_t pair = 0;
    if (left >= 16 && p.key_index == nullptr)  // most heads: nothing to ask for each row
      for (; 2 * pair + 1 < p.seqlen_k; ++pair) {
        const float* even = v + 2 * pair * p.v.row_stride + c;
        store_pair(c, load(even), load(even + p.v.row_stride), out + pair * 2 * kPanelColumns);
      }
    for (; pair < num_pairs; ++pair) {
      const int64_t odd = 2 * pair + 1;
      store_pair(c, left > 0 ? load_upto(row_of(2 * pair) + c, left) : zero(),
                 left > 0 && odd < p.seqlen_k ? load_upto(row_of(odd) + c, left) : zero(),
                 out + pair * 2 * kPanelColumns);
    }
  }
}
