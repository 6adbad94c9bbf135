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

// Adds a [kRows, K] times b [K, kVectors * 16] to acc. Four base pointers, three rows each through
// the scaled index, keep the addresses of twelve rows in registers.
template <int kRows, int kVectors>
inline void multiply_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t K,
                          f32x16 (&acc)[kRows][kVectors]) {
  constexpr int kGroups = (kRows + 2) / 3;
  const float* base[kGroups];
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) base[g] = a + 3 * g * lda;
#pragma GCC unroll 2
  for (int64_t k = 0; k < K; ++k) {
    f32x16 column[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) column[j] = load(b + 16 * j);
    b += ldb;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const f32x16 x = broadcast(base[i / 3][(i % 3) * lda + k]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) acc[i][j] = fma(x, column[j], acc[i][j]);
    }
  }
}

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// Calls f with the tile height as a compile-time constant.
template <int kRows = kTileRows, typename F>
inline void with_tile_rows(int64_t rows, F f) {
  if constexpr (kRows > 1) {
    if (rows != kRows) return with_tile_rows<kRows - 1>(rows, f);
  }
  f(Int<kRows>{});
}

// One tile of y = x W^T + b; `columns` of the panel's NR exist.
template <int kRows>
void linear_tile(const float* x, int64_t ldx, const float* panel, const float* bias, float* y,
                 int64_t ldy, int64_t K, int64_t columns) {
  f32x16 acc[kRows][kTileVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kTileVectors; ++j) acc[i][j] = zero();
  multiply_tile(x, ldx, panel, kPanelColumns, K, acc);
#pragma GCC unroll 2
  for (int j = 0; j < kTileVectors; ++j) {
    const int64_t left = columns - 16 * j;
    if (left >= 16) {
      const f32x16 b = bias ? load(bias + 16 * j) : zero();
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) store(y + i * ldy + 16 * j, add(acc[i][j], b));
    } else if (left > 0) {
      const f32x16 b = bias ? load_first(bias + 16 * j, left) : zero();
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i)
        store_first(y + i * ldy + 16 * j, add(acc[i][j], b), left);
    }
  }
}

inline void activate_tile(float* y, int64_t ldy, int64_t rows, int64_t columns,
                          Activation activation) {
  const auto each = [=](auto f) {
    for (int64_t i = 0; i < rows; ++i) map_array(y + i * ldy, y + i * ldy, columns, f);
  };
  switch (activation) {
    case Activation::kGelu: each([](f32x16 v) { return vec_gelu(v); }); break;
    case Activation::kGeluNew: each([](f32x16 v) { return vec_gelu_new(v); }); break;
    case Activation::kRelu: each([](f32x16 v) { return max(v, zero()); }); break;
    case Activation::kNone: break;
  }
}

// Rows in a block: x and y of the block share half of a 1 MiB L2 with the panel that streams by.
// At least 48, so that a panel fetched from L3 is used four times and more.
inline int64_t rows_per_block(int64_t K, int64_t N) {
  constexpr int64_t kBlockFloats = 512 * 1024 / sizeof(float);
  const int64_t rows = kBlockFloats / (K + N) / kTileRows * kTileRows;
  return rows < 48 ? 48 : rows;
}

// Rows [row, row + rows) of y, all panels asked for. Tiles of nearly equal height: 13 rows are
// 7 + 6, because a tile of one row waits for the latency of its multiply-adds.
void linear_block(const LinearParams& p, int64_t row, int64_t rows) {
  const int64_t num_tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t panel = p.panel_begin; panel < p.panel_end; ++panel) {
    const int64_t column = panel * kPanelColumns;
    const int64_t columns = p.N - column < kPanelColumns ? p.N - column : kPanelColumns;
    const float* weight = p.packed_weight + panel * p.K * kPanelColumns;
    const float* bias = p.bias ? p.bias + column : nullptr;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t first = row + rows * tile / num_tiles;
      const int64_t last = row + rows * (tile + 1) / num_tiles;
      const float* x = p.x + first * p.ldx;
      float* y = p.y + first * p.ldy + column;
      with_tile_rows(last - first, [&](auto height) {
        linear_tile<height.value>(x, p.ldx, weight, bias, y, p.ldy, p.K, columns);
      });
      activate_tile(y, p.ldy, last - first, columns, p.activation);
    }
  }
}

void linear(const LinearParams& p) {
  const int64_t block = rows_per_block(p.K, p.N);
  for (int64_t row = 0; row < p.M; row += block)
    linear_block(p, row, p.M - row < block ? p.M - row : block);
}

void linear_residual_layer_norm(const LinearParams& p, const LayerNormParams& norm) {
  const int64_t block = rows_per_block(p.K, p.N);
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
