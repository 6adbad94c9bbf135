#include "model/team_steps.h"

#include <algorithm>
#include <cmath>

namespace minifuse {

TeamSteps::TeamSteps(const Weights& weights, int64_t layer, const EncoderKernels& kernels,
                     const int32_t* cu_seqlens, const Chunk& chunk, Workspace& workspace,
                     Team& team, const Observer& observer)
    : x{workspace.x.data(), workspace.sizes.ldx, 0,
        cu_seqlens[chunk.last] - cu_seqlens[chunk.first]},
      y{workspace.y.data(), workspace.sizes.ldx, 0, x.count},
      qkv{workspace.qkv.data(), workspace.sizes.ldqkv, 0, x.count},
      context{workspace.context.data(), workspace.sizes.ldx, 0, x.count},
      weights_(weights),
      layer_(layer),
      description_(weights.description()),
      kernels_(kernels),
      cu_seqlens_(cu_seqlens),
      chunk_(chunk),
      ws_(workspace),
      team_(team),
      observer_(observer) {}

LinearParams TeamSteps::params(const LayerLinear& w, const Rows& x, const Rows& y,
                               Activation activation) const {
  LinearParams params = w.params(x.data, x.stride, y.data, y.stride, x.count, activation);
  params.ticks = observer_.ticks();
  params.scratch = ws_.linear_scratch_of(team_.member);
  params.scratch_bytes = ws_.linear_scratch_bytes_of(team_.member);
  return params;
}

void TeamSteps::multiply(const LinearParams& whole) const {
  LinearParams part = whole;
  part.panel_begin = team_.begin(whole.panel_end);
  part.panel_end = team_.end(whole.panel_end);
  observer_.time(&StageTicks::matrices, [&] { kernels_.linear.linear(part); });
  team_.meet();
}

void TeamSteps::linear(const LayerLinear& w, const Rows& x, const Rows& y,
                       Activation activation) const noexcept {
  if (team_.has_left()) return;
  observer_.input(x, w.input_column, w.K);
  multiply(params(w, x, y, activation));
}

void TeamSteps::attention(const Rows& qkv, const Rows& out) const noexcept {
  if (team_.has_left()) return;
  const int64_t H = description_.hidden_size, A = description_.num_attention_heads;
  const int64_t D = description_.head_dim();
  const int64_t window = description_.window_of(layer_), reach = window ? window : kAllKeys;
  const bool is_local = window && weights_.local_rotary.data();
  const float* angles = is_local ? weights_.local_rotary.data() : weights_.rotary.data();
  const int64_t bias_stride = relative_bias_stride(description_.max_position_embeddings);
  const int64_t num_items = (chunk_.last - chunk_.first) * A;  // a head of a sentence each
  const int64_t item_end = team_.end(num_items);
  observer_.time(&StageTicks::attention, [&] {
    for (int64_t item = team_.begin(num_items); item < item_end;) {
      const int64_t sentence = chunk_.first + item / A, head = item % A;
      const int64_t heads = std::min(A - head, item_end - item);
      const int64_t row = cu_seqlens_[sentence] - cu_seqlens_[chunk_.first];
      const int64_t seqlen = cu_seqlens_[sentence + 1] - cu_seqlens_[sentence];
      float* q = qkv.data + row * qkv.stride;
      if (angles)
        for (float* part : {q, q + H})
          kernels_.rows.rotate({.x = part + head * D,
                                .ldx = qkv.stride,
                                .angles = angles,
                                .M = seqlen,
                                .num_heads = heads,
                                .head_dim = D});
      kernels_.attention({.q = {q, qkv.stride, D},
                          .k = {q + H, qkv.stride, D},
                          .v = {q + 2 * H, qkv.stride, D},
                          .out = {out.data + row * out.stride, out.stride, D},
                          .seqlen_q = seqlen,
                          .seqlen_k = seqlen,
                          .head_dim = D,
                          .head_begin = head,
                          .head_end = head + heads,
                          .scale = 1.0f / std::sqrt(static_cast<float>(D)),
                          .scratch = ws_.attention_scratch_of(team_.member),
                          .bias = weights_.bias_of_distance_0(),
                          .bias_stride = bias_stride,
                          .keys_before = reach,
                          .keys_after = reach});
      item += heads;
    }
  });
  team_.meet();
}

void TeamSteps::linear_norm(const LayerLinear& w, const Rows& x, const Rows& residual,
                            bool keeps_sum, const NormWeights& norm,
                            const Rows& y) const noexcept {
  if (team_.has_left()) return;
  observer_.input(x, w.input_column, w.K);
  const LinearParams linear = params(w, x, y, Activation::kNone);
  LayerNormParams rows{.x = y.data,
                       .ldx = y.stride,
                       .residual = residual.data,
                       .ldr = residual.stride,
                       .sum = keeps_sum ? residual.data : nullptr,
                       .gamma = norm.gamma.data(),
                       .beta = norm.beta.data(),
                       .eps = description_.layer_norm_eps,
                       .y = y.data,
                       .ldy = y.stride,
                       .M = y.count,
                       .H = w.N};
  if (team_.is_alone()) {
    observer_.time(&StageTicks::matrices,
                   [&] { kernels_.linear.linear_residual_layer_norm(linear, rows); });
    team_.meet();
    return;
  }
  multiply(linear);
  if (team_.has_left()) return;
  const int64_t begin = team_.begin(y.count);
  rows.x = rows.y = y.data + begin * y.stride;
  rows.residual += begin * residual.stride;
  if (keeps_sum) rows.sum += begin * residual.stride;
  rows.M = team_.end(y.count) - begin;
  observer_.time(&StageTicks::layer_norm, [&] { kernels_.rows.layer_norm(rows); });
  team_.meet();
}

void TeamSteps::hidden_of(const LayerLinear& w1, const Rows& x,
                          const Rows& hidden) const noexcept {
  if (!description_.has_gate) return linear(w1, x, hidden, description_.activation);
  linear(w1, x, hidden);
  if (team_.has_left()) return;
  const int64_t begin = team_.begin(hidden.count), end = team_.end(hidden.count);
  observer_.time(&StageTicks::activation, [&] {
    kernels_.rows.gate(hidden.data + begin * hidden.stride, hidden.stride, end - begin,
                       description_.intermediate_size, description_.activation);
  });
  team_.meet();
}

void TeamSteps::feed_forward_norm(const LayerLinear& w1, const LayerLinear& w2, const Rows& x,
                                  const Rows& residual, bool keeps_sum, const NormWeights& norm,
                                  const Rows& y) const noexcept {
  const int64_t M = x.count;
  const int64_t block = team_.is_alone() ? ffn_block_rows(M, kernels_.blocks, kernels_.linear) : M;
  for (int64_t row = 0; row < M; row += block) {
    const int64_t end = std::min(M, row + block);
    const Rows in = x.part(row, end);
    const Rows hidden{ws_.hidden.data(), ws_.sizes.ldhidden, in.first, in.count};
    hidden_of(w1, in, hidden);
    linear_norm(w2, hidden, residual.part(row, end), keeps_sum, norm, y.part(row, end));
  }
}

void TeamSteps::linear_residual_norm(const LayerLinear& w, const Rows& x, const Rows& residual,
                                     const NormWeights& norm, const Rows& y) const noexcept {
  linear_norm(w, x, residual, false, norm, y);
}

void TeamSteps::feed_forward_residual_norm(const LayerLinear& w1, const LayerLinear& w2,
                                           const Rows& x, const NormWeights& norm,
                                           const Rows& y) const noexcept {
  feed_forward_norm(w1, w2, x, x, false, norm, y);
}

void TeamSteps::linear_add_norm(const LayerLinear& w, const Rows& from, const Rows& x,
                                const NormWeights& norm, const Rows& y) const noexcept {
  linear_norm(w, from, x, true, norm, y);
}

void TeamSteps::feed_forward_add_norm(const LayerLinear& w1, const LayerLinear& w2, const Rows& y,
                                      const Rows& x, const NormWeights& norm) const noexcept {
  feed_forward_norm(w1, w2, y, x, true, norm, y);
}

}  // namespace minifuse
