// y = (x + residual - mean) / sqrt(var + eps) * gamma + beta over rows of H columns.
//
// Two passes over a row that stays in L1 (1.5 KiB at H = 384): the first sums, the second sums the
// differences d = x - mean and their squares. The sum of d, zero but for rounding, corrects both
// the mean and the variance (Chan, Golub and LeVeque 1983); it is subtracted apart, because added
// to a mean of 100 deviations it would be rounded away. Sums run over 16 lanes, lane i taking the
// columns i, i + 16, ..., joined by the fixed tree of reduce_add.
//
// Four rows go together: one row alone is a chain of dependent additions.

constexpr int kNormRows = 4;

inline f32x16 load_upto(const float* p, int64_t n) { return n >= 16 ? load(p) : load_first(p, n); }

inline void store_upto(float* p, f32x16 v, int64_t n) {
  if (n >= 16)
    store(p, v);
  else
    store_first(p, v, n);
}

// Rows of x + residual, already in y, normalised in place.
template <int kRows>
inline void normalize_rows(float* y, int64_t ldy, const float* gamma, const float* beta, float eps,
                           int64_t H, const f32x16 (&sum)[kRows]) {
  const float width = static_cast<float>(H);
  float mean[kRows], correction[kRows], rstd[kRows];
  f32x16 sum_d[kRows], sum_d2[kRows];
  for (int r = 0; r < kRows; ++r) {
    mean[r] = reduce_add(sum[r]) / width;
    sum_d[r] = zero();
    sum_d2[r] = zero();
  }
  for (int64_t c = 0; c < H; c += 16) {
    for (int r = 0; r < kRows; ++r) {
      f32x16 d;
      if (H - c >= 16)
        d = sub(load(y + r * ldy + c), broadcast(mean[r]));
      else
        d = keep_first(sub(load_first(y + r * ldy + c, H - c), broadcast(mean[r])), H - c, 0.0f);
      sum_d[r] = add(sum_d[r], d);
      sum_d2[r] = fma(d, d, sum_d2[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const float total_d = reduce_add(sum_d[r]);
    const float var = (reduce_add(sum_d2[r]) - total_d * total_d / width) / width;
    correction[r] = total_d / width;
    // In a row of equal columns the difference may round to less than nothing.
    rstd[r] = 1.0f / scalar_sqrt((var < 0.0f ? 0.0f : var) + eps);
  }
  for (int64_t c = 0; c < H; c += 16) {
    const bool whole = H - c >= 16;
    const f32x16 g = whole ? load(gamma + c) : load_first(gamma + c, H - c);
    const f32x16 b = whole ? load(beta + c) : load_first(beta + c, H - c);
    for (int r = 0; r < kRows; ++r) {
      float* out = y + r * ldy + c;
      const f32x16 v = whole ? load(out) : load_first(out, H - c);
      const f32x16 d = sub(sub(v, broadcast(mean[r])), broadcast(correction[r]));
      const f32x16 unit = mul(d, broadcast(rstd[r]));
      const f32x16 result = fma(unit, g, b);
      if (whole)
        store(out, result);
      else
        store_first(out, result, H - c);
    }
  }
}

// `sum_at(r, c, n)` gives 16 columns of x + residual of row r from column c, n < 16 at the tail.
template <int kRows, typename SumAt>
inline void layer_norm_rows(float* y, int64_t ldy, const float* gamma, const float* beta, float eps,
                            int64_t H, SumAt sum_at) {
  f32x16 sum[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = zero();
  int64_t c = 0;
  for (; c + 16 <= H; c += 16) {
    for (int r = 0; r < kRows; ++r) {
      const f32x16 v = sum_at(r, c, 16);
      store(y + r * ldy + c, v);
      sum[r] = add(sum[r], v);
    }
  }
  if (c < H) {
    for (int r = 0; r < kRows; ++r) {
      const f32x16 v = sum_at(r, c, H - c);
      store_first(y + r * ldy + c, v, H - c);
      sum[r] = add(sum[r], v);
    }
  }
  normalize_rows<kRows>(y, ldy, gamma, beta, eps, H, sum);
}

// Rows of any source, four at a time and then one by one. `sum_at(row, c, n)` as above.
template <typename SumAt>
inline void layer_norm_all(float* y, int64_t ldy, const float* gamma, const float* beta, float eps,
                           int64_t M, int64_t H, SumAt sum_at) {
  int64_t row = 0;
  for (; row + kNormRows <= M; row += kNormRows)
    layer_norm_rows<kNormRows>(
        y + row * ldy, ldy, gamma, beta, eps, H,
        [&](int64_t r, int64_t c, int64_t n) { return sum_at(row + r, c, n); });
  for (; row < M; ++row)
    layer_norm_rows<1>(y + row * ldy, ldy, gamma, beta, eps, H,
                       [&](int64_t, int64_t c, int64_t n) { return sum_at(row, c, n); });
}

// The same for RMSNorm: y = v / sqrt(mean(v^2) + eps) * gamma.
template <int kRows, typename SumAt>
inline void rms_norm_rows(float* y, int64_t ldy, const float* gamma, float eps, int64_t H,
                          SumAt sum_at) {
  f32x16 squares[kRows];
  for (int r = 0; r < kRows; ++r) squares[r] = zero();
  for (int64_t c = 0; c < H; c += 16)
    for (int r = 0; r < kRows; ++r) {
      const f32x16 v = sum_at(r, c, H - c);
      store_upto(y + r * ldy + c, v, H - c);
      squares[r] = fma(v, v, squares[r]);
    }
  float rstd[kRows];
  for (int r = 0; r < kRows; ++r)
    rstd[r] = 1.0f / scalar_sqrt(reduce_add(squares[r]) / static_cast<float>(H) + eps);
  for (int64_t c = 0; c < H; c += 16) {
    const f32x16 g = load_upto(gamma + c, H - c);
    for (int r = 0; r < kRows; ++r) {
      float* out = y + r * ldy + c;
      store_upto(out, mul(mul(load_upto(out, H - c), broadcast(rstd[r])), g), H - c);
    }
  }
}

template <typename SumAt>
inline void norm_all(const LayerNormParams& p, SumAt sum_at) {
  if (!p.is_rms) return layer_norm_all(p.y, p.ldy, p.gamma, p.beta, p.eps, p.M, p.H, sum_at);
  int64_t row = 0;
  for (; row + kNormRows <= p.M; row += kNormRows)
    rms_norm_rows<kNormRows>(
        p.y + row * p.ldy, p.ldy, p.gamma, p.eps, p.H,
        [&](int64_t r, int64_t c, int64_t n) { return sum_at(row + r, c, n); });
  for (; row < p.M; ++row)
    rms_norm_rows<1>(p.y + row * p.ldy, p.ldy, p.gamma, p.eps, p.H,
                     [&](int64_t, int64_t c, int64_t n) { return sum_at(row, c, n); });
}

void layer_norm(const LayerNormParams& p) {
  const auto x_at = [&](int64_t row, int64_t c, int64_t n) {
    return load_upto(p.x + row * p.ldx + c, n);
  };
  const auto sum_at = [&](int64_t row, int64_t c, int64_t n) {
    return add(x_at(row, c, n), load_upto(p.residual + row * p.ldr + c, n));
  };
  if (!p.residual) {
    norm_all(p, x_at);
  } else if (!p.sum) {
    norm_all(p, sum_at);
  } else {
    norm_all(p, [&](int64_t row, int64_t c, int64_t n) {
      const f32x16 v = sum_at(row, c, n);
      store_upto(p.sum + row * p.ldr + c, v, n);
      return v;
    });
  }
}
