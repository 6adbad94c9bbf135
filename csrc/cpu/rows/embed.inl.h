// y[i] = LayerNorm(word[ids[i]] + position[positions[i]]): two gathers of H floats and the row
// normalisation of layernorm.inl.h. The caller has checked every id and folded token type 0 into
// position.

void embed_layer_norm(const EmbedParams& p) {
  const auto sum_at = [&](int64_t row, int64_t c, int64_t n) {
    return add(load_upto(p.word + p.ids[row] * p.H + c, n),
               load_upto(p.position + p.positions[row] * p.H + c, n));
  };
  if (p.gamma) {
    layer_norm_all(p.y, p.ldy, p.gamma, p.beta, p.eps, p.M, p.H, sum_at);
    return;
  }
  for (int64_t row = 0; row < p.M; ++row)
    for (int64_t c = 0; c < p.H; c += 16)
      store_upto(p.y + row * p.ldy + c, sum_at(row, c, p.H - c), p.H - c);
}
