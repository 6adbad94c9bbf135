// Selection of the best scores, for every type of vectors: each tile of scores is compared with
// the queries' thresholds while it is in registers, and only what exceeds them is offered, a few
// hundred scores of a million. No matrix of scores exists.

// Offers what a vector of scores has above its thresholds: lane i is (query_of(i), vector_of(i)).
template <typename Query, typename Vector>
MINIFUSE_INLINE inline void offer_lanes(const SearchParams& p, f32x16 score, f32x16 threshold,
                                        uint32_t lanes, Query query_of, Vector vector_of) {
  uint32_t mask = greater_mask(score, threshold) & lanes;
  if (mask == 0) [[likely]]
    return;
  alignas(64) float scores[16];
  store(scores, score);
  for (; mask != 0; mask &= mask - 1) {
    const int i = __builtin_ctz(mask);
    p.offer(p.context, query_of(i), vector_of(i), scores[i]);
  }
}

// Blocks of vectors, and in each f(first, rows) for every tile of at most kTileRows.
template <typename Block, typename Tile>
inline void over_vectors(const SearchParams& p, int64_t block, Block begin_block, Tile tile) {
  for (int64_t first = 0; first < p.num_vectors; first += block) {
    const int64_t rows = p.num_vectors - first < block ? p.num_vectors - first : block;
    begin_block(first, rows);
    for (int64_t panel = 0; panel * kPanelColumns < p.num_queries; ++panel)
      for (int64_t row = 0; row < rows; row += kTileRows)
        tile(panel, first, row, rows - row < kTileRows ? rows - row : kTileRows);
  }
}
