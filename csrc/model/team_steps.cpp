#include "model/team_steps.h"

#include <algorithm>
#include <cmath>

namespace minifuse {
namespace {

double row_flops(const LinearParams& p) { return 2.0 * static_cast<double>(p.N * p.K); }

}  // namespace

TeamSteps::TeamSteps(const Weights& weights, int64_t layer, const EncoderKernels& kernels,
                     const int32_t* cu_seqlens, const Chunk& chunk, Workspace& workspace,
                     Team& team, const Observer& observer)
    : x{workspace.x.data(), workspace.sizes.ldx, 0,
        cu_seqlens[chunk.last] - cu_seqlens[chunk.first]},
      y{workspace.y.data(), workspace.sizes.ldx, 0, x.count},
      qkv{workspace.qkv.data(), workspace.sizes.ldqkv, 0, x.count},
      context{workspace.context.data(), workspace.sizes.ldcontext, 0, x.count},
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

template <typename F>
void TeamSteps::in_parts(int64_t n, double flops_of_one, int64_t unit, F f) const {
  const Parts parts(
      n, unit,
      static_cast<int64_t>(std::ceil(flops_of_one * static_cast<double>(n) / kFlopsPerPart)));
  for (int64_t part = 0; part < parts.count(); ++part) {
    if (part > 0 && team_.leaves_after_this_step()) return;
    f(parts.begin(part), parts.end(part));
  }
}

void TeamSteps::multiply(const LinearParams& whole) const {
  LinearParams columns = whole;
  columns.panel_begin = team_.begin(whole.panel_end);
  columns.panel_end = team_.end(whole.panel_end);
  const double flops_of_row = row_flops(whole) / team_.size;
  observer_.time(&StageTicks::matrices, [&] {
    in_parts(whole.M, flops_of_row, block_rows(whole), [&](int64_t begin, int64_t end) {
      kernels_.linear.linear(rows_of(columns, begin, end));
    });
  });
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
  const int64_t A = description_.num_attention_heads, KV = description_.key_value_heads();
  const int64_t D = description_.head_dim(), group = A / KV;
  const int64_t window = description_.window_of(layer_), reach = window ? window : kAllKeys;
  const int64_t bias_stride = relative_bias_stride(description_.max_position_embeddings);
  // An item is a head of K and V in a sentence, with the heads of Q that read it.
  const int64_t num_items = (chunk_.last - chunk_.first) * KV;
  const int64_t item_end = team_.end(num_items);
  observer_.time(&StageTicks::attention, [&] {
    for (int64_t item = team_.begin(num_items); item < item_end;) {
      const int64_t sentence = chunk_.first + item / KV, head = item % KV;
      const int64_t row = cu_seqlens_[sentence] - cu_seqlens_[chunk_.first];
      const int64_t seqlen = cu_seqlens_[sentence + 1] - cu_seqlens_[sentence];
      const int64_t reached = std::min(seqlen, 2 * reach + 1);
      const double flops_of_query = 4.0 * static_cast<double>(reached * D * group);  // in a head
      const double flops_of_head = flops_of_query * static_cast<double>(seqlen);
      const int64_t most_heads =
          std::max<int64_t>(1, static_cast<int64_t>(kFlopsPerPart / std::max(flops_of_head, 1.0)));
      const int64_t heads = std::min({KV - head, item_end - item, most_heads});
      float* q = qkv.data + row * qkv.stride;
      float *k = q + A * D, *v = k + KV * D;
      place_heads(q + head * group * D, qkv.stride, seqlen, heads * group, layer().query_norm);
      place_heads(k + head * D, qkv.stride, seqlen, heads, layer().key_norm);
      AttentionParams p{.q = {q, qkv.stride, D},
                        .k = {k, qkv.stride, D},
                        .v = {v, qkv.stride, D},
                        .out = {out.data + row * out.stride, out.stride, D},
                        .seqlen_q = seqlen,
                        .seqlen_k = seqlen,
                        .head_dim = D,
                        .head_begin = head * group,
                        .head_end = (head + heads) * group,
                        .queries_per_key = group,
                        .scale = description_.softmax_scale(),
                        .scratch = ws_.attention_scratch_of(team_.member),
                        .bias = weights_.bias_of_distance_0(),
                        .bias_stride = bias_stride,
                        .keys_before = reach,
                        .keys_after = description_.is_causal ? 0 : reach};
      in_parts(seqlen, flops_of_query * static_cast<double>(heads), kFewestQueries,
               [&](int64_t begin, int64_t end) {
                 p.query_begin = begin;
                 p.query_end = end;
                 kernels_.attention(p);
               });
      item += heads;
      if (item < item_end && team_.leaves_after_this_step()) return;
    }
  });
  team_.meet();
}

void TeamSteps::place_heads(float* x, int64_t stride, int64_t seqlen, int64_t num_heads,
                            const NormWeights& norm) const {
  const int64_t D = description_.head_dim();
  if (description_.has_head_norms)
    for (int64_t row = 0; row < seqlen; ++row) {
      LayerNormParams heads = norm_params(norm, D);
      heads.x = heads.y = x + row * stride;
      heads.ldx = heads.ldy = D;
      heads.M = num_heads;
      heads.is_rms = true;
      kernels_.rows.layer_norm(heads);
    }
  const bool is_local = description_.window_of(layer_) && weights_.local_rotary.data();
  const Buffer& angles = is_local ? weights_.local_rotary : weights_.rotary;
  if (angles.data())
    kernels_.rows.rotate({.x = x,
                          .ldx = stride,
                          .angles = angles.data(),
                          .M = seqlen,
                          .num_heads = num_heads,
                          .head_dim = D});
}

LayerNormParams TeamSteps::norm_params(const NormWeights& norm, int64_t width) const {
  return {.x = nullptr,
          .ldx = 0,
          .residual = nullptr,
          .ldr = 0,
          .gamma = norm.gamma.data(),
          .beta = norm.beta.data(),
          .eps = description_.layer_norm_eps,
          .y = nullptr,
          .ldy = 0,
          .M = 0,
          .H = width,
          .is_rms = description_.has_rms_norms};
}

void TeamSteps::linear_norm(const LayerLinear& w, const Rows& x, const NormWeights* inner,
                            const Rows& residual, bool keeps_sum, const NormWeights& norm,
                            const Rows& y) const noexcept {
  if (team_.has_left()) return;
  observer_.input(x, w.input_column, w.K);
  const LinearParams linear = params(w, x, y, Activation::kNone);
  LayerNormParams rows = norm_params(norm, w.N);
  rows.x = rows.y = y.data;
  rows.ldx = rows.ldy = y.stride;
  rows.residual = residual.data;
  rows.ldr = residual.stride;
  rows.sum = keeps_sum ? residual.data : nullptr;
  rows.M = y.count;
  if (team_.is_alone() && !inner) {
    observer_.time(&StageTicks::matrices, [&] {
      in_parts(linear.M, row_flops(linear), block_rows(linear), [&](int64_t begin, int64_t end) {
        kernels_.linear.linear_residual_layer_norm(rows_of(linear, begin, end),
                                                   rows_of(rows, begin, end));
      });
    });
    team_.meet();
    return;
  }
  multiply(linear);
  if (team_.has_left()) return;
  rows = rows_of(rows, team_.begin(y.count), team_.end(y.count));
  observer_.time(&StageTicks::layer_norm, [&] {
    if (inner) {
      LayerNormParams first = norm_params(*inner, w.N);
      first.x = first.y = rows.y;
      first.ldx = first.ldy = y.stride;
      first.M = rows.M;
      kernels_.rows.layer_norm(first);
    }
    kernels_.rows.layer_norm(rows);
  });
  team_.meet();
}

void TeamSteps::hidden_of(const LayerLinear& w1, const Rows& x, const Rows& hidden) const noexcept {
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
                                  const NormWeights* inner, const Rows& residual, bool keeps_sum,
                                  const NormWeights& norm, const Rows& y) const noexcept {
  const int64_t M = x.count;
  const int64_t block = team_.is_alone() ? ffn_block_rows(M, kernels_.blocks, kernels_.linear) : M;
  for (int64_t row = 0; row < M; row += block) {
    const int64_t end = std::min(M, row + block);
    const Rows in = x.part(row, end);
    const Rows hidden{ws_.hidden.data(), ws_.sizes.ldhidden, in.first, in.count};
    hidden_of(w1, in, hidden);
    linear_norm(w2, hidden, inner, residual.part(row, end), keeps_sum, norm, y.part(row, end));
  }
}

void TeamSteps::linear_residual_norm(const LayerLinear& w, const Rows& x, const Rows& residual,
                                     const NormWeights& norm, const Rows& y) const noexcept {
  linear_norm(w, x, nullptr, residual, false, norm, y);
}

void TeamSteps::feed_forward_residual_norm(const LayerLinear& w1, const LayerLinear& w2,
                                           const Rows& x, const NormWeights& norm,
                                           const Rows& y) const noexcept {
  feed_forward_norm(w1, w2, x, nullptr, x, false, norm, y);
}

void TeamSteps::linear_add_norm(const LayerLinear& w, const Rows& from, const Rows& x,
                                const NormWeights& norm, const Rows& y) const noexcept {
  linear_norm(w, from, nullptr, x, true, norm, y);
}

void TeamSteps::feed_forward_add_norm(const LayerLinear& w1, const LayerLinear& w2, const Rows& y,
                                      const Rows& x, const NormWeights& norm) const noexcept {
  feed_forward_norm(w1, w2, y, nullptr, x, true, norm, y);
}

void TeamSteps::linear_norm_add_norm(const LayerLinear& w, const Rows& from,
                                     const NormWeights& inner, const Rows& x,
                                     const NormWeights& norm, const Rows& y) const noexcept {
  linear_norm(w, from, &inner, x, true, norm, y);
}

void TeamSteps::feed_forward_norm_add_norm(const LayerLinear& w1, const LayerLinear& w2,
                                           const Rows& y, const NormWeights& inner, const Rows& x,
                                           const NormWeights& norm) const noexcept {
  feed_forward_norm(w1, w2, y, &inner, x, true, norm, y);
}

}  // namespace minifuse
