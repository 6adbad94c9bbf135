// y = activation(x W^T + b), and y = LayerNorm(x W^T + b + residual), on packed weights.
//
//   x [M, K] row-major    packed [panels, K, NR] (pack.inl.h)    y [M, N] row-major
//
// The micro-kernel holds an MR x NR tile of y in registers and adds one outer product per k: MR
// broadcasts of x against NR / 16 vectors of the panel. Each y[m][n] is one chain of fused
// multiply-adds over ascending k whatever the tile's height, so a row's bits do not depend on the
// rows beside it. K is never split: at K = 1,536 a panel of 32 columns is 192 KiB and streams from L2
// at NR floats per MR * NR / 16 multiply-adds, 10.7 bytes a cycle at two multiply-adds a cycle.
//
// Loops: block of rows (fits L2 with its output) > panel (fetched from L3 once a block) > tile.

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// f(Int<0>) .. f(Int<kCount - 1>). A loop that the compiler unrolls late leaves an array of
// accumulators in memory, stored once a round: indices that are constants from the start do not.
template <int kCount, int kFrom = 0, typename F>
MINIFUSE_INLINE inline void unrolled(F f) {
  if constexpr (kFrom < kCount) {
    f(Int<kFrom>{});
    unrolled<kCount, kFrom + 1>(f);
  }
}

// f(row, vector) over a tile.
template <int kRows, int kVectors, typename F>
MINIFUSE_INLINE inline void over_tile(F f) {
  unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
    unrolled<kVectors>([&](auto j) MINIFUSE_INLINE { f(i, j); });
  });
}

template <int kRows, int kVectors>
MINIFUSE_INLINE inline void clear(f32x16 (&acc)[kRows][kVectors]) {
  over_tile<kRows, kVectors>([&](auto i, auto j)
                                 MINIFUSE_INLINE { acc[i.value][j.value] = zero(); });
}

// Lines to fetch into L2 while a tile is computed: kAheadLines every four steps of k, from `line` on,
// which then moves by `step` floats (0 stays in place). L1 has no room: it holds this panel.
struct Ahead {
  const float* line = nullptr;
  int64_t step = 0;
};

// Adds a [kRows, K] times b [K, kVectors * 16] to acc. Four base pointers, three rows each through
// the scaled index, keep the addresses of twelve rows in registers.
template <int kRows, int kVectors, int kAheadLines = 0>
MINIFUSE_INLINE inline void multiply_tile(const float* a, int64_t lda, const float* b, int64_t ldb,
                                          int64_t K, f32x16 (&acc)[kRows][kVectors],
                                          Ahead ahead = {}) {
  constexpr int kGroups = (kRows + 2) / 3;
  const float* base[kGroups];
  unrolled<kGroups>([&](auto g) MINIFUSE_INLINE { base[g.value] = a + 3 * g.value * lda; });
  const auto step = [&](int64_t k) MINIFUSE_INLINE {
    // Loads of this step stay behind the multiply-adds of the last one: the processor reorders them
    // anyway, while the compiler would spill accumulators to make room (three, GCC 12, AVX2).
    __asm__ volatile("" ::: "memory");
    f32x16 column[kVectors];
    unrolled<kVectors>([&](auto j) MINIFUSE_INLINE { column[j.value] = load(b + 16 * j.value); });
    b += ldb;
    unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
      const f32x16 x = broadcast(base[i.value / 3][(i.value % 3) * lda + k]);
      unrolled<kVectors>(
          [&](auto j) MINIFUSE_INLINE { accumulate(acc[i.value][j.value], x, column[j.value]); });
    });
  };
  int64_t k = 0;
  if constexpr (kAheadLines > 0) {
    for (; k + 4 <= K; k += 4) {
      unrolled<kAheadLines>(
          [&](auto l) MINIFUSE_INLINE { __builtin_prefetch(ahead.line + 16 * l.value, 0, 2); });
      ahead.line += ahead.step;
      unrolled<4>([&](auto u) MINIFUSE_INLINE { step(k + u.value); });
    }
  }
  for (; k < K; ++k) step(k);
}

// Calls f with the tile height as a compile-time constant.
template <int kRows = kTileRows, typename F>
inline void with_tile_rows(int64_t rows, F f) {
  if constexpr (kRows > 1) {
    if (rows != kRows) return with_tile_rows<kRows - 1>(rows, f);
  }
  f(Int<kRows>{});
}

// One tile of y = x W^T + b; `columns` of the panel's NR exist.
template <int kRows, int kAheadLines>
void linear_tile(const float* x, int64_t ldx, const float* panel, const float* bias, float* y,
                 int64_t ldy, int64_t K, int64_t columns, Ahead ahead) {
  f32x16 acc[kRows][kTileVectors];
  clear(acc);
  multiply_tile<kRows, kTileVectors, kAheadLines>(x, ldx, panel, kPanelColumns, K, acc, ahead);
  // The next tile's first lines, while this one is stored: half a percent at K = 384.
  for (int i = 0; i < kRows; ++i) __builtin_prefetch(x + (kRows + i) * ldx);
  for (int i = 0; i < 16; ++i) __builtin_prefetch(panel + 16 * i);
  unrolled<kTileVectors>([&](auto j) MINIFUSE_INLINE {
    const int64_t left = columns - 16 * j.value;
    float* out = y + 16 * j.value;
    if (left >= 16) {
      const f32x16 b = bias ? load(bias + 16 * j.value) : zero();
      unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
        store(out + i.value * ldy, add(acc[i.value][j.value], b));
      });
    } else if (left > 0) {
      const f32x16 b = bias ? load_first(bias + 16 * j.value, left) : zero();
      unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
        store_first(out + i.value * ldy, add(acc[i.value][j.value], b), left);
      });
    }
  });
}

// Columns of y that a panel holds: fewer than NR in the last one.
inline int64_t panel_width(const LinearParams& p, int64_t panel) {
  const int64_t left = p.N - panel * kPanelColumns;
  return left < kPanelColumns ? left : kPanelColumns;
}

// Tiles that go through the activation together: its constants are loaded once for them and its
// chains of dependent multiply-adds start once, while their 64 or 128 bytes a row are still in L1.
constexpr int64_t kActivatedTiles = 4;

// Rows [begin, end) of a panel's columns: rows in pairs and whole panels, to keep the vectors of
// vec_gelu in step.
void activate_rows(const LinearParams& p, int64_t panel, int64_t begin, int64_t end) {
  const int64_t columns = panel_width(p, panel), ldy = p.ldy, rows = end - begin;
  float* y = p.y + begin * ldy + panel * kPanelColumns;
  const Activation activation = p.activation;
  int64_t i = 0;
  if (activation == Activation::kGelu && columns == kPanelColumns) {
    constexpr int kPairs = kMapVectors / kTileVectors;
    for (; i + kPairs <= rows; i += kPairs) {
      f32x16 v[kMapVectors];
      for (int j = 0; j < kMapVectors; ++j)
        v[j] = load(y + (i + j / kTileVectors) * ldy + 16 * (j % kTileVectors));
      vec_gelu(v);
      for (int j = 0; j < kMapVectors; ++j)
        store(y + (i + j / kTileVectors) * ldy + 16 * (j % kTileVectors), v[j]);
    }
  }
  for (; i < rows; ++i) activate_array(y + i * ldy, y + i * ldy, columns, activation);
}

// Rows in a block: x and y of a block take about 1.5 MiB. A panel serves every tile of the block, so
// more rows fetch the weights less often, and x and y stream well from beyond L2: half the size cost
// 3 % of an encode, twice the size gained nothing (Zen 5, 1 MiB L2).
inline int64_t rows_per_block(int64_t M, int64_t K, int64_t N) {
  constexpr int64_t kBlockFloats = 1536 * 1024 / sizeof(float);
  const int64_t most = kBlockFloats / (K + N) < 48 ? 48 : kBlockFloats / (K + N);
  return block_of(M, most, kTileRows);
}

// One tile at `tile`, which also fetches kAheadLines lines of the next panel every four steps of k.
template <int kAheadLines>
inline void linear_tile_of_block(const LinearParams& p, int64_t first, int64_t rows, int64_t panel,
                                 int64_t tile) {
  const int64_t panel_floats = p.K * kPanelColumns, fetched_floats = p.K / 4 * 16 * kAheadLines;
  const int64_t column = panel * kPanelColumns;
  const float* weight = p.packed_weight + panel * panel_floats;
  const float* bias = p.bias ? p.bias + column : nullptr;
  const bool fetches = tile * fetched_floats < panel_floats;
  const Ahead ahead = fetches
                          ? Ahead{weight + panel_floats + tile * fetched_floats, 16 * kAheadLines}
                          : Ahead{weight, 0};
  float* y = p.y + first * p.ldy + column;
  with_tile_rows(rows, [&](auto height) {
    linear_tile<height.value, kAheadLines>(p.x + first * p.ldx, p.ldx, weight, bias, y, p.ldy, p.K,
                                           panel_width(p, panel), ahead);
  });
}

// Rows [row, row + rows) of y, all panels asked for. Tiles of nearly equal height: 13 rows are
// 7 + 6, because a tile of one row waits for the latency of its multiply-adds.
//
// The tiles of a panel fetch the panel behind it into L2: a model's weights exceed the last-level
// cache, and without this the first tile of each waits for memory. One tile alone (a query) fetches
// all of it, two or three a half each, more a line every four steps until it is there.
void linear_block(const LinearParams& p, int64_t row, int64_t rows) {
  constexpr int kPanelLines = kPanelColumns / 4;
  const int64_t num_tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t panel = p.panel_begin; panel < p.panel_end; ++panel) {
    int64_t activated = row;  // rows of this panel before it have been through the activation
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t first = row + rows * tile / num_tiles;
      const int64_t height = row + rows * (tile + 1) / num_tiles - first;
      if (num_tiles == 1)
        linear_tile_of_block<kPanelLines>(p, first, height, panel, tile);
      else if (num_tiles < 4)
        linear_tile_of_block<kPanelLines / 2>(p, first, height, panel, tile);
      else
        linear_tile_of_block<1>(p, first, height, panel, tile);
      if (p.activation != Activation::kNone &&
          (tile % kActivatedTiles == kActivatedTiles - 1 || tile == num_tiles - 1)) {
        const int64_t end = first + height;
        activate_rows(p, panel, activated, end);
        activated = end;
      }
    }
  }
}

void linear(const LinearParams& p) {
  const int64_t block = rows_per_block(p.M, p.K, p.N);
  for (int64_t row = 0; row < p.M; row += block)
    linear_block(p, row, p.M - row < block ? p.M - row : block);
}

void linear_residual_layer_norm(const LinearParams& p, const LayerNormParams& norm) {
  const int64_t block = rows_per_block(p.M, p.K, p.N);
  for (int64_t row = 0; row < p.M; row += block) {
    const int64_t rows = p.M - row < block ? p.M - row : block;
    linear_block(p, row, rows);
    LayerNormParams block_norm = norm;
    block_norm.x = block_norm.y = p.y + row * p.ldy;
    block_norm.ldx = block_norm.ldy = p.ldy;
    if (norm.residual) block_norm.residual = norm.residual + row * norm.ldr;
    block_norm.M = rows;
    layer_norm(block_norm);
  }
}
