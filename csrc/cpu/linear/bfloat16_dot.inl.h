// Weights and rows of x both in bfloat16, two products at a time: y = b + sum of x w, summed in
// float32 by an instruction that multiplies pairs (dot_*_bf16.h says what a step of it is).
//
//   x [M, K] rounded to nearest even while a block of its rows is in L1 or L2
//
//   panel p:   k = 0:  w[pNR][0..1] w[pNR+1][0..1] ... w[pNR+NR-1][0..1]     64 bytes a vector
//              k = 2:  w[pNR][2..3] ...                      zeros past K and past N
//
// Each y[m][n] is one chain over ascending pairs of k whatever the tile's height. The instruction
// rounds in its own way, so bits are one machine's: the formats of float_formats.inl.h, which widen
// bfloat16 weights and multiply in float32, are the ones that agree everywhere.

struct PairStep {
  using Value = uint16_t;
  using Weight = uint16_t;
  using Factor = bf16x32;
  using Column = bf16x32;
  using Sum = f32x16;
  static constexpr int kInputs = 2;

  template <int kVectors>
  MINIFUSE_INLINE static void load_columns(const uint16_t* b, bf16x32 (&column)[kVectors]) {
    unrolled<kVectors>([&](auto j)
                           MINIFUSE_INLINE { column[j.value] = load_pairs(b + 32 * j.value); });
  }
  MINIFUSE_INLINE static bf16x32 factor(const uint16_t* x) { return broadcast_pair(x); }
  MINIFUSE_INLINE static void add(f32x16& acc, const bf16x32& x, const bf16x32& column) {
    dot(acc, x, column);
  }
};

// acc += a [kRows, 2 num_pairs] b, rows of a lda values apart, b a panel as above or its first
// vectors.
template <int kRows, int kVectors, int kAheadLines = 0>
MINIFUSE_INLINE inline void multiply_pairs(const uint16_t* a, int64_t lda, const uint16_t* b,
                                           int64_t num_pairs, f32x16 (&acc)[kRows][kVectors],
                                           Ahead ahead = {}) {
  multiply_steps<PairStep, kAheadLines>(a, lda, b, 2 * kPanelColumns, num_pairs, acc, ahead);
}

// A row of `width` floats rounded; what lies behind them up to the next 16 becomes zero.
inline void round_row(const float* x, int64_t width, uint16_t* y) {
  for (int64_t k = 0; k < width; k += 16) store_bfloat16(y + k, load_upto(x + k, width - k));
}

struct Bfloat16Dot {
  static constexpr WeightType kWeightType = WeightType::kBfloat16;
  using Tile = VectorTile;
  static constexpr int kPanelLines = Tile::kColumns * 4 * sizeof(uint16_t) / 64;

  struct Rows {
    const uint16_t* x;  // [rows, stride]
    int64_t stride;
    Rows from(int64_t row) const { return {x + row * stride, stride}; }
  };

  // An odd number of cache lines (types.h).
  static int64_t row_stride(int64_t K) { return ((K + 31) / 32 | 1) * 32; }
  static int64_t scratch_bytes(int64_t M, int64_t K) {
    return scratch_rows(M) * row_stride(K) * int64_t{sizeof(uint16_t)};
  }
  static int64_t panel_bytes(int64_t K) {
    return round_up(K, 2) * Tile::kColumns * int64_t{sizeof(uint16_t)};
  }

  static Rows rows(const LinearParams& p, int64_t row, int64_t rows) {
    const int64_t stride = row_stride(p.K);
    uint16_t* x = static_cast<uint16_t*>(p.scratch);
    for (int64_t i = 0; i < rows; ++i) round_row(p.x + (row + i) * p.ldx, p.K, x + i * stride);
    return {x, stride};
  }

  template <int kRows, int kAheadLines>
  __attribute__((noinline)) static void tile(const LinearParams& p, Rows rows, const char* weight,
                                             int64_t panel, int64_t first, Ahead ahead) {
    f32x16 acc[kRows][Tile::kVectors];
    clear(acc);
    multiply_pairs<kRows, Tile::kVectors, kAheadLines>(
        rows.x, rows.stride, reinterpret_cast<const uint16_t*>(weight), (p.K + 1) / 2, acc, ahead);
    store_sums<Bfloat16Dot, kRows>(p, panel, first, acc);
  }

  static void pack_panel(const void* weight, int64_t ldw, int64_t num_rows, int64_t K,
                         void* panel) {
    const uint16_t* w = static_cast<const uint16_t*>(weight);
    uint16_t* out = static_cast<uint16_t*>(panel);
    for (int64_t first = 0; first < K; first += 2)
      for (int64_t c = 0; c < Tile::kColumns; ++c)
        for (int64_t k = first; k < first + 2; ++k)
          *out++ = c < num_rows && k < K ? w[c * ldw + k] : uint16_t{0};
  }

  static double peak_loop(int64_t iterations, float* sink) {
    constexpr int kAccumulators = Tile::kRows * Tile::kVectors;
    alignas(64) const uint16_t zeros[32] = {};
    f32x16 acc[kAccumulators];
    unrolled<kAccumulators>([&](auto i) MINIFUSE_INLINE { acc[i.value] = zero(); });
    const bf16x32 weights = load_pairs(zeros), x = broadcast_pair(zeros);
    for (int64_t it = 0; it < iterations; ++it)
      unrolled<kAccumulators>([&](auto i) MINIFUSE_INLINE { dot(acc[i.value], x, weights); });
    f32x16 total = load(sink);
    unrolled<kAccumulators>([&](auto i) MINIFUSE_INLINE { total = add(total, acc[i.value]); });
    store(sink, total);
    return 2.0 * 32 * kAccumulators * static_cast<double>(iterations);
  }
};
