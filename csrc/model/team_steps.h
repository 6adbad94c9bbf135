// The steps of a layer on the CPU, as one member of a team takes part in them: each member computes a
// share of the columns, rows or heads, and all meet at the end of a step. Where the call stops, the
// steps that are left do nothing.
#pragma once

#include "common/kernels.h"
#include "model/description.h"
#include "model/observer.h"
#include "model/plan.h"
#include "model/team.h"
#include "model/workspace.h"
#include "threads/items.h"

namespace minifuse {

// The kernels of an encoder and what it knows of the machine.
struct EncoderKernels {
  const Kernels& rows;
  const LinearKernels& linear;
  void (*attention)(const AttentionParams& params);
  BlockSizes blocks;
};

class TeamSteps {
 public:
  TeamSteps(const Weights& weights, int64_t layer, const EncoderKernels& kernels,
            const int32_t* cu_seqlens, const Chunk& chunk, Workspace& workspace, Team& team,
            const Observer& observer);

  const Rows x, y, qkv, context;

  // y = activation(x W^T + b). Members take columns.
  void linear(const LayerLinear& w, const Rows& x, const Rows& y,
              Activation activation = Activation::kNone) const noexcept;
  // out = softmax(q k^T / sqrt(D) + bias) v in each sentence; before, q and k go through the norms of
  // heads and are turned by their positions, where the model has either. Members take heads.
  void attention(const Rows& qkv, const Rows& out) const noexcept;
  // y = LayerNorm(x W^T + b + residual): fused for a member alone; columns, then rows, for a team.
  void linear_residual_norm(const LayerLinear& w, const Rows& x, const Rows& residual,
                            const NormWeights& norm, const Rows& y) const noexcept;
  // y = LayerNorm(hidden W2^T + b2 + x), hidden = activation(x W1^T + b1), or with a gate
  // activation(x Wg^T + bg) * (x W1^T + b1). A member alone takes block after block of rows, so that
  // the intermediate stays in L2.
  void feed_forward_residual_norm(const LayerLinear& w1, const LayerLinear& w2, const Rows& x,
                                  const NormWeights& norm, const Rows& y) const noexcept;
  // x = x + from W^T + b, y = LayerNorm(x): the same two, for layers that keep a sum.
  void linear_add_norm(const LayerLinear& w, const Rows& from, const Rows& x,
                       const NormWeights& norm, const Rows& y) const noexcept;
  // x = x + hidden W2^T + b2, y = LayerNorm(x), hidden of y as it comes in.
  void feed_forward_add_norm(const LayerLinear& w1, const LayerLinear& w2, const Rows& y,
                             const Rows& x, const NormWeights& norm) const noexcept;
  // x = x + norm(from W^T + b), y = norm(x): the same two, with a norm of what is added.
  void linear_norm_add_norm(const LayerLinear& w, const Rows& from, const NormWeights& inner,
                            const Rows& x, const NormWeights& norm, const Rows& y) const noexcept;
  void feed_forward_norm_add_norm(const LayerLinear& w1, const LayerLinear& w2, const Rows& y,
                                  const NormWeights& inner, const Rows& x,
                                  const NormWeights& norm) const noexcept;

 private:
  const LayerWeights& layer() const { return weights_.layers[static_cast<size_t>(layer_)]; }
  // Heads of Q or K through their norm and turned by their positions, where the model has either.
  void place_heads(float* x, int64_t stride, int64_t seqlen, int64_t num_heads,
                   const NormWeights& norm) const;
  // Parameters of a norm, without its rows.
  LayerNormParams norm_params(const NormWeights& norm, int64_t width) const;
  // y = norm(sum), sum = inner(x W^T + b) + residual; inner: null for none. The sum is kept in the
  // residual's place or nowhere.
  void linear_norm(const LayerLinear& w, const Rows& x, const NormWeights* inner,
                   const Rows& residual, bool keeps_sum, const NormWeights& norm,
                   const Rows& y) const noexcept;
  void feed_forward_norm(const LayerLinear& w1, const LayerLinear& w2, const Rows& x,
                         const NormWeights* inner, const Rows& residual, bool keeps_sum,
                         const NormWeights& norm, const Rows& y) const noexcept;
  // The intermediate of the feed-forward. Members take columns, and rows to gate.
  void hidden_of(const LayerLinear& w1, const Rows& x, const Rows& hidden) const noexcept;
  LinearParams params(const LayerLinear& w, const Rows& x, const Rows& y,
                      Activation activation) const;
  // This member's columns.
  void multiply(const LinearParams& params) const;
  // f(begin, end) over n rows or queries in parts that begin at multiples of `unit`, until the call
  // stops. A step of an ordinary chunk is one part.
  template <typename F>
  void in_parts(int64_t n, double flops_of_one, int64_t unit, F f) const;
  // The rows that a kernel multiplies by all weights before it goes on to others.
  int64_t block_rows(const LinearParams& p) const {
    return kernels_.linear.block_rows(p.M, p.N, p.K);
  }

  const Weights& weights_;
  const int64_t layer_;
  const ModelDescription& description_;
  const EncoderKernels& kernels_;
  const int32_t* cu_seqlens_;
  const Chunk chunk_;
  Workspace& ws_;
  Team& team_;
  const Observer observer_;
};

}  // namespace minifuse
