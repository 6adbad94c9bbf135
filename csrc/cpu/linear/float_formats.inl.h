// Weights in float32, and in bfloat16 for half the memory: both through the micro-kernel of
// micro_kernel.inl.h, in float32 arithmetic.
//
//   float32 panel p:   k = 0:  w[pNR][0] w[pNR+1][0] ... w[pNR+NR-1][0]
//                      k = 1:  w[pNR][1] ...                              NR consecutive floats a step,
//                      ...                                                read front to back once a tile
//
//   bfloat16: columns c and c + NR / 2 side by side, so that a step of k is one load, one shift (the
//   even halves become float32) and one mask (the odd ones are float32 as they lie).

template <typename W>
struct FloatFormat {
  using Tile = VectorTile;
  static constexpr int kPanelLines = Tile::kColumns * 4 * sizeof(W) / 64;

  struct Rows {
    const float* x;
    int64_t ldx;
    Rows from(int64_t row) const { return {x + row * ldx, ldx}; }
  };
  static Rows rows(const LinearParams& p, int64_t row, int64_t) {
    return Rows{p.x, p.ldx}.from(row);
  }
  static int64_t scratch_bytes(int64_t, int64_t) { return 0; }
  static int64_t panel_bytes(int64_t K) { return K * Tile::kColumns * int64_t{sizeof(W)}; }

  template <int kRows, int kAheadLines>
  __attribute__((noinline)) static void tile(const LinearParams& p, Rows rows, const char* weight,
                                             int64_t panel, int64_t first, Ahead ahead) {
    const W* columns = reinterpret_cast<const W*>(weight);
    f32x16 acc[kRows][Tile::kVectors];
    clear(acc);
    multiply_tile<kRows, Tile::kVectors, kAheadLines>(rows.x, rows.ldx, columns, Tile::kColumns,
                                                      p.K, acc, ahead);
    // The next tile's first lines, while this one is stored: half a percent at K = 384.
    for (int i = 0; i < kRows; ++i) __builtin_prefetch(rows.x + (kRows + i) * rows.ldx);
    for (int i = 0; i < 16; ++i) __builtin_prefetch(weight + 64 * i);
    store_sums<FloatFormat, kRows>(p, panel, first, acc);
  }

  static double peak_loop(int64_t iterations, float* sink) { return fma_loop(iterations, sink); }
};

struct Float32 : FloatFormat<float> {
  static constexpr WeightType kWeightType = WeightType::kFloat32;

  static void pack_panel(const void* weight, int64_t ldw, int64_t num_rows, int64_t K,
                         void* panel) {
    const float* w = static_cast<const float*>(weight);
    float* out = static_cast<float*>(panel);
    alignas(64) const float zeros[16] = {};
    for (int64_t group = 0; group < Tile::kColumns; group += 16) {
      int64_t k = 0;
      for (; k + 16 <= K; k += 16) {
        const float* rows[16];
        for (int64_t i = 0; i < 16; ++i)
          rows[i] = group + i < num_rows ? w + (group + i) * ldw + k : zeros;
        transpose_16x16(rows, out + k * Tile::kColumns + group, Tile::kColumns);
      }
      for (; k < K; ++k)
        for (int64_t i = 0; i < 16; ++i)
          out[k * Tile::kColumns + group + i] = group + i < num_rows ? w[(group + i) * ldw + k] : 0;
    }
  }
};

struct Bfloat16 : FloatFormat<uint16_t> {
  static constexpr WeightType kWeightType = WeightType::kBfloat16;

  static void pack_panel(const void* weight, int64_t ldw, int64_t num_rows, int64_t K,
                         void* panel) {
    constexpr int64_t kHalf = Tile::kColumns / 2;
    const uint16_t* w = static_cast<const uint16_t*>(weight);
    uint16_t* out = static_cast<uint16_t*>(panel);
    for (int64_t k = 0; k < K; ++k)
      for (int64_t c = 0; c < Tile::kColumns; ++c)
        *out++ =
            c / 2 + c % 2 * kHalf < num_rows ? w[(c / 2 + c % 2 * kHalf) * ldw + k] : uint16_t{0};
  }
};
