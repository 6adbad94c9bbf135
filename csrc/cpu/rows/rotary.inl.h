// Rows turned by the angles of their positions (RotaryParams), and gated rows. Both are a pass over
// rows that the matrix before has just left in the cache.

void rotate(const RotaryParams& p) {
  const int64_t half = p.head_dim / 2;
  for (int64_t row = 0; row < p.M; ++row) {
    const float *cosines = p.angles + row * p.head_dim, *sines = cosines + half;
    for (int64_t head = 0; head < p.num_heads; ++head) {
      float *x = p.x + row * p.ldx + head * p.head_dim, *y = x + half;
      for (int64_t d = 0; d < half; d += 16) {
        const int64_t left = half - d;
        const f32x16 c = load_upto(cosines + d, left), s = load_upto(sines + d, left);
        const f32x16 a = load_upto(x + d, left), b = load_upto(y + d, left);
        store_upto(x + d, sub(mul(a, c), mul(b, s)), left);
        store_upto(y + d, add(mul(b, c), mul(a, s)), left);
      }
    }
  }
}

void gate(float* x, int64_t ldx, int64_t M, int64_t F, Activation activation) {
  for (int64_t row = 0; row < M; ++row) {
    float *gates = x + row * ldx, *values = gates + F;
    activate_array(gates, gates, F, activation);
    for (int64_t c = 0; c < F; c += 16)
      store_upto(gates + c, mul(load_upto(gates + c, F - c), load_upto(values + c, F - c)), F - c);
  }
}
