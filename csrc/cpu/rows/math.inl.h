// exp, erf and the activations on f32x16. Every instruction set evaluates the same polynomials with
// the same operations, so the bits agree. tests/kernels/test_vector_math.py sweeps the stated errors.

// exp(x) for x <= 88.3, at most 1.5 ulp; below -87.3 it stays at the smallest normal, 1.2e-38. NaN
// stays NaN, because max gives its second operand then.
// x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by a degree-6 minimax polynomial (error 3e-9).
inline f32x16 vec_exp(f32x16 x) {
  // Adding 1.5 * 2^23 + 127 rounds to an integer and leaves the biased exponent in the low bits.
  constexpr float kMagic = 12582912.0f + 127.0f;
  x = max(broadcast(-87.336544f), x);
  const f32x16 shifted = fma(x, broadcast(1.44269504f), broadcast(kMagic));
  const f32x16 n = sub(shifted, broadcast(kMagic));
  f32x16 r = fma(n, broadcast(-0.693359375f), x);  // ln 2, high part: exact products
  r = fma(n, broadcast(2.12194440e-4f), r);  // and the rest
  f32x16 p = broadcast(0.001381459878757596f);
  p = fma(p, r, broadcast(0.008368716575205326f));
  p = fma(p, r, broadcast(0.04166838899254799f));
  p = fma(p, r, broadcast(0.1666652113199234f));
  p = fma(p, r, broadcast(0.4999999403953552f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return mul(p, shift_into_exponent(shifted));
}

// erf(x / sqrt 2), absolute error at most 2.1e-7, exactly 1 in magnitude beyond |x| = 5.4.
// x times a degree-14 polynomial in w = 2 (x / 5.4)^2 - 1. In w, which stays in [-1, 1], no
// coefficient exceeds 0.27, so nothing cancels and no division is needed (in x^2 it would).
//
// Horner's rule is one chain of 14 multiply-adds of 4 cycles each, so several vectors go in step:
// one at a time cost 23 cycles a vector on Zen 5, where the scheduler holds too few of them at
// once.
template <int kCount>
inline void vec_erf_over_sqrt2(const f32x16 (&x)[kCount], f32x16 (&erf)[kCount]) {
  constexpr float kBound = 5.4f;
  constexpr float kCoefficients[15] = {
      0.26185622811317444f,   -0.13065610826015472f,  0.09699918329715729f,
      -0.07841362804174423f,  0.0642331913113594f,    -0.05149291455745697f,
      0.03929028660058975f,   -0.027926640585064888f, 0.01930239424109459f,
      -0.013430675491690636f, 0.0073178415186703205f, -0.0023728215601295233f,
      0.0017498700181022286f, -0.002056737430393696f, 0.0007857167511247098f};
  f32x16 w[kCount];
  f32x16(&p)[kCount] = erf;
#pragma GCC unroll 8
  for (int j = 0; j < kCount; ++j) {
    const f32x16 square = min(mul(x[j], x[j]), broadcast(kBound * kBound));
    w[j] = fma(square, broadcast(2.0f / (kBound * kBound)), broadcast(-1.0f));
    p[j] = broadcast(kCoefficients[14]);
  }
#pragma GCC unroll 14
  for (int i = 13; i >= 0; --i) {
#pragma GCC unroll 8
    for (int j = 0; j < kCount; ++j) p[j] = fma(p[j], w[j], broadcast(kCoefficients[i]));
  }
#pragma GCC unroll 8
  for (int j = 0; j < kCount; ++j)
    erf[j] = max(min(mul(x[j], p[j]), broadcast(1.0f)), broadcast(-1.0f));
}

// GELU(x) = x Phi(x) = x/2 (1 + erf(x / sqrt 2)).
template <int kCount>
inline void vec_gelu(f32x16 (&x)[kCount]) {
  f32x16 erf[kCount];
  vec_erf_over_sqrt2(x, erf);
#pragma GCC unroll 8
  for (int j = 0; j < kCount; ++j) {
    const f32x16 half = mul(x[j], broadcast(0.5f));
    x[j] = fma(half, erf[j], half);
  }
}

// gelu_new(x) = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3); tanh(u) = 1 - 2/(e^(2u) + 1).
inline f32x16 vec_gelu_new(f32x16 x) {
  const f32x16 cubic = fma(mul(mul(x, x), x), broadcast(0.044715f), x);
  const f32x16 u2 =
      max(min(mul(cubic, broadcast(1.5957691216f)), broadcast(60.0f)), broadcast(-60.0f));
  const f32x16 sigmoid = div(broadcast(1.0f), add(broadcast(1.0f), vec_exp(sub(zero(), u2))));
  return mul(x, sigmoid);  // x/2 (1 + 1 - 2/(e^(2u) + 1)) = x / (1 + e^(-2u))
}

// x between -bound and bound; NaN stays NaN, because max and min give their second operand then.
inline f32x16 clamp(f32x16 x, float bound) {
  return min(broadcast(bound), max(broadcast(-bound), x));
}

// 1 / (1 + e^-x), at most 3 ulp; it goes no further down than e^-87, the smallest normal number.
inline f32x16 vec_sigmoid(f32x16 x) {
  x = clamp(x, 87.0f);
  return div(broadcast(1.0f), add(broadcast(1.0f), vec_exp(sub(zero(), x))));
}

// tanh(x), at most 6 ulp; within one of 1 in magnitude beyond |x| = 9.1. x P(w) / Q(w) in w = (x / 9.1)^2,
// whose coefficients are positive: nothing cancels, and near 0 it is x.
inline f32x16 vec_tanh(f32x16 x) {
  constexpr float kBound = 9.1f;
  constexpr float kP[5] = {1.0f, 11.075371742248535f, 23.91734504699707f, 11.630218505859375f,
                           0.6196293830871582f};
  constexpr float kQ[5] = {1.0f, 38.678688049316406f, 177.24720764160156f, 185.85491943359375f,
                           36.226524353027344f};
  x = clamp(x, kBound);
  const f32x16 w = mul(mul(x, x), broadcast(1.0f / (kBound * kBound)));
  f32x16 p = broadcast(kP[4]), q = broadcast(kQ[4]);
#pragma GCC unroll 4
  for (int i = 3; i >= 0; --i) {
    p = fma(p, w, broadcast(kP[i]));
    q = fma(q, w, broadcast(kQ[i]));
  }
  return clamp(div(mul(x, p), q), 1.0f);
}

// y[i] = f(x[i]) over n values; f changes an array of vectors in place.
template <typename F>
inline void map_array(const float* x, float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + 16 * kMapVectors <= n; i += 16 * kMapVectors) {
    f32x16 v[kMapVectors];
    for (int j = 0; j < kMapVectors; ++j) v[j] = load(x + i + 16 * j);
    f(v);
    for (int j = 0; j < kMapVectors; ++j) store(y + i + 16 * j, v[j]);
  }
  for (; i < n; i += 16) {
    f32x16 v[1] = {load_first(x + i, n - i)};
    f(v);
    store_first(y + i, v[0], n - i);
  }
}

// An f on single vectors, for map_array.
template <typename F>
inline auto each(F f) {
  return [f](auto& v) {
    for (auto& one : v) one = f(one);
  };
}

void exp_array(const float* x, float* y, int64_t n) {
  map_array(x, y, n, each([](f32x16 v) { return vec_exp(v); }));
}
// The usual erf: the polynomial above takes its argument times sqrt 2.
void erf_array(const float* x, float* y, int64_t n) {
  map_array(x, y, n, each([](f32x16 v) {
              const f32x16 scaled[1] = {mul(v, broadcast(1.41421356f))};
              f32x16 result[1];
              vec_erf_over_sqrt2(scaled, result);
              return result[0];
            }));
}
void activate_array(const float* x, float* y, int64_t n, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      map_array(x, y, n, [](auto& v) { vec_gelu(v); });
      break;
    case Activation::kGeluNew:
      map_array(x, y, n, each([](f32x16 v) { return vec_gelu_new(v); }));
      break;
    case Activation::kRelu:
      map_array(x, y, n, each([](f32x16 v) { return max(zero(), v); }));
      break;
    case Activation::kSilu:
      map_array(x, y, n, each([](f32x16 v) { return mul(v, vec_sigmoid(v)); }));
      break;
    case Activation::kTanh:
      map_array(x, y, n, each([](f32x16 v) { return vec_tanh(v); }));
      break;
    case Activation::kSigmoid:
      map_array(x, y, n, each([](f32x16 v) { return vec_sigmoid(v); }));
      break;
    case Activation::kNone:
      if (x != y) map_array(x, y, n, each([](f32x16 v) { return v; }));
      break;
  }
}

// The arithmetic ceiling: multiply-adds on accumulators that never leave their registers.
double fma_loop(int64_t iterations, float* sink) {
  constexpr int kAccumulators = kTileRows * kTileVectors;
  f32x16 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = broadcast(sink[i % 16]);
  const f32x16 a = load(sink), b = broadcast(sink[0]);
  for (int64_t it = 0; it < iterations; ++it) {
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) acc[i] = fma(a, b, acc[i]);
  }
  f32x16 total = acc[0];
  for (int i = 1; i < kAccumulators; ++i) total = add(total, acc[i]);
  store(sink, total);
  return 2.0 * 16 * kAccumulators * static_cast<double>(iterations);
}
