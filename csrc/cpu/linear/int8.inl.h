// Weights in 8 bits with a scale per output channel, rows of x in 8 bits with a scale and a zero
// point each, both for every group g of kInt8Group inputs apart:
//
//   y = b + sum_g scale[m][g] weight_scale[g][n] (sum_{k in g} (q[m][k] - zero[m][g]) w[n][k])
//
//   v = x[m][k] input_scale[k]         smoothing (SmoothQuant, Xiao et al. 2023): the weights were
//                                      divided by it, so that no channel of x fills the range alone
//   scale = (max - min) / 255          over the row's group and 0: never over a batch
//   q = clamp(round(v / scale) + zero, 0, 255),   zero = round(-min / scale)
//
//   panel p:   k = 0:  w[pNR][0..3] w[pNR+1][0..3] ... w[pNR+NR-1][0..3]     64 bytes a vector
//              k = 4:  w[pNR][4..7] ...
//
// The dot_*.h header says what four steps of k are: weights64, dot(). A group's sum of q w
// is exact in int32 and, below 2^24, in float32 too, so every instruction set gives the same
// integers and, with the same float32 arithmetic behind them, the same bits.

struct CodeStep {
  using Value = uint8_t;
  using Weight = int8_t;
  using Factor = i32x16;
  using Column = weights64;
  using Sum = i32x16;
  static constexpr int kInputs = 4;

  template <int kVectors>
  MINIFUSE_INLINE static void load_columns(const int8_t* b, weights64 (&column)[kVectors]) {
    unrolled<kVectors>([&](auto j)
                           MINIFUSE_INLINE { column[j.value] = load_weights(b + 64 * j.value); });
  }
  MINIFUSE_INLINE static i32x16 factor(const uint8_t* x) { return broadcast_codes(x); }
  MINIFUSE_INLINE static void add(i32x16& acc, const i32x16& x, const weights64& column) {
    dot(acc, x, column);
  }
};

struct Int8 {
  static constexpr WeightType kWeightType = WeightType::kInt8;
  using Tile = VectorTile;
  static constexpr int kPanelLines = Tile::kColumns * 4 / 64;
  static_assert(255 * 127 * kInt8Group < 1 << 24);

  // A group of a row comes back as v = scale code + offset, offset = -scale zero.
  struct Scale {
    float scale, offset;
  };
  struct Rows {
    const uint8_t* codes;  // [rows, stride]
    int64_t stride;
    const Scale* scales;  // [rows, groups]
    int64_t groups;
    Rows from(int64_t row) const {
      return {codes + row * stride, stride, scales + row * groups, groups};
    }
  };

  // An odd number of cache lines (types.h).
  static int64_t row_stride(int64_t K) { return ((K + 63) / 64 | 1) * 64; }
  // The codes of every row, then the scales of every row.
  static int64_t scratch_bytes(int64_t M, int64_t K) {
    return scratch_rows(M) * (row_stride(K) + int8_groups(K) * int64_t{sizeof(Scale)});
  }
  static int64_t panel_bytes(int64_t K) { return round_up(K, 4) * Tile::kColumns; }

  // Sixteen values before they are rounded, zeros past K.
  static f32x16 scaled(const float* x, const float* input_scale, int64_t k, int64_t K) {
    const f32x16 v = load_upto(x + k, K - k);
    return input_scale ? mul(v, load_upto(input_scale + k, K - k)) : v;
  }

  // Conversion of values to codes: code = value inverse + zero_point.
  struct Range {
    float inverse, zero_point;
    Scale scale;
  };

  // Returns the range of one group of a row. A NaN or an infinity anywhere makes the scale NaN and
  // so the whole row of y, as it would in float32.
  static Range range_of(const float* x, const float* input_scale, int64_t K) {
    f32x16 low = zero(), high = zero(), poison = zero();
    for (int64_t k = 0; k < K; k += 16) {
      const f32x16 v = scaled(x, input_scale, k, K);
      low = min(v, low);
      high = max(v, high);
      poison = fma(v, zero(), poison);
    }
    const float lowest = -reduce_max(sub(zero(), low));
    const float range = reduce_max(high) - lowest;
    // Below: so small that its inverse overflows, and as good as zero beside any bias.
    const bool is_flat = !(range > 1e-30f && range <= 3.402823466e+38f);
    const float inverse = is_flat ? 0.0f : 255.0f / range;
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float zero_point = (kRound - lowest * inverse) - kRound;
    const float scale = (range <= 1e-30f ? 0.0f : range / 255.0f) + reduce_add(poison);
    return {inverse, zero_point, {scale, -(scale * zero_point)}};
  }

  // K codes, rounded up to the next 16.
  static void store_row(const float* x, const float* input_scale, int64_t K, const Range& range,
                        uint8_t* codes) {
    const f32x16 factor = broadcast(range.inverse), shift = broadcast(range.zero_point);
    for (int64_t k = 0; k < K; k += 16) {
      const f32x16 v = fma(scaled(x, input_scale, k, K), factor, shift);
      store_codes(codes + k, min(max(v, zero()), broadcast(255.0f)));
    }
  }

  static Scale quantize(const float* x, const float* input_scale, int64_t K, uint8_t* codes) {
    const Range range = range_of(x, input_scale, K);
    store_row(x, input_scale, K, range, codes);
    return range.scale;
  }

  static Rows rows(const LinearParams& p, int64_t row, int64_t rows) {
    const int64_t stride = row_stride(p.K), groups = int8_groups(p.K);
    uint8_t* codes = static_cast<uint8_t*>(p.scratch);
    Scale* scales = reinterpret_cast<Scale*>(codes + scratch_rows(rows) * stride);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t k = g * kInt8Group, left = p.K - k;
        scales[i * groups + g] =
            quantize(p.x + (row + i) * p.ldx + k, p.input_scale ? p.input_scale + k : nullptr,
                     left < kInt8Group ? left : kInt8Group, codes + i * stride + k);
      }
    return {codes, stride, scales, groups};
  }

  // Adds the products of the codes [begin, end) to acc.
  template <int kRows, int kAheadLines>
  MINIFUSE_INLINE inline static void multiply(const Rows& rows, const int8_t* columns,
                                              int64_t begin, int64_t end,
                                              i32x16 (&acc)[kRows][Tile::kVectors], Ahead& ahead) {
    multiply_steps<CodeStep, kAheadLines>(rows.codes + begin, rows.stride,
                                          columns + begin * Tile::kColumns, 4 * Tile::kColumns,
                                          (end - begin + 3) / 4, acc, ahead);
  }

  // A group's sums of some rows are added to the bias, or to what the groups before it have left in y.
  // panel, first: of the first row's first column.
  template <int kRows>
  MINIFUSE_INLINE static void add_group(const LinearParams& p, const Rows& rows, int64_t panel,
                                        int64_t first, int64_t g,
                                        const i32x16 (&acc)[kRows][Tile::kVectors]) {
    const int64_t column = panel * Tile::kColumns, padded_columns = round_up(p.N, Tile::kColumns);
    alignas(64) static constexpr float kNoBias[Tile::kColumns] = {};
    float* y = p.y + first * p.ldy + column;
    const float* before = g > 0 ? y : p.bias ? p.bias + column : kNoBias;
    const int64_t before_stride = g > 0 ? p.ldy : 0;
    struct OfColumns {
      f32x16 scale, sum;
    };
    store_tile<kRows, Tile::kVectors>(
        y, p.ldy, panel_width<Int8>(p, panel),
        [&](auto j, int64_t) MINIFUSE_INLINE {
          const int64_t at = g * padded_columns + column + 16 * j.value;
          return OfColumns{load(p.weight_scale + at), load(p.weight_sum + at)};
        },
        [&](auto i, auto j, int64_t left, const OfColumns& columns) MINIFUSE_INLINE {
          const Scale row = rows.scales[i.value * rows.groups + g];
          const float* sums = before + i.value * before_stride + 16 * j.value;
          return fma(to_float(acc[i.value][j.value]), mul(broadcast(row.scale), columns.scale),
                     fma(broadcast(row.offset), columns.sum, load_upto(sums, left)));
        });
  }

  template <int kRows, int kAheadLines>
  __attribute__((noinline)) static void tile(const LinearParams& p, Rows rows, const char* weight,
                                             int64_t panel, int64_t first, Ahead ahead) {
    for (int64_t g = 0; g < rows.groups; ++g) {
      const int64_t begin = g * kInt8Group;
      i32x16 acc[kRows][Tile::kVectors];
      over_tile<kRows, Tile::kVectors>(
          [&](auto i, auto j) MINIFUSE_INLINE { acc[i.value][j.value] = zero_sums(); });
      multiply<kRows, kAheadLines>(rows, reinterpret_cast<const int8_t*>(weight), begin,
                                   p.K - begin < kInt8Group ? p.K : begin + kInt8Group, acc, ahead);
      add_group<kRows>(p, rows, panel, first, g, acc);
    }
  }

  static void pack_panel(const void* weight, int64_t ldw, int64_t num_rows, int64_t K,
                         void* panel) {
    const int8_t* w = static_cast<const int8_t*>(weight);
    int8_t* out = static_cast<int8_t*>(panel);
    for (int64_t first = 0; first < K; first += 4)
      for (int64_t c = 0; c < Tile::kColumns; ++c)
        for (int64_t k = first; k < first + 4; ++k)
          *out++ = c < num_rows && k < K ? w[c * ldw + k] : int8_t{0};
  }

  static double peak_loop(int64_t iterations, float* sink) {
    constexpr int kAccumulators = Tile::kRows * Tile::kVectors;
    alignas(64) const int8_t codes[64] = {};
    alignas(64) const uint8_t values[64] = {};
    i32x16 acc[kAccumulators];
    unrolled<kAccumulators>([&](auto i) MINIFUSE_INLINE { acc[i.value] = zero_sums(); });
    const weights64 weights = load_weights(codes);
    const i32x16 x = broadcast_codes(values);
    for (int64_t it = 0; it < iterations; ++it)
      unrolled<kAccumulators>([&](auto i) MINIFUSE_INLINE { dot(acc[i.value], x, weights); });
    f32x16 total = load(sink);
    unrolled<kAccumulators>([&](auto i)
                                MINIFUSE_INLINE { total = add(total, to_float(acc[i.value])); });
    store(sink, total);
    return 2.0 * 64 * kAccumulators * static_cast<double>(iterations);
  }
};
