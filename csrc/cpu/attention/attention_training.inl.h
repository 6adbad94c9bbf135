// Attention of one sentence for training: forward with dropout of the weights, and its gradient.
//
//   P = softmax(scale q k^T)    P' = dropout(P)    out = P' v                       [seqlen, D]
//
//   given dout:   dP' = dout v^T            t_i = sum_d dout[i][d] out[i][d] = sum_j P'_ij dP'_ij
//                 dS  = P (keep / (1 - p) dP' - t)
//                 dq  = scale dS k          dk = scale dS^T q          dv = P'^T dout
//
// Nothing is kept from the forward pass but q, k, v and out: P is computed again, and its dropout
// is drawn again (dropout.inl.h: element (head, i, j) of a sentence is number
// (head seqlen + i) seqlen + j from `first_number` on). All matrices of a head stay in L2: three of
// seqlen x seqlen floats.

// Places of a head's matrices [seqlen, seqlen] and panels in the scratch memory.
struct TrainingScratch {
  float *key_panels, *value_panels, *weights, *kept, *gradient, *transposed, *packed;
  int64_t ld;

  TrainingScratch(float* memory, int64_t seqlen, int64_t head_dim) {
    ld = padded_stride(round_up(seqlen, kMaxPanelColumns));
    const int64_t rows = round_up(seqlen, 16), square = rows * ld;
    const int64_t wide = round_up(head_dim, kMaxPanelColumns);
    const auto take = [&memory](int64_t num_floats) {
      float* const taken = memory;
      memory += num_floats;
      return taken;
    };
    weights = take(square), kept = take(square);
    gradient = take(square), transposed = take(square);
    const int64_t panels = wide * round_up(seqlen, kMaxPanelColumns);
    key_panels = take(panels), value_panels = take(panels), packed = take(panels);
  }
};

// y [rows, N] = factor a [rows, K] b, b [K, N] as panels [ceil(N / NR), K, NR]: of transpose_keys
// where b is k^T or v^T, of pack_values where it is rows of k, q or dout.
inline void times_panels(const float* a, int64_t lda, const float* panels, int64_t rows, int64_t K,
                         int64_t N, float factor, float* y, int64_t ldy) {
  const f32x16 factors = broadcast(factor);
  for (int64_t row = 0; row < rows; row += kTileRows)
    with_tile_rows(rows - row < kTileRows ? rows - row : kTileRows, [&](auto height) {
      for (int64_t c = 0; c < N; c += kPanelColumns) {
        f32x16 acc[height.value][kTileVectors];
        clear(acc);
        multiply_tile(a + row * lda, lda, panels + c * K, kPanelColumns, K, acc);
        store_tile<height.value, kTileVectors>(
            y + row * ldy + c, ldy, N - c, [&](auto, int64_t) MINIFUSE_INLINE { return factors; },
            [&](auto i, auto j, int64_t, const f32x16& f)
                MINIFUSE_INLINE { return mul(acc[i.value][j.value], f); });
      }
    });
}

// f(begin, end) over a sentence's rows, some at a time: false where the call is to stop.
template <typename F>
inline bool over_rows(const AttentionTrainingParams& t, F f) {
  constexpr int64_t kRows = 16 * kTileRows;  // a multiple of what a transposition takes
  const int64_t S = t.forward.seqlen_q;
  for (int64_t begin = 0; begin < S; begin += kRows) {
    if (t.is_stopped && t.is_stopped(t.call)) return false;
    f(begin, begin + kRows < S ? begin + kRows : S);
  }
  return true;
}

// y = x^T for x [seqlen, seqlen], both ld apart, their rows up to the next 16 readable.
inline bool transpose_square(const AttentionTrainingParams& t, const float* x, int64_t ld,
                             float* y) {
  return over_rows(t, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 16)
      for (int64_t j = 0; j < t.forward.seqlen_q; j += 16) {
        const float* rows[16];
        for (int64_t r = 0; r < 16; ++r) rows[r] = x + (i + r) * ld + j;
        transpose_16x16(rows, y + j * ld + i, ld);
      }
  });
}

// The rows [begin, end) of P [seqlen, seqlen] of one head.
inline void attention_weights(const AttentionParams& p, int64_t begin, int64_t end, const float* q,
                              const float* key_panels, float* weights, int64_t ld) {
  times_panels(q + begin * p.q.row_stride, p.q.row_stride, key_panels, end - begin, p.head_dim,
               p.seqlen_k, p.scale, weights + begin * ld, ld);
  for (int64_t row = begin; row < end; ++row) {
    float* w = weights + row * ld;
    float inverse_sum[1];
    softmax_rows<1>(w, ld, p.seqlen_k, inverse_sum);
    const f32x16 inverse = broadcast(inverse_sum[0]);
    for (int64_t j = 0; j < p.seqlen_k; j += 16) store(w + j, mul(load(w + j), inverse));
  }
}

inline void drop_weights(const AttentionTrainingParams& t, int64_t head, int64_t begin, int64_t end,
                         const float* weights, float* kept, int64_t ld) {
  const int64_t S = t.forward.seqlen_q;
  for (int64_t row = begin; row < end; ++row)
    dropout(weights + row * ld, kept + row * ld, S, t.seed,
            t.first_number + static_cast<uint64_t>((head * S + row) * S), t.dropout);
}

void attention_forward(const AttentionTrainingParams& t) {
  const AttentionParams& p = t.forward;
  const int64_t S = p.seqlen_q, D = p.head_dim;
  const TrainingScratch s(p.scratch, S, D);
  for (int64_t head = p.head_begin; head < p.head_end; ++head) {
    const float* q = p.q.data + head * p.q.head_stride;
    float* out = p.out.data + head * p.out.head_stride;
    transpose_keys(p, p.k.data + head * p.k.head_stride, s.key_panels);
    pack_values(p, p.v.data + head * p.v.head_stride, s.packed);
    const bool is_done = over_rows(t, [&](int64_t begin, int64_t end) {
      attention_weights(p, begin, end, q, s.key_panels, s.weights, s.ld);
      if (t.dropout > 0) drop_weights(t, head, begin, end, s.weights, s.weights, s.ld);
      times_panels(s.weights + begin * s.ld, s.ld, s.packed, end - begin, S, D, 1.0f,
                   out + begin * p.out.row_stride, p.out.row_stride);
    });
    if (!is_done) return;
  }
}

// dS in place of dP' for the rows [begin, end): P (dP' - t).
inline void weights_gradient(const AttentionParams& p, int64_t begin, int64_t end, const float* out,
                             const float* dout, const float* weights, float* gradient, int64_t ld) {
  const int64_t S = p.seqlen_k, D = p.head_dim;
  for (int64_t row = begin; row < end; ++row) {
    f32x16 sum = zero();
    for (int64_t c = 0; c < D; c += 16)
      sum = fma(load_upto(dout + row * p.out.row_stride + c, D - c),
                load_upto(out + row * p.out.row_stride + c, D - c), sum);
    const f32x16 total = broadcast(reduce_add(sum));
    float* g = gradient + row * ld;
    const float* w = weights + row * ld;
    for (int64_t j = 0; j < S; j += 16)
      store(g + j, mul(load_upto(w + j, S - j), sub(load_upto(g + j, S - j), total)));
  }
}

// The strides of q, k and v are those of their gradients too, and out's those of dout.
void attention_backward(const AttentionTrainingParams& t) {
  const AttentionParams& p = t.forward;
  const int64_t S = p.seqlen_q, D = p.head_dim;
  const TrainingScratch s(p.scratch, S, D);
  // Rows between seqlen and the next 16 are transposed with the others.
  float* const matrices[] = {s.weights, s.kept, s.gradient};
  for (float* matrix : matrices)
    for (int64_t row = S; row < round_up(S, 16); ++row)
      for (int64_t j = 0; j < round_up(S, 16); j += 16) store(matrix + row * s.ld + j, zero());
  AttentionParams v_as_keys = p, k_as_values = p, q_as_values = p, dout_as_values = p;
  v_as_keys.k.row_stride = p.v.row_stride;
  k_as_values.v.row_stride = p.k.row_stride;
  q_as_values.v.row_stride = p.q.row_stride;
  dout_as_values.v.row_stride = p.out.row_stride;
  const bool drops = t.dropout > 0;
  float* const kept = drops ? s.kept : s.weights;

  for (int64_t head = p.head_begin; head < p.head_end; ++head) {
    const float *q = p.q.data + head * p.q.head_stride, *k = p.k.data + head * p.k.head_stride;
    const float* dout = t.dout + head * p.out.head_stride;
    const float* out = p.out.data + head * p.out.head_stride;
    float *dq = t.dq + head * p.q.head_stride, *dk = t.dk + head * p.k.head_stride;
    float* dv = t.dv + head * p.v.head_stride;

    // P, P', dP' = dout v^T, dS in its place, and dq = scale dS k
    transpose_keys(p, k, s.key_panels);
    transpose_keys(v_as_keys, p.v.data + head * p.v.head_stride, s.value_panels);
    pack_values(k_as_values, k, s.packed);
    const bool is_done = over_rows(t, [&](int64_t begin, int64_t end) {
      attention_weights(p, begin, end, q, s.key_panels, s.weights, s.ld);
      times_panels(dout + begin * p.out.row_stride, p.out.row_stride, s.value_panels, end - begin,
                   D, S, 1.0f, s.gradient + begin * s.ld, s.ld);
      if (drops) {
        drop_weights(t, head, begin, end, s.weights, kept, s.ld);
        drop_weights(t, head, begin, end, s.gradient, s.gradient, s.ld);
      }
      weights_gradient(p, begin, end, out, dout, s.weights, s.gradient, s.ld);
      times_panels(s.gradient + begin * s.ld, s.ld, s.packed, end - begin, S, D, p.scale,
                   dq + begin * p.q.row_stride, p.q.row_stride);
    });
    // y = factor x^T b, b as panels in s.packed
    const auto times_transposed = [&](const float* x, float factor, float* y, int64_t stride) {
      return transpose_square(t, x, s.ld, s.transposed) &&
             over_rows(t, [&](int64_t begin, int64_t end) {
               times_panels(s.transposed + begin * s.ld, s.ld, s.packed, end - begin, S, D, factor,
                            y + begin * stride, stride);
             });
    };

    // dv = P'^T dout, dk = scale dS^T q
    if (!is_done) return;
    pack_values(dout_as_values, dout, s.packed);
    if (!times_transposed(kept, 1.0f, dv, p.v.row_stride)) return;
    pack_values(q_as_values, q, s.packed);
    if (!times_transposed(s.gradient, p.scale, dk, p.k.row_stride)) return;
  }
}
