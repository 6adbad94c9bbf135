// The micro-kernel: acc [MR, NR] += a [MR, K] b [K, NR] in float32, b being a panel of weights, K^T
// or V.
//
// It holds an MR x NR tile in registers and adds one outer product per k: MR broadcasts of a
// against NR / 16 vectors of b. Each sum is one chain of fused multiply-adds over ascending k
// whatever the tile's height, so a row's bits do not depend on the rows beside it.

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

// Lines to fetch into L2 while a tile is computed: kAheadLines every four steps of k, from `line`
// on, which then moves by `step` bytes (0 stays in place). L1 has no room: it holds this panel.
struct Ahead {
  const char* line = nullptr;
  int64_t step = 0;
};

// A Step says what a tile does between two loads of a's values: it takes kInputs of them from each
// row (one float, a pair of bfloat16, four codes), which factor() puts into every lane, and add()
// adds their products with as many values of each column.
//
//   Value, Weight      the types of a's values and of the panel's
//   Factor, Column     vectors of both
//   Sum                of the accumulators

// Adds a [kRows, num_steps * kInputs] times b to acc, b's steps ldb apart. Four base pointers, three
// rows each through the scaled index, keep the addresses of twelve rows in registers.
template <typename Step, int kAheadLines, int kRows, int kVectors>
MINIFUSE_INLINE inline void multiply_steps(const typename Step::Value* a, int64_t lda,
                                           const typename Step::Weight* b, int64_t ldb,
                                           int64_t num_steps,
                                           typename Step::Sum (&acc)[kRows][kVectors],
                                           Ahead& ahead) {
  constexpr int kGroups = (kRows + 2) / 3, kInputs = Step::kInputs;
  const typename Step::Value* base[kGroups];
  unrolled<kGroups>([&](auto g) MINIFUSE_INLINE { base[g.value] = a + 3 * g.value * lda; });
  const auto step = [&](int64_t k) MINIFUSE_INLINE {
    // Loads of this step stay behind the multiply-adds of the last one: the processor reorders them
    // anyway, while the compiler would spill accumulators to make room (three, GCC 12, AVX2).
    __asm__ volatile("" ::: "memory");
    typename Step::Column column[kVectors];
    Step::load_columns(b, column);
    b += ldb;
    unrolled<kRows>([&](auto i) MINIFUSE_INLINE {
      const typename Step::Factor x = Step::factor(base[i.value / 3] + (i.value % 3) * lda + k);
      unrolled<kVectors>(
          [&](auto j) MINIFUSE_INLINE { Step::add(acc[i.value][j.value], x, column[j.value]); });
    });
  };
  const int64_t K = num_steps * kInputs;
  int64_t k = 0;
  if constexpr (kAheadLines > 0) {
    for (; k + 4 <= K; k += 4) {
      unrolled<kAheadLines>(
          [&](auto l) MINIFUSE_INLINE { __builtin_prefetch(ahead.line + 64 * l.value, 0, 2); });
      ahead.line += ahead.step;
      unrolled<4 / kInputs>([&](auto u) MINIFUSE_INLINE { step(k + u.value * kInputs); });
    }
  }
  for (; k < K; k += kInputs) step(k);
}

// Float32 by float32, or by bfloat16 that is widened (a panel's whole width).
template <typename W>
struct FloatStep {
  using Value = float;
  using Weight = W;
  using Factor = f32x16;
  using Column = f32x16;
  using Sum = f32x16;
  static constexpr int kInputs = 1;

  template <int kVectors>
  MINIFUSE_INLINE static void load_columns(const float* b, f32x16 (&column)[kVectors]) {
    unrolled<kVectors>([&](auto j) MINIFUSE_INLINE { column[j.value] = load(b + 16 * j.value); });
  }
  template <int kVectors>
  MINIFUSE_INLINE static void load_columns(const uint16_t* b, f32x16 (&column)[kVectors]) {
    static_assert(kVectors == kTileVectors);
    widen_columns(b, column);
  }
  MINIFUSE_INLINE static f32x16 factor(const float* x) { return broadcast(*x); }
  MINIFUSE_INLINE static void add(f32x16& acc, f32x16 x, f32x16 column) {
    accumulate(acc, x, column);
  }
};

// Adds a [kRows, K] times b [K, kVectors * 16] to acc, in float32.
template <int kRows, int kVectors, int kAheadLines = 0, typename Weight>
MINIFUSE_INLINE inline void multiply_tile(const float* a, int64_t lda, const Weight* b, int64_t ldb,
                                          int64_t K, f32x16 (&acc)[kRows][kVectors],
                                          Ahead ahead = {}) {
  multiply_steps<FloatStep<Weight>, kAheadLines>(a, lda, b, ldb, K, acc, ahead);
}

// Calls f with the tile height as a compile-time constant.
template <int kRows = kTileRows, typename F>
inline void with_tile_rows(int64_t rows, F f) {
  if constexpr (kRows > 1) {
    if (rows != kRows) return with_tile_rows<kRows - 1>(rows, f);
  }
  f(Int<kRows>{});
}
