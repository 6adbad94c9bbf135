// A model as data: its sizes and settings, by Hugging Face's names. Every part of the core reads this
// one description; validate() refuses nonsense by name.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "common/check.h"
#include "common/types.h"

namespace minifuse {

// The places of a layer's norms: behind attention and feed-forward, each with its residual
// (Vaswani et al. 2017); before each, and one behind the last layer (Xiong et al. 2020); or before
// and behind each (Gemma Team 2024).
enum class Norms : int32_t { kPost, kPre, kSandwich };

struct ModelDescription {
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t intermediate_size = 0;
  int64_t type_vocab_size = 1;  // 0: no embeddings of token types
  float layer_norm_eps = 1e-12f;
  Activation activation = Activation::kGelu;
  bool has_position_embeddings = true;
  // Tokens of this id are not counted as positions and take the first row of their table; -1: none.
  int64_t padding_id = -1;
  bool has_relative_bias = false;  // scores have a bias by head and distance (AttentionParams)
  double rotary_theta = 0;  // queries and keys are turned by their positions; 0: they are not
  double local_rotary_theta = 0;  // the same for layers with a window
  double rotary_scale = 1;  // what the frequencies of rotary positions are divided by
  // Layer by layer: a token attends to at most so many tokens on either side; 0: to all. Empty: all
  // layers attend to all.
  std::vector<int64_t> windows = {};
  Norms norms = Norms::kPost;
  bool has_rms_norms = false;  // RMSNorm without biases in place of LayerNorm
  // A model whose norms stand first: the embeddings have a norm, and then the first attention has
  // none.
  bool has_embedding_norm = true;
  int64_t num_key_value_heads = 0;  // 0: as many as num_attention_heads
  int64_t head_size = 0;  // columns of a head; 0: hidden_size / num_attention_heads
  bool has_head_norms = false;  // each head of Q and K goes through an RMSNorm before it is turned
  double attention_scale = 0;  // of scores; 0: 1 / sqrt(head_dim)
  bool is_causal = false;  // a token attends to itself and those before it
  bool has_gate = false;  // activation(Y Wg) * (Y W1) in place of activation(Y W1)

  // Returns how many tokens on either side a layer's tokens attend to; 0: all.
  int64_t window_of(int64_t layer) const {
    return windows.empty() ? 0 : windows[static_cast<size_t>(layer)];
  }
  int64_t head_dim() const { return head_size > 0 ? head_size : hidden_size / num_attention_heads; }
  int64_t key_value_heads() const {
    return num_key_value_heads > 0 ? num_key_value_heads : num_attention_heads;
  }
  // Columns of Q, and of the rows that attention gives; and those of K and of V.
  int64_t query_columns() const { return num_attention_heads * head_dim(); }
  int64_t key_columns() const { return key_value_heads() * head_dim(); }
  int64_t qkv_columns() const { return query_columns() + 2 * key_columns(); }
  float softmax_scale() const {
    return attention_scale > 0 ? static_cast<float>(attention_scale)
                               : 1.0f / std::sqrt(static_cast<float>(head_dim()));
  }
  // Columns that the first matrix of the feed-forward gives.
  int64_t ffn_columns() const { return has_gate ? 2 * intermediate_size : intermediate_size; }
  // Types that a token can have: at least one.
  int64_t num_token_types() const { return type_vocab_size > 0 ? type_vocab_size : 1; }
  // Rows of the table of positions, which every token type has one of.
  int64_t position_rows() const {
    return has_position_embeddings ? max_position_embeddings + (padding_id >= 0) : 1;
  }
  // Returns the row of a token there: `position` tokens that are counted stand before it, or it is
  // padding and position is -1.
  int32_t position_row(int32_t token_type, int64_t position) const {
    return static_cast<int32_t>(token_type * position_rows() +
                                (has_position_embeddings ? position + (padding_id >= 0) : 0));
  }

  void validate() const {
    const auto in_range = [](const char* name, int64_t value, int64_t low, int64_t high) {
      check(value >= low && value <= high, "config: ", name, "=", value, ", wanted ", low, "..",
            high);
    };
    in_range("vocab_size", vocab_size, 1, INT32_MAX);
    in_range("max_position_embeddings", max_position_embeddings, 1, 1 << 20);
    in_range("type_vocab_size", type_vocab_size, 0, 1 << 10);
    in_range("type_vocab_size * max_position_embeddings", num_token_types() * position_rows(), 1,
             1 << 20);
    in_range("hidden_size", hidden_size, 1, 1 << 16);
    in_range("num_hidden_layers", num_hidden_layers, 0, 1000);
    in_range("num_attention_heads", num_attention_heads, 1, hidden_size);
    in_range("intermediate_size", intermediate_size, 1, 1 << 18);
    in_range("head_dim", head_size, 0, kMaxHeadDim);
    check(head_size > 0 || hidden_size % num_attention_heads == 0,
          "config: hidden_size=", hidden_size,
          " is not a multiple of num_attention_heads=", num_attention_heads);
    in_range("num_key_value_heads", num_key_value_heads, 0, num_attention_heads);
    check(num_attention_heads % key_value_heads() == 0,
          "config: num_attention_heads=", num_attention_heads,
          " is not a multiple of num_key_value_heads=", num_key_value_heads);
    check(attention_scale >= 0 && std::isfinite(softmax_scale()) && softmax_scale() > 0,
          "config: scores are scaled by ", attention_scale, ", wanted a finite float32 > 0");
    check(norms != Norms::kPost || (has_embedding_norm && !has_rms_norms),
          "config: RMSNorm behind attention is not supported");
    in_range("head_dim", head_dim(), 1, kMaxHeadDim);
    if (has_relative_bias)
      in_range("num_attention_heads * max_position_embeddings",
               num_attention_heads * max_position_embeddings, 1, 1 << 24);
    for (const double theta : {rotary_theta, local_rotary_theta})
      check(theta == 0 || (theta >= 1 && theta <= 1e30), "config: the base of rotary positions is ",
            theta, ", wanted 1..1e30");
    check(rotary_scale >= 1e-3 && rotary_scale <= 1e6, "config: rotary positions are scaled by ",
          rotary_scale, ", wanted 0.001..1000000");
    check(local_rotary_theta == 0 || rotary_theta > 0,
          "config: rotary positions in some layers only are not supported");
    check(windows.empty() || static_cast<int64_t>(windows.size()) == num_hidden_layers,
          "config: windows of ", windows.size(), " layers, wanted ", num_hidden_layers);
    for (const int64_t window : windows) in_range("window of attention", window, 0, 1 << 20);
    if (norms != Norms::kPost) in_range("num_hidden_layers", num_hidden_layers, 1, 1000);
    if (rotary_theta > 0) {
      check(head_dim() % 2 == 0, "config: rotary positions turn pairs, and a head has ", head_dim(),
            " columns");
      in_range("max_position_embeddings * head_dim", max_position_embeddings * head_dim(), 1,
               1 << 26);
    }
    check(std::isfinite(layer_norm_eps) && layer_norm_eps >= 0.0f,
          "config: layer_norm_eps=", layer_norm_eps, ", wanted a finite number >= 0");
  }
};

}  // namespace minifuse
