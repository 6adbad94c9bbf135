// A layer of the encoder as its equations, for whatever carries out its steps: a team of threads on
// the CPU (team_steps.h) or the stream of a device (cuda/cuda_encoder.cpp). No step knows the next one.
#pragma once

namespace minifuse {

// The post-norm layer (Vaswani et al. 2017; Devlin et al. 2019). `run` has the steps as functions and
// the activations x, y, qkv and context; x comes in and goes out.
template <typename Steps, typename LayerWeights>
void post_norm_layer(Steps& run, const LayerWeights& w) {
  // Q, K, V = X Wq + bq, X Wk + bk, X Wv + bv
  run.linear(w.qkv, run.x, run.qkv);
  // per sentence, per head:  O = softmax(Q K^T / sqrt(D) + bias) V, rotary positions turn Q and K
  run.attention(run.qkv, run.context);
  // Y = LayerNorm(X + O Wo + bo)
  run.linear_residual_norm(w.out, run.context, run.x, w.attention_norm, run.y);
  // X = LayerNorm(Y + activation(Y W1 + b1) W2 + b2), or with activation(Y Wg + bg) * (Y W1 + b1)
  run.feed_forward_residual_norm(w.ffn1, w.ffn2, run.y, w.ffn_norm, run.x);
}

// The pre-norm layer (Xiong et al. 2020). x is what all layers add to; y comes in as its norm, and
// goes out as its norm for what follows. Norm is LayerNorm or RMSNorm.
template <typename Steps, typename LayerWeights, typename NormWeights>
void pre_norm_layer(Steps& run, const LayerWeights& w, const NormWeights& next_norm) {
  // Q, K, V = Y Wq + bq, Y Wk + bk, Y Wv + bv
  run.linear(w.qkv, run.y, run.qkv);
  run.attention(run.qkv, run.context);
  // X = X + O Wo + bo,  Y = Norm(X)
  run.linear_add_norm(w.out, run.context, run.x, w.ffn_norm, run.y);
  // X = X + feed-forward(Y),  Y = Norm(X)
  run.feed_forward_add_norm(w.ffn1, w.ffn2, run.y, run.x, next_norm);
}

// The same with a norm of what is added, too (Gemma Team 2024).
template <typename Steps, typename LayerWeights, typename NormWeights>
void sandwich_norm_layer(Steps& run, const LayerWeights& w, const NormWeights& next_norm) {
  // Q, K, V = Y Wq + bq, Y Wk + bk, Y Wv + bv
  run.linear(w.qkv, run.y, run.qkv);
  run.attention(run.qkv, run.context);
  // X = X + Norm(O Wo + bo),  Y = Norm(X)
  run.linear_norm_add_norm(w.out, run.context, w.attention_output_norm, run.x, w.ffn_norm, run.y);
  // X = X + Norm(feed-forward(Y)),  Y = Norm(X)
  run.feed_forward_norm_add_norm(w.ffn1, w.ffn2, run.y, w.ffn_output_norm, run.x, next_norm);
}

}  // namespace minifuse
