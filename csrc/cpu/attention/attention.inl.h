// out = softmax(scale * q k^T) v, one sentence, head by head, the whole row of scores at once.
//
//   q [seqlen_q, D]   k, v [seqlen_k, D]   out [seqlen_q, D]     D = head_dim, strides in the params
//
//   K^T is transposed into panels [ceil(seqlen_k / NR), D, NR]: keys in lanes.
//   For each tile of MR queries:
//     S = q K^T      [MR, seqlen_k]   the micro-kernel with K = D
//     P = exp(scale S + bias - max)   per row, the sum kept aside; most models have no bias
//     O = P V / sum  [MR, D]          the same micro-kernel with K = seqlen_k, V's rows as they lie
//
// No online softmax: a sentence has at most a few hundred tokens, so a row of scores stays in L1
// (12 rows of 256 are 12 KiB) and is rescaled never. The order of the keys is the only order of
// summation, so the tile's height changes no bit. No key is masked; a mask has become key_index, and
// of a window those panels of keys are taken that a tile's queries reach.

// K rows `keys` at a time into columns of the panels; rows past seqlen_k read as zeros.
inline void transpose_keys(const AttentionParams& p, const float* k, float* panels) {
  const int64_t D = p.head_dim;
  alignas(64) const float zeros[kMaxHeadDim] = {};
  for (int64_t first = 0; first < p.seqlen_k; first += 16) {
    const float* rows[16];
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t key = first + i;
      rows[i] =
          key < p.seqlen_k ? k + (p.key_index ? p.key_index[key] : key) * p.k.row_stride : zeros;
    }
    float* out = panels + first / kPanelColumns * D * kPanelColumns + first % kPanelColumns;
    int64_t c = 0;
    for (; c + 16 <= D; c += 16) {
      transpose_16x16(rows, out + c * kPanelColumns, kPanelColumns);
      for (int64_t i = 0; i < 16; ++i) rows[i] += 16;
    }
    for (; c < D; ++c)
      for (int64_t i = 0; i < 16; ++i) out[c * kPanelColumns + i] = *rows[i]++;
  }
  // The panel's second half, where the keys end in its first.
  const int64_t filled = round_up(p.seqlen_k, 16);
  if (filled % kPanelColumns != 0) {
    float* out = panels + filled / kPanelColumns * D * kPanelColumns + filled % kPanelColumns;
    for (int64_t c = 0; c < D; ++c) store(out + c * kPanelColumns, zero());
  }
}

// V rows that are not used as they lie: panels [ceil(D / NR), seqlen_k, NR], zeros past D.
inline void pack_values(const AttentionParams& p, const float* v, float* panels) {
  for (int64_t c = 0; c < p.head_dim; c += kPanelColumns) {
    float* out = panels + c * p.seqlen_k;
    for (int64_t key = 0; key < p.seqlen_k; ++key) {
      const float* row = v + (p.key_index ? p.key_index[key] : key) * p.v.row_stride + c;
      for (int64_t j = 0; j < kPanelColumns; j += 16) {
        const int64_t left = p.head_dim - c - j;
        store(out + key * kPanelColumns + j, left >= 16 ? load(row + j)
                                             : left > 0 ? load_first(row + j, left)
                                                        : zero());
      }
    }
  }
}

// The maxima of kRows rows, together: one row alone is a chain of dependent operations.
template <int kRows>
inline void highest_of_rows(const float* scores, int64_t lds, int64_t seqlen_k,
                            float (&highest)[kRows]) {
  const int64_t whole = seqlen_k / 16 * 16, tail = seqlen_k - whole;
  constexpr float kLowest = -3.402823466e+38f;
  f32x16 top[kRows];
  unrolled<kRows>([&](auto i) MINIFUSE_INLINE { top[i.value] = broadcast(kLowest); });
  for (int64_t j = 0; j < whole; j += 16)
    unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
      top[i.value] = max(load(scores + i.value * lds + j), top[i.value]);
    });
  if (tail)
    unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
      top[i.value] =
          max(keep_first(load(scores + i.value * lds + whole), tail, kLowest), top[i.value]);
    });
  unrolled<kRows>([&](auto i) MINIFUSE_INLINE { highest[i.value] = reduce_max(top[i.value]); });
}

// Scores of kRows rows -> exp(s - max), zeros past the last key; inverse_sum[r] = 1 / sum of row r.
template <int kRows>
inline void softmax_rows(float* scores, int64_t lds, int64_t seqlen_k,
                         float (&inverse_sum)[kRows]) {
  const int64_t whole = seqlen_k / 16 * 16, tail = seqlen_k - whole;
  float highest[kRows];
  highest_of_rows<kRows>(scores, lds, seqlen_k, highest);
  for (int i = 0; i < kRows; ++i) {
    float* row = scores + i * lds;
    const f32x16 h = broadcast(highest[i]);
    f32x16 sum = zero();
    for (int64_t j = 0; j < whole; j += 16) {
      const f32x16 e = vec_exp(sub(load(row + j), h));
      store(row + j, e);
      sum = add(sum, e);
    }
    if (tail) {
      const f32x16 e = keep_first(vec_exp(sub(load(row + whole), h)), tail, 0.0f);
      store(row + whole, e);
      sum = add(sum, e);
    }
    inverse_sum[i] = 1.0f / reduce_add(sum);
  }
}

// S = scale acc + bias for 16 * kVectors keys: scores [kRows, .], rows lds apart. `bias` is that of
// the first key for the tile's first query, or null; for the next query it lies one place before.
template <int kRows, int kVectors>
MINIFUSE_INLINE inline void store_scores(float scale, const float* bias,
                                         const f32x16 (&acc)[kRows][kVectors], float* scores,
                                         int64_t lds) {
  const f32x16 factor = broadcast(scale);
  if (bias == nullptr) {
    over_tile<kRows, kVectors>([&](auto i, auto j) MINIFUSE_INLINE {
      store(scores + i.value * lds + 16 * j.value, mul(acc[i.value][j.value], factor));
    });
    return;
  }
  over_tile<kRows, kVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    store(scores + i.value * lds + 16 * j.value,
          fma(acc[i.value][j.value], factor, load(bias + 16 * j.value - i.value)));
  });
}

template <int kRows, int kVectors>
inline void score_tile(const AttentionParams& p, const float* q, const float* key_panel,
                       const float* bias, float* scores, int64_t lds) {
  f32x16 acc[kRows][kVectors];
  clear(acc);
  multiply_tile(q, p.q.row_stride, key_panel, kPanelColumns, p.head_dim, acc);
  store_scores(p.scale, bias, acc, scores, lds);
}

// Values as the tile multiplies them: [seqlen_k, NR] panels, rows `stride` apart.
struct ValuePanels {
  const float* data;
  int64_t stride, panel_step;
};

// O's columns from c on.
template <int kRows>
MINIFUSE_INLINE inline void store_columns(const AttentionParams& p, int64_t c,
                                          const f32x16 (&rows)[kRows][kTileVectors], float* out) {
  over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    const int64_t left = p.head_dim - c - 16 * j.value;
    float* y = out + i.value * p.out.row_stride + c + 16 * j.value;
    if (left >= 16)
      store(y, rows[i.value][j.value]);
    else if (left > 0)
      store_first(y, rows[i.value][j.value], left);
  });
}

// The same of acc / sum.
template <int kRows>
MINIFUSE_INLINE inline void store_context(const AttentionParams& p, int64_t c,
                                          const f32x16 (&acc)[kRows][kTileVectors],
                                          const float (&inverse_sum)[kRows], float* out) {
  f32x16 rows[kRows][kTileVectors];
  over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    rows[i.value][j.value] = mul(acc[i.value][j.value], broadcast(inverse_sum[i.value]));
  });
  store_columns<kRows>(p, c, rows, out);
}

// A tile's queries, and the keys that they reach: places of the sentence, the keys' first one that of
// a panel on every instruction set.
struct TileRange {
  int64_t first_query, first_key, num_keys;

  TileRange(const AttentionParams& p, int64_t first, int64_t last) : first_query(first) {
    const int64_t reach = first > p.keys_before ? first - p.keys_before : 0;
    const int64_t end = last + p.keys_after < p.seqlen_k ? last + p.keys_after : p.seqlen_k;
    first_key = reach / kMaxPanelColumns * kMaxPanelColumns;
    num_keys = end - first_key;
  }
};

// Writes `value` over the scores of keys that a query of the tile does not reach.
template <int kRows>
inline void fill_unreached(const AttentionParams& p, const TileRange& range, float* scores,
                           int64_t lds, float value) {
  for (int64_t i = 0; i < kRows; ++i) {
    const int64_t query = range.first_query + i - range.first_key;  // counted from the first key
    float* row = scores + i * lds;
    for (int64_t key = 0; key < query - p.keys_before; ++key) row[key] = value;
    for (int64_t key = query + p.keys_after + 1; key < range.num_keys; ++key) row[key] = value;
  }
}

// Scores -> exp(s - max) of the keys that each query reaches, zeros for the others.
template <int kRows>
inline void softmax_reached(const AttentionParams& p, const TileRange& range, float* scores,
                            int64_t lds, float (&inverse_sum)[kRows]) {
  const bool is_limited = p.keys_before < kAllKeys || p.keys_after < kAllKeys;
  // The exponential of the lowest score is no zero, but next to a sum of at least 1 it is none.
  if (is_limited) fill_unreached<kRows>(p, range, scores, lds, -3.402823466e+38f);
  softmax_rows<kRows>(scores, lds, range.num_keys, inverse_sum);
  if (is_limited) fill_unreached<kRows>(p, range, scores, lds, 0.0f);
}

template <int kRows>
__attribute__((noinline)) void attention_tile(const AttentionParams& p, const TileRange& range,
                                              const float* q, const float* bias,
                                              const float* key_panels, const ValuePanels& values,
                                              float* scores, int64_t lds, float* out) {
  int64_t key = 0;
  const float* panels = key_panels + range.first_key * p.head_dim;
  const auto bias_at = [&](int64_t first) { return bias ? bias + first : nullptr; };
  for (; key + kPanelColumns - 16 < range.num_keys; key += kPanelColumns)
    score_tile<kRows, kTileVectors>(p, q, panels + key * p.head_dim, bias_at(key), scores + key,
                                    lds);
  if (key < range.num_keys)  // at most 16 keys in the last panel: half the work
    score_tile<kRows, 1>(p, q, panels + key * p.head_dim, bias_at(key), scores + key, lds);

  float inverse_sum[kRows];
  softmax_reached<kRows>(p, range, scores, lds, inverse_sum);

  for (int64_t c = 0; c < p.head_dim; c += kPanelColumns) {
    f32x16 acc[kRows][kTileVectors];
    clear(acc);
    multiply_tile(
        scores, lds,
        values.data + c / kPanelColumns * values.panel_step + range.first_key * values.stride,
        values.stride, range.num_keys, acc);
    store_context<kRows>(p, c, acc, inverse_sum, out);
  }
}

// prepare(head) for a head of k and v, then tile(height, range, q, bias, out) for every tile of the
// queries of a head that reads it; `bias` is that of the range's first key for its first query.
template <typename Prepare, typename Tile>
inline void over_heads_and_tiles(const AttentionParams& p, Prepare prepare, Tile tile) {
  const int64_t end = p.query_end < p.seqlen_q ? p.query_end : p.seqlen_q;
  const int64_t num_queries = end - p.query_begin;
  const int64_t num_tiles = (num_queries + kTileRows - 1) / kTileRows;
  for (int64_t head = p.head_begin; head < p.head_end; ++head) {
    if (head == p.head_begin || head % p.queries_per_key == 0) prepare(head / p.queries_per_key);
    for (int64_t t = 0; t < num_tiles; ++t) {
      const int64_t first = p.query_begin + num_queries * t / num_tiles;
      const int64_t last = p.query_begin + num_queries * (t + 1) / num_tiles;
      const float* q = p.q.data + head * p.q.head_stride + first * p.q.row_stride;
      const TileRange range(p, first, last);
      const float* bias =
          p.bias ? p.bias + head * p.bias_stride + range.first_key - first : nullptr;
      float* out = p.out.data + head * p.out.head_stride + first * p.out.row_stride;
      with_tile_rows(last - first, [&](auto height) { tile(height, range, q, bias, out); });
    }
  }
}

void attention(const AttentionParams& p) {
  const int64_t lds = padded_stride(round_up(p.seqlen_k, kPanelColumns));
  float* key_panels = p.scratch;
  float* scores = key_panels + p.head_dim * round_up(p.seqlen_k, kPanelColumns);
  float* packed_values = scores + kTileRows * lds;
  const bool values_in_place = !p.key_index && p.head_dim % kPanelColumns == 0;
  ValuePanels values{};
  over_heads_and_tiles(
      p,
      [&](int64_t head) {
        const float* v = p.v.data + head * p.v.head_stride;
        transpose_keys(p, p.k.data + head * p.k.head_stride, key_panels);
        values = {v, p.v.row_stride, kPanelColumns};
        if (!values_in_place) {
          pack_values(p, v, packed_values);
          values = {packed_values, kPanelColumns, p.seqlen_k * kPanelColumns};
        }
      },
      [&](auto height, const TileRange& range, const float* q, const float* bias, float* out) {
        attention_tile<height.value>(p, range, q, bias, key_panels, values, scores, lds, out);
      });
}
