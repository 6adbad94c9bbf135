// y = activation(x W^T + b), and y = LayerNorm(x W^T + b + residual), on packed weights of any
// format.
//
//   x [M, K] row-major    packed [panels, panel]    y [M, N] row-major
//
// K is never split, so that each y[m][n] is one sum in one order: at K = 1,536 a float32 panel of
// 32 columns is 192 KiB and streams from L2 at NR floats per MR * NR / 16 multiply-adds, 10.7 bytes
// a cycle at two multiply-adds a cycle.
//
// Loops: block of rows (fits L2 with its output) > panel (fetched from L3 once a block) > tile.
//
// A Format (float_formats.inl.h, int8.inl.h, bfloat16_dot.inl.h) says how weights lie and how a tile is multiplied:
//
//   Tile         rows, vectors of 16 columns and columns of its register tile (kRows, kVectors,
//                kColumns); a panel is as wide. kUnit: rows that it cannot divide. Registers: what
//                must be alive while tiles are multiplied
//   Rows         the rows of a block as its tiles read them; .from(row) begins further down
//   rows()       makes them from x: as it lies, or rounded into the scratch memory
//   tile()       so many units by NR of y, without the activation
//   kPanelLines  cache lines of a panel in four steps of k

// Columns of y that a panel holds: fewer than NR in the last one.
template <typename Format>
inline int64_t panel_width(const LinearParams& p, int64_t panel) {
  constexpr int64_t kColumns = Format::Tile::kColumns;
  const int64_t left = p.N - panel * kColumns;
  return left < kColumns ? left : kColumns;
}

// y's tile from value(i, j, left, shared), 16 columns of row i and vector j of which `left` exist;
// shared(j, left) is what all rows of these columns share.
//
// No closure holds a vector by value: GCC 12 would copy it through memory, eight bytes at a time.
template <int kRows, int kVectors, typename Shared, typename Value>
MINIFUSE_INLINE inline void store_tile(float* y, int64_t ldy, int64_t columns, Shared shared,
                                       Value value) {
  unrolled<kVectors>([&](auto j) MINIFUSE_INLINE {
    const int64_t left = columns - 16 * j.value;
    float* out = y + 16 * j.value;
    if (left >= 16) {
      const auto of_rows = shared(j, 16);
      unrolled<kRows>(
          [&](auto i) MINIFUSE_INLINE { store(out + i.value * ldy, value(i, j, 16, of_rows)); });
    } else if (left > 0) {
      const auto of_rows = shared(j, left);
      unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
        store_first(out + i.value * ldy, value(i, j, left, of_rows), left);
      });
    }
  });
}

// 16 values of a bias, zeros for none.
inline f32x16 load_bias(const float* bias, int64_t left) {
  return bias ? load_upto(bias, left) : zero();
}

// A tile of float32 sums and the bias into y, the first row being `first`.
template <typename Format, int kRows>
MINIFUSE_INLINE inline void store_sums(const LinearParams& p, int64_t panel, int64_t first,
                                       const f32x16 (&acc)[kRows][Format::Tile::kVectors]) {
  const int64_t column = panel * Format::Tile::kColumns;
  const float* bias = p.bias ? p.bias + column : nullptr;
  store_tile<kRows, Format::Tile::kVectors>(
      p.y + first * p.ldy + column, p.ldy, panel_width<Format>(p, panel),
      [&](auto j, int64_t left)
          MINIFUSE_INLINE { return load_bias(bias ? bias + 16 * j.value : nullptr, left); },
      [&](auto i, auto j, int64_t, const f32x16& b)
          MINIFUSE_INLINE { return add(acc[i.value][j.value], b); });
}

// Tiles that go through the activation together: its constants are loaded once for them and its
// chains of dependent multiply-adds start once, while their 64 or 128 bytes a row are still in L1.
constexpr int64_t kActivatedTiles = 4;

// Rows [begin, end) of a panel's columns: rows in pairs and whole panels, to keep the vectors of
// vec_gelu in step.
template <typename Format>
void activate_rows(const LinearParams& p, int64_t panel, int64_t begin, int64_t end) {
  constexpr int kVectors = Format::Tile::kVectors, kColumns = Format::Tile::kColumns;
  const int64_t columns = panel_width<Format>(p, panel), ldy = p.ldy, rows = end - begin;
  float* y = p.y + begin * ldy + panel * kColumns;
  const Activation activation = p.activation;
  int64_t i = 0;
  if (activation == Activation::kGelu && columns == kColumns) {
    constexpr int kTogether = kMapVectors / kVectors;
    for (; i + kTogether <= rows; i += kTogether) {
      f32x16 v[kMapVectors];
      for (int j = 0; j < kMapVectors; ++j)
        v[j] = load(y + (i + j / kVectors) * ldy + 16 * (j % kVectors));
      vec_gelu(v);
      for (int j = 0; j < kMapVectors; ++j)
        store(y + (i + j / kVectors) * ldy + 16 * (j % kVectors), v[j]);
    }
  }
  for (; i < rows; ++i) activate_array(y + i * ldy, y + i * ldy, columns, activation);
}

// Rows in a block: x and y of a block take about 1.5 MiB. A panel serves every tile of the block,
// so more rows fetch the weights less often, and x and y stream well from beyond L2: half the size
// cost 3 % of an encode, twice the size gained nothing (Zen 5, 1 MiB L2). The bounds of 48 and
// kMaxBlockRows keep very wide layers efficient and very narrow ones within the scratch memory.
template <typename Format>
int64_t rows_per_block(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kRows = Format::Tile::kRows;
  constexpr int64_t kBlockFloats = 1536 * 1024 / sizeof(float);
  constexpr int64_t kLeast = round_up(48, kRows), kMost = kMaxBlockRows / kRows * kRows;
  const int64_t wanted = K + N == 0 ? kMost : round_up(kBlockFloats / (K + N), kRows);
  const int64_t most = wanted < kLeast ? kLeast : wanted > kMost ? kMost : wanted;
  return block_of(M, most, kRows);
}

// Ends a checked build (MINIFUSE_CHECKED: debug and sanitizers) where `rows` rows do not fit the
// scratch memory that the caller gave. In a team the memory behind it is the next member's, which no
// sanitizer would notice.
template <typename Format>
MINIFUSE_INLINE inline void check_scratch([[maybe_unused]] const LinearParams& p,
                                          [[maybe_unused]] int64_t rows) {
#if defined(MINIFUSE_CHECKED)
  if (Format::scratch_bytes(rows, p.K) > p.scratch_bytes) __builtin_trap();
#endif
}

// f(), its ticks added to one of p's stages where they are asked for.
template <typename F>
MINIFUSE_INLINE inline auto timed(const LinearParams& p, uint64_t StageTicks::* stage, F f) {
  if (!p.ticks) return f();
  struct Stopwatch {
    uint64_t& total;
    uint64_t start = ticks_now();
    ~Stopwatch() { total += ticks_now() - start; }
  } const stopwatch{p.ticks->*stage};
  return f();
}

// Rows [row, row + rows) of y, all panels asked for. Tiles of nearly equal height: 13 rows are
// 7 + 6, because a tile of one row waits for the latency of its multiply-adds. Where a tile is made
// of units, only the last one of all has fewer rows.
//
// The tiles of a panel fetch the panel behind it into L2: a model's weights exceed the last-level
// cache, and without this the first tile of each waits for memory. One tile alone (a query) fetches
// all of it, two or three a half each, more a line every four steps until it is there.
template <typename Format>
void linear_block(const LinearParams& p, int64_t row, int64_t rows) {
#if defined(MINIFUSE_CHECKED)
  // Fetching ahead changes no result, and each number of lines is one tile more to instrument.
  constexpr int kAll = 1, kHalf = 1;
#else
  constexpr int kAll = Format::kPanelLines, kHalf = kAll > 1 ? kAll / 2 : 1;
#endif
  constexpr int64_t kUnit = Format::Tile::kUnit, kTallest = Format::Tile::kRows / kUnit;
  const int64_t num_units = (rows + kUnit - 1) / kUnit;
  const int64_t num_tiles = (num_units + kTallest - 1) / kTallest;
  const int64_t panel_bytes = Format::panel_bytes(p.K);
  check_scratch<Format>(p, rows);
  [[maybe_unused]] const typename Format::Tile::Registers registers{};
  const typename Format::Rows x =
      timed(p, &StageTicks::quantization, [&] { return Format::rows(p, row, rows); });
  for (int64_t panel = p.panel_begin; panel < p.panel_end; ++panel) {
    const char* weight = static_cast<const char*>(p.packed_weight) + panel * panel_bytes;
    // One tile of so many units from row `first` on, which also fetches its part of the next panel.
    const auto tile_with = [&](auto lines, int64_t tile, int64_t first, int64_t units) {
      constexpr int kLines = decltype(lines)::value;
      const int64_t fetched_bytes = p.K / 4 * 64 * kLines;
      const Ahead ahead = tile * fetched_bytes < panel_bytes
                              ? Ahead{weight + panel_bytes + tile * fetched_bytes, 64 * kLines}
                              : Ahead{weight, 0};
      with_tile_rows<kTallest>(units, [&](auto kUnits) {
        Format::template tile<kUnits.value, kLines>(p, x.from(first - row), weight, panel, first,
                                                    ahead);
      });
    };
    int64_t activated = row;  // rows of this panel before it have been through the activation
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t unit = num_units * tile / num_tiles;
      const int64_t units = num_units * (tile + 1) / num_tiles - unit;
      const int64_t first = row + kUnit * unit;
      if (num_tiles == 1)
        tile_with(Int<kAll>{}, tile, first, units);
      else if (num_tiles < 4)
        tile_with(Int<kHalf>{}, tile, first, units);
      else
        tile_with(Int<1>{}, tile, first, units);
      if (p.activation != Activation::kNone &&
          (tile % kActivatedTiles == kActivatedTiles - 1 || tile == num_tiles - 1)) {
        const int64_t end = tile == num_tiles - 1 ? row + rows : first + kUnit * units;
        timed(p, &StageTicks::activation, [&] { activate_rows<Format>(p, panel, activated, end); });
        activated = end;
      }
    }
  }
}

template <typename Format>
void linear(const LinearParams& p) {
  const int64_t block = rows_per_block<Format>(p.M, p.N, p.K);
  for (int64_t row = 0; row < p.M; row += block)
    linear_block<Format>(p, row, p.M - row < block ? p.M - row : block);
}

template <typename Format>
void linear_residual_layer_norm(const LinearParams& p, const LayerNormParams& norm) {
  const int64_t block = rows_per_block<Format>(p.M, p.N, p.K);
  for (int64_t row = 0; row < p.M; row += block) {
    const int64_t rows = p.M - row < block ? p.M - row : block;
    linear_block<Format>(p, row, rows);
    LayerNormParams block_norm = norm;
    block_norm.x = block_norm.y = p.y + row * p.ldy;
    block_norm.ldx = block_norm.ldy = p.ldy;
    if (norm.residual) block_norm.residual = norm.residual + row * norm.ldr;
    if (norm.sum) block_norm.sum = norm.sum + row * norm.ldr;
    block_norm.M = rows;
    timed(p, &StageTicks::layer_norm, [&] { layer_norm(block_norm); });
  }
}

template <typename Format>
double tile_loop(const LinearParams& p, int64_t iterations) {
  using Tile = typename Format::Tile;
  check_scratch<Format>(p, Tile::kRows);
  [[maybe_unused]] const typename Tile::Registers registers{};
  const typename Format::Rows x = Format::rows(p, 0, Tile::kRows);
  const char* weight = static_cast<const char*>(p.packed_weight);
  for (int64_t i = 0; i < iterations; ++i)
    Format::template tile<Tile::kRows / Tile::kUnit, 1>(p, x, weight, 0, 0, Ahead{weight, 0});
  return 2.0 * static_cast<double>(iterations * Tile::kRows * Tile::kColumns * p.K);
}

template <typename Format>
constexpr LinearKernels linear_kernels(const char* isa) {
  return {
      .format = {.isa = isa,
                 .weight_type = Format::kWeightType,
                 .panel_columns = Format::Tile::kColumns,
                 .panel_bytes = Format::panel_bytes,
                 .pack_panel = Format::pack_panel},
      .tile_rows = Format::Tile::kRows,
      .scratch_bytes = Format::scratch_bytes,
      .block_rows = rows_per_block<Format>,
      .linear = linear<Format>,
      .linear_residual_layer_norm = linear_residual_layer_norm<Format>,
      .peak_loop = Format::peak_loop,
      .tile_loop = tile_loop<Format>,
  };
}
