// Linear layers on the tile registers of AMX: int8 with the integers of the other instruction sets,
// and so with their bits, and bfloat16 in pairs. tiles_amx.h says what a register is.
//
// A tile of y is 32 x 32, four registers of sums. A step takes 64 bytes of each row of x and sixteen
// lines of the panel, which lies as that of the other sets, but that its last step is whole:
//
//                   columns 0..15   columns 16..31
//     rows 0..15    sums 0          sums 1               x: registers 4 and 5
//     rows 16..31   sums 2          sums 3               weights: registers 6 and 7

struct AmxTile {
  static constexpr int kRows = 32, kVectors = 2, kColumns = 32;
  static constexpr int kUnit = 16;  // a register's rows
  static_assert(kMaxTileRows % kUnit ==
                0);  // all of it may be read, whatever a block's last rows are

  struct Registers {
    Registers() { configure_tiles(); }
    ~Registers() { release_tiles(); }
  };
};
static_assert(VectorTile::kColumns == AmxTile::kColumns);

// Rows of a block in scratch memory, and how many there are from here on.
template <typename Values>
struct RowsOfTiles {
  Values values;
  int64_t count;
  RowsOfTiles from(int64_t row) const { return {values.from(row), count - row}; }
};

struct CodeTiles {
  using Sum = int32_t;
  static constexpr int kInputs = 64;
  template <int kSums, int kRows, int kColumns>
  MINIFUSE_INLINE static void add() {
    dot_codes<kSums, kRows, kColumns>();
  }
};

struct PairTiles {
  using Sum = float;
  static constexpr int kInputs = 32;
  template <int kSums, int kRows, int kColumns>
  MINIFUSE_INLINE static void add() {
    dot_pairs<kSums, kRows, kColumns>();
  }
};

// The sums of a tile of y.
template <typename Step>
struct TileSums {
  alignas(64) typename Step::Sum sum[AmxTile::kRows][AmxTile::kColumns];
};

// sums = rows [16 kUnits, kInputs num_steps] times a panel's columns. rows: stride bytes apart.
template <typename Step, int kUnits, int kAheadLines>
MINIFUSE_INLINE inline void multiply_tiles(const void* rows, int64_t stride, const char* columns,
                                           int64_t num_steps, TileSums<Step>& sums, Ahead& ahead) {
  constexpr int64_t kStepBytes = 64, kColumnBytes = 4 * AmxTile::kColumns;
  const char* x = static_cast<const char*>(rows);
  unrolled<2 * kUnits>([](auto tile) MINIFUSE_INLINE { zero_tile<tile.value>(); });
  for (int64_t step = 0; step < num_steps; ++step) {
    load_tile<6>(columns, kColumnBytes);
    load_tile<7>(columns + kStepBytes, kColumnBytes);
    unrolled<kUnits>([&](auto unit) MINIFUSE_INLINE {
      constexpr int kUnit = decltype(unit)::value;
      load_tile<4 + kUnit>(x + kUnit * AmxTile::kUnit * stride, stride);
      Step::template add<2 * kUnit, 4 + kUnit, 6>();
      Step::template add<2 * kUnit + 1, 4 + kUnit, 7>();
    });
    for (int four = 0; four < Step::kInputs / 4; ++four) {
      unrolled<kAheadLines>(
          [&](auto l) MINIFUSE_INLINE { __builtin_prefetch(ahead.line + 64 * l.value, 0, 2); });
      ahead.line += ahead.step;
    }
    x += kStepBytes;
    columns += AmxTile::kUnit * kColumnBytes;
  }
  unrolled<kUnits>([&](auto unit) MINIFUSE_INLINE {
    constexpr int kUnit = decltype(unit)::value;
    auto* const of_unit = sums.sum[kUnit * AmxTile::kUnit];
    store_tile<2 * kUnit>(of_unit, sizeof(sums.sum[0]));
    store_tile<2 * kUnit + 1>(of_unit + 16, sizeof(sums.sum[0]));
  });
}

// f(Int<rows>, row) over the first `count` rows of a tile, a few at a time.
template <typename F>
MINIFUSE_INLINE inline void over_rows(int64_t count, F f) {
  constexpr int kTogether = 4;
  int64_t row = 0;
  for (; row + kTogether <= count; row += kTogether) f(Int<kTogether>{}, row);
  for (; row < count; ++row) f(Int<1>{}, row);
}

template <typename Step>
double tile_peak_loop(int64_t iterations, float* sink) {
  const AmxTile::Registers registers;
  unrolled<8>([](auto tile) MINIFUSE_INLINE { zero_tile<tile.value>(); });
  for (int64_t it = 0; it < iterations; ++it) {
    Step::template add<0, 4, 6>();
    Step::template add<1, 4, 7>();
    Step::template add<2, 5, 6>();
    Step::template add<3, 5, 7>();
  }
  TileSums<Step> sums;
  store_tile<0>(sums.sum[0], sizeof(sums.sum[0]));
  sink[0] += static_cast<float>(sums.sum[0][0]);
  return 2.0 * 4 * 16 * 16 * Step::kInputs * static_cast<double>(iterations);
}

// A format on tiles: Format, which multiplies the same panels on vectors, with the products of Step.
template <typename Format, typename Step>
struct TileFormat {
  static constexpr WeightType kWeightType = Format::kWeightType;
  using Tile = AmxTile;
  using Rows = RowsOfTiles<typename Format::Rows>;
  static constexpr int kPanelLines = Format::kPanelLines;

  static int64_t scratch_bytes(int64_t M, int64_t K) { return Format::scratch_bytes(M, K); }
  static int64_t panel_bytes(int64_t K) { return Format::panel_bytes(round_up(K, Step::kInputs)); }
  // The last step of a panel is whole: zeros stand behind what Format packs.
  static void pack_panel(const void* weight, int64_t ldw, int64_t num_rows, int64_t K,
                         void* panel) {
    Format::pack_panel(weight, ldw, num_rows, K, panel);
    char* const bytes = static_cast<char*>(panel);
    for (int64_t i = Format::panel_bytes(K); i < panel_bytes(K); ++i) bytes[i] = 0;
  }
  static double peak_loop(int64_t iterations, float* sink) {
    return tile_peak_loop<Step>(iterations, sink);
  }
};

struct Int8Tiles : TileFormat<Int8, CodeTiles> {
  static_assert(kInt8Group % CodeTiles::kInputs == 0);

  // The last step of a row reads on behind its codes and multiplies what lies there by zeros.
  static Rows rows(const LinearParams& p, int64_t row, int64_t rows) {
    return {Int8::rows(p, row, rows), rows};
  }

  template <int kUnits, int kAheadLines>
  __attribute__((noinline)) static void tile(const LinearParams& p, Rows rows, const char* weight,
                                             int64_t panel, int64_t first, Ahead ahead) {
    const Int8::Rows& x = rows.values;
    TileSums<CodeTiles> sums;
    for (int64_t g = 0; g < x.groups; ++g) {
      const int64_t begin = g * kInt8Group;
      const int64_t inputs = p.K - begin < kInt8Group ? p.K - begin : kInt8Group;
      multiply_tiles<CodeTiles, kUnits, kAheadLines>(
          x.codes + begin, x.stride, weight + begin * Tile::kColumns,
          (inputs + CodeTiles::kInputs - 1) / CodeTiles::kInputs, sums, ahead);
      over_rows(rows.count < kUnits * Tile::kUnit ? rows.count : kUnits * Tile::kUnit,
                [&](auto height, int64_t row) MINIFUSE_INLINE {
                  constexpr int kRows = decltype(height)::value;
                  i32x16 acc[kRows][Tile::kVectors];
                  over_tile<kRows, Tile::kVectors>([&](auto i, auto j) MINIFUSE_INLINE {
                    acc[i.value][j.value] = load_sums(&sums.sum[row + i.value][16 * j.value]);
                  });
                  Int8::add_group<kRows>(p, x.from(row), panel, first + row, g, acc);
                });
    }
  }
};

struct Bfloat16Tiles : TileFormat<Bfloat16Dot, PairTiles> {
  static Rows rows(const LinearParams& p, int64_t row, int64_t rows) {
    const Bfloat16Dot::Rows x = Bfloat16Dot::rows(p, row, rows);
    // The last step of a row reads on behind it: times zero, that must be a number.
    uint16_t* const values = static_cast<uint16_t*>(p.scratch);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = p.K; k < round_up(p.K, PairTiles::kInputs); ++k)
        values[i * x.stride + k] = 0;
    return {x, rows};
  }

  template <int kUnits, int kAheadLines>
  __attribute__((noinline)) static void tile(const LinearParams& p, Rows rows, const char* weight,
                                             int64_t panel, int64_t first, Ahead ahead) {
    const Bfloat16Dot::Rows& x = rows.values;
    TileSums<PairTiles> sums;
    multiply_tiles<PairTiles, kUnits, kAheadLines>(
        x.x, x.stride * int64_t{sizeof(uint16_t)}, weight,
        (p.K + PairTiles::kInputs - 1) / PairTiles::kInputs, sums, ahead);
    over_rows(rows.count < kUnits * Tile::kUnit ? rows.count : kUnits * Tile::kUnit,
              [&](auto height, int64_t row) MINIFUSE_INLINE {
                constexpr int kRows = decltype(height)::value;
                f32x16 acc[kRows][Tile::kVectors];
                over_tile<kRows, Tile::kVectors>([&](auto i, auto j) MINIFUSE_INLINE {
                  acc[i.value][j.value] = load(&sums.sum[row + i.value][16 * j.value]);
                });
                store_sums<Bfloat16Tiles, kRows>(p, panel, first + row, acc);
              });
  }
};
