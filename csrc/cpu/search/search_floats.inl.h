// Offers of a search among float vectors: score [num_queries, num_vectors] = Q X^T, tile by tile,
// each compared with its query's threshold while it is in registers. No score is ever stored but
// those that are offered, a few hundred of a million.
//
//   Q [num_queries, D]     X [num_vectors, D], rows as they lie in the index
//
// Both ways below multiply the same pairs in the same ascending chain over D, so a score's bits
// depend neither on the queries beside it nor on the instruction set:
//
//   few queries   NR vectors are transposed into a panel in L1 and multiplied by tiles of queries:
//                 for one query, memory is the limit
//   more          the queries are the panels, packed once, and tiles are MR vectors by NR queries;
//                 a block of vectors passes all panels while it is in L2

// Eight queries take 101 ms a million vectors of 384 this way and 87 the other, six 76 (Zen 3).
constexpr int64_t kFewQueries = 6;

inline float as_float(float x) { return x; }
inline float as_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &word, 4);
  return value;
}

// Vectors [first, first + rows) in float32: as they lie, or widened into the scratch memory.
inline const float* float_rows(const SearchParams& p, const float* vectors, int64_t first, int64_t,
                               int64_t* stride) {
  *stride = p.stride;
  return vectors + first * p.stride;
}
inline const float* float_rows(const SearchParams& p, const uint16_t* vectors, int64_t first,
                               int64_t rows, int64_t* stride) {
  *stride = p.dim;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < p.dim; ++k)
      p.scratch[i * p.dim + k] = as_float(vectors[(first + i) * p.stride + k]);
  return p.scratch;
}

// NR vectors from `first` on as a panel [D, NR] in the scratch memory; zeros stand for those that
// are missing.
template <typename T>
inline void transpose_vectors(const SearchParams& p, const T* vectors, int64_t first) {
  alignas(64) const T zeros[16] = {};
  for (int64_t group = 0; group < kPanelColumns; group += 16) {
    float* out = p.scratch + group;
    const auto row_of = [&](int64_t i, int64_t k) {
      const int64_t vector = first + group + i;
      return vector < p.num_vectors ? vectors + vector * p.stride + k : zeros;
    };
    int64_t k = 0;
    for (; k + 16 <= p.dim; k += 16) {
      // The same place of the next panel: sixteen rows are more streams than the processor follows.
      for (int64_t i = 0; i < 16; ++i)
        __builtin_prefetch(vectors + (first + group + i + kPanelColumns) * p.stride + k);
      const float* rows[16];
      alignas(64) float widened[16][16];
      for (int64_t i = 0; i < 16; ++i) {
        if constexpr (sizeof(T) == sizeof(float)) {
          rows[i] = row_of(i, k);
        } else {
          for (int64_t j = 0; j < 16; ++j) widened[i][j] = as_float(row_of(i, k)[j]);
          rows[i] = widened[i];
        }
      }
      transpose_16x16(rows, out + k * kPanelColumns, kPanelColumns);
    }
    for (; k < p.dim; ++k)
      for (int64_t i = 0; i < 16; ++i) out[k * kPanelColumns + i] = as_float(*row_of(i, k));
  }
}

// Tiles of queries [kRows, D] by a panel of vectors.
template <int kRows>
__attribute__((noinline)) void offer_vectors_in_lanes(const SearchParams& p, int64_t first_query,
                                                      int64_t first_vector) {
  f32x16 acc[kRows][kTileVectors];
  clear(acc);
  multiply_tile(p.queries + first_query * p.dim, p.dim, p.scratch, kPanelColumns, p.dim, acc);
  over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    const int64_t query = first_query + i.value, vector = first_vector + 16 * j.value;
    const int64_t left = p.num_vectors - vector;
    const uint32_t lanes = left >= 16 ? 0xFFFFu : left > 0 ? (1u << left) - 1 : 0;
    offer_lanes(
        p, acc[i.value][j.value], broadcast(p.thresholds[query]), lanes, [&](int) { return query; },
        [&](int lane) { return vector + lane; });
  });
}

// Tiles of vectors [kRows, D] by a panel of queries.
template <int kRows>
__attribute__((noinline)) void offer_queries_in_lanes(const SearchParams& p, const float* rows,
                                                      int64_t stride, const float* panel,
                                                      int64_t first_query, int64_t first_vector,
                                                      Ahead ahead) {
  f32x16 acc[kRows][kTileVectors];
  clear(acc);
  multiply_tile<kRows, kTileVectors, 1>(rows, stride, panel, kPanelColumns, p.dim, acc, ahead);
  over_tile<kRows, kTileVectors>([&](auto i, auto j) MINIFUSE_INLINE {
    const int64_t query = first_query + 16 * j.value;
    offer_lanes(
        p, acc[i.value][j.value], load(p.thresholds + query), 0xFFFFu,
        [&](int lane) { return query + lane; }, [&](int) { return first_vector + i.value; });
  });
}

template <typename T>
void search_floats(const SearchParams& p) {
  const T* vectors = static_cast<const T*>(p.vectors);
  if (p.num_queries <= kFewQueries) {
    for (int64_t first = 0; first < p.num_vectors; first += kPanelColumns) {
      transpose_vectors(p, vectors, first);
      for (int64_t query = 0; query < p.num_queries; query += kTileRows) {
        const int64_t left = p.num_queries - query;
        with_tile_rows(left < kTileRows ? left : kTileRows,
                       [&](auto height) { offer_vectors_in_lanes<height.value>(p, query, first); });
      }
    }
    return;
  }
  const int64_t most = kSearchBlockFloats / p.dim / kTileRows * kTileRows;
  const int64_t block = most < kTileRows ? kTileRows : most;
  int64_t stride = 0;
  const float* rows = nullptr;
  over_vectors(
      p, block,
      [&](int64_t first, int64_t count) { rows = float_rows(p, vectors, first, count, &stride); },
      [&](int64_t panel, int64_t first, int64_t row, int64_t height) {
        const float* queries =
            static_cast<const float*>(p.query_panels) + panel * p.dim * kPanelColumns;
        // A tile fetches its part of the next block, the first panels' tiles until it is there.
        const int64_t fetched = p.dim / 4 * 64, wanted = height * p.stride * int64_t{sizeof(T)};
        const char* next =
            reinterpret_cast<const char*>(vectors + (first + block + row) * p.stride);
        const Ahead ahead =
            panel * fetched < wanted ? Ahead{next + panel * fetched, 64} : Ahead{next, 0};
        with_tile_rows(height, [&](auto kRows) {
          offer_queries_in_lanes<kRows.value>(p, rows + row * stride, stride, queries,
                                              panel * kPanelColumns, first + row, ahead);
        });
      });
}

void search_float32(const SearchParams& p) { search_floats<float>(p); }
void search_bfloat16(const SearchParams& p) { search_floats<uint16_t>(p); }
