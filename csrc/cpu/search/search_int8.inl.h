// Offers of a search among vectors in 8 bits, each with a scale and an offset of its own:
//
//   x[v] ~ scale[v] code[v] + offset[v]     code 0..255     q ~ query_scale query_code, -64..64
//   score = (scale query_scale) sum code query_code + offset query_sum
//
// The sum is exact in int32 in any order, so a few queries are multiplied vector by vector as the
// codes lie, and more of them in tiles of MR vectors by NR queries (int8.inl.h); the float32
// arithmetic behind it is the same. Two query codes never exceed 128 in sum, so vpmaddubsw does not
// saturate (dot_avx2.h).

constexpr int64_t kFewInt8Queries = 8;

inline void offer_int8(const SearchParams& p, int64_t query, int64_t vector, int32_t sum) {
  const float scale = p.vector_scale[2 * vector], offset = p.vector_scale[2 * vector + 1];
  const float score = __builtin_fmaf(static_cast<float>(sum), scale * p.query_scale[query],
                                     offset * p.query_sum[query]);
  if (score > p.thresholds[query]) p.offer(p.context, query, vector, score);
}

inline int32_t dot_codes(const uint8_t* codes, const int8_t* query, int64_t dim) {
  i32x16 acc = zero_sums();
  int64_t k = 0;
  for (; k + 64 <= dim; k += 64) dot(acc, load_codes(codes + k), load_weights(query + k));
  if (k < dim) {
    alignas(64) uint8_t last[64] = {};
    __builtin_memcpy(last, codes + k, static_cast<size_t>(dim - k));
    dot(acc, load_codes(last), load_weights(query + k));
  }
  return reduce_add(acc);
}

template <int kRows>
__attribute__((noinline)) void offer_int8_tile(const SearchParams& p, const uint8_t* codes,
                                               const int8_t* panel, int64_t first_query,
                                               int64_t first_vector) {
  i32x16 acc[kRows][kTileVectors];
  over_tile<kRows, kTileVectors>([&](auto i, auto j)
                                     MINIFUSE_INLINE { acc[i.value][j.value] = zero_sums(); });
  Ahead ahead;
  Int8::multiply<kRows, 0>({codes, p.stride, nullptr, 1}, panel, 0, p.dim, acc, ahead);
  over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    const int64_t query = first_query + 16 * j.value, vector = first_vector + i.value;
    const f32x16 scale = mul(broadcast(p.vector_scale[2 * vector]), load(p.query_scale + query));
    const f32x16 rest = mul(broadcast(p.vector_scale[2 * vector + 1]), load(p.query_sum + query));
    offer_lanes(
        p, fma(to_float(acc[i.value][j.value]), scale, rest), load(p.thresholds + query), 0xFFFFu,
        [&](int lane) { return query + lane; }, [&](int) { return vector; });
  });
}

void search_int8(const SearchParams& p) {
  const uint8_t* codes = static_cast<const uint8_t*>(p.vectors);
  const int64_t padded_dim = round_up(p.dim, 64);
  if (p.num_queries <= kFewInt8Queries) {
    for (int64_t vector = 0; vector < p.num_vectors; ++vector)
      for (int64_t query = 0; query < p.num_queries; ++query)
        offer_int8(p, query, vector,
                   dot_codes(codes + vector * p.stride, p.query_codes + query * padded_dim, p.dim));
    return;
  }
  const int64_t most = 4 * kSearchBlockFloats / p.dim / kTileRows * kTileRows;
  over_vectors(
      p, most < kTileRows ? kTileRows : most, [](int64_t, int64_t) {},
      [&](int64_t panel, int64_t first, int64_t row, int64_t height) {
        const int8_t* queries =
            static_cast<const int8_t*>(p.query_panels) + panel * Int8::panel_bytes(p.dim);
        with_tile_rows(height, [&](auto kRows) {
          offer_int8_tile<kRows.value>(p, codes + (first + row) * p.stride, queries,
                                       panel * kPanelColumns, first + row);
        });
      });
}

void quantize_vectors(const float* x, int64_t num_vectors, int64_t dim, uint8_t* codes,
                      int64_t stride, float* scale) {
  constexpr int64_t kPiece = 1024;
  for (int64_t v = 0; v < num_vectors; ++v) {
    const float* row = x + v * dim;
    const Int8::Range range = Int8::range_of(row, nullptr, dim);
    for (int64_t first = 0; first < dim; first += kPiece) {
      const int64_t piece = dim - first < kPiece ? dim - first : kPiece;
      alignas(64) uint8_t rounded[kPiece];
      Int8::store_row(row + first, nullptr, piece, range, rounded);
      __builtin_memcpy(codes + v * stride + first, rounded, static_cast<size_t>(piece));
    }
    for (int64_t k = dim; k < stride; ++k) codes[v * stride + k] = 0;
    scale[2 * v] = range.scale.scale;
    scale[2 * v + 1] = range.scale.offset;
  }
}
