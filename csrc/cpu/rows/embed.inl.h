// y[i] = LayerNorm(word[ids[i]] + position[positions[i]]): two gathers of H floats and the row
// normalisation of layernorm.inl.h. The caller has checked every id and folded token type 0 into
// position.

void embed_layer_norm(const EmbedParams& p) {
  layer_norm_all(p.y, p.ldy, p.gamma, p.beta, p.eps, p.M, p.H,
                 [&](int64_t row, int64_t c, int64_t n) {
                   return add(load_upto(p.word + p.ids[row] * p.H + c, n),
                              load_upto(p.position + p.positions[row] * p.H + c, n));
                 });
}
