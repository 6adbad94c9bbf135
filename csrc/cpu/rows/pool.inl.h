// One vector per sentence from its rows x [num_rows, H], and the rows' L2 normalisation.
//
//   mean           sum_i x_i / n                      cls         the first row
//   mean_sqrt_len  sum_i x_i / sqrt(n)                lasttoken   the last row
//   weightedmean   sum_i w_i x_i / sum_i w_i          max         per column
//
// Rows that the mask leaves out do not count; w_i is the row's place in the sentence, from 1. Rows
// are added in ascending order, per column, so that the batch around a sentence changes nothing.

inline bool keeps_row(const PoolParams& p, int64_t row) {
  return row >= p.first_row && (!p.mask || p.mask[row]);
}

// The highest of 16 columns from c on among the kept rows [first, last], which both are kept; NaN where
// a row has one. max alone would lose those of any row but the first.
inline f32x16 highest(const PoolParams& p, int64_t first, int64_t last, int64_t c) {
  constexpr float kInfinity = __builtin_inff();
  const auto numbers_of = [](f32x16 v) {
    return greater_mask(v, broadcast(-kInfinity)) | greater_mask(broadcast(kInfinity), v);
  };
  f32x16 result = load_upto(p.x + first * p.ldx + c, p.H - c);
  uint32_t numbers = numbers_of(result);
  for (int64_t row = first + 1; row <= last; ++row) {
    if (!keeps_row(p, row)) continue;
    const f32x16 v = load_upto(p.x + row * p.ldx + c, p.H - c);
    result = max(v, result);
    numbers &= numbers_of(v);
  }
  if (numbers == 0xFFFF) return result;
  alignas(64) float lanes[16];
  store(lanes, result);
  for (int i = 0; i < 16; ++i)
    if (!(numbers >> i & 1)) lanes[i] = __builtin_nanf("");
  return load(lanes);
}

void pool(const PoolParams& p) {
  int64_t count = 0, first = -1, last = -1;
  float weight_sum = 0.0f;
  for (int64_t row = 0; row < p.num_rows; ++row) {
    if (!keeps_row(p, row)) continue;
    if (first < 0) first = row;
    last = row;
    ++count;
    weight_sum += static_cast<float>(row + 1);
  }
  const bool weighted = p.pooling == Pooling::kWeightedMean;
  float divisor = 1.0f;
  if (p.pooling == Pooling::kMean) divisor = static_cast<float>(count);
  if (p.pooling == Pooling::kMeanSqrtLen) divisor = scalar_sqrt(static_cast<float>(count));
  if (weighted) divisor = weight_sum;

  for (int64_t c = 0; c < p.H; c += 16) {
    const int64_t n = p.H - c;
    f32x16 result = zero();
    if (count > 0) {
      switch (p.pooling) {
        case Pooling::kCls:
          result = load_upto(p.x + first * p.ldx + c, n);
          break;
        case Pooling::kLastToken:
          result = load_upto(p.x + last * p.ldx + c, n);
          break;
        case Pooling::kMax:
          result = highest(p, first, last, c);
          break;
        case Pooling::kMean:
        case Pooling::kMeanSqrtLen:
        case Pooling::kWeightedMean:
          for (int64_t row = first; row <= last; ++row) {
            if (!keeps_row(p, row)) continue;
            const float w = weighted ? static_cast<float>(row + 1) : 1.0f;
            result = fma(load_upto(p.x + row * p.ldx + c, n), broadcast(w), result);
          }
          result = div(result, broadcast(divisor));
          break;
      }
    }
    if (n >= 16)
      store(p.y + c, result);
    else
      store_first(p.y + c, result, n);
  }
}

void l2_normalize(float* x, int64_t ldx, int64_t num_rows, int64_t H) {
  for (int64_t row = 0; row < num_rows; ++row) {
    float* y = x + row * ldx;
    f32x16 squares = zero();
    for (int64_t c = 0; c < H; c += 16) {
      const f32x16 v = load_upto(y + c, H - c);
      squares = fma(v, v, squares);
    }
    const float norm = scalar_sqrt(reduce_add(squares));
    const f32x16 divisor = broadcast(norm <= 1e-12f ? 1e-12f : norm);  // NaN stays NaN
    map_array(y, y, H, each([=](f32x16 v) { return div(v, divisor); }));
  }
}
