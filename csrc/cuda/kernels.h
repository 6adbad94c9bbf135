// Parameters of the CUDA kernels, and a table of the kernels for each element type, like
// common/kernels.h for the CPU. Plain C++: the encoder calls the kernels through it without being
// compiled by nvcc. Pointers are the device's; T is the table's element type, everything else float32. Rows begin at
// multiples of 16 bytes, and K is a multiple of 64 bytes.
#pragma once

#include <cstdint>

#include "common/types.h"

namespace minifuse::cuda {

// y = activation(x W^T + bias)
struct LinearParams {
  const void* x;  // T [M, K], rows ldx apart
  int64_t ldx;
  const void* weight;  // T [N, K], contiguous
  const float* bias;  // [N], or null
  void* y;  // T [M, N], rows ldy apart
  int64_t ldy;
  int M, N, K;
  Activation activation;
};

// y = LayerNorm(. + residual) * gamma + beta: what follows a matrix.
struct NormParams {
  const void* residual;  // T [M, H], rows ldr apart
  int64_t ldr;
  const float* gamma;  // [H]
  const float* beta;  // [H]
  float eps;
};

// y = LayerNorm(x + residual): rows in memory. The residual may be null; H even.
struct RowNormParams {
  const void* x;  // T [M, H], rows ldx apart
  int64_t ldx;
  void* y;  // T [M, H], rows ldy apart
  int64_t ldy;
  int M, H;
  NormParams norm;
};

// y = LayerNorm(x W^T + bias + residual); N = H, no activation.
struct LinearNormParams {
  LinearParams linear;
  NormParams norm;
};

// y = LayerNorm(activation(x W1^T + b1) W2^T + b2 + x)
struct FfnParams {
  const void* x;  // T [M, H], rows ldx apart
  int64_t ldx;
  const void* w1;  // T [F, H], contiguous
  const float* b1;  // [F]
  const void* w2;  // T [H, F], contiguous
  const float* b2;  // [H]
  void* y;  // T [M, H], rows ldy apart
  int64_t ldy;
  int M, H, F;  // F a multiple of 128 bytes of T
  Activation activation;
  NormParams norm;  // whose residual is x
};

// Sixteen queries of a sentence, for all heads.
struct alignas(16) AttentionTile {
  int32_t first_query, num_queries;  // rows of the packed batch; 1..16
  int32_t first_key, num_keys;  // the sentence
};
inline constexpr int kAttentionQueries = 16;

// Calls f with each tile of a sentence.
template <typename F>
void for_each_attention_tile(int32_t first_query, int32_t num_queries, int32_t first_key,
                             int32_t num_keys, F f) {
  for (int32_t row = 0; row < num_queries; row += kAttentionQueries) {
    const int32_t rest = num_queries - row;
    f(AttentionTile{first_query + row, rest < kAttentionQueries ? rest : kAttentionQueries,
                    first_key, num_keys});
  }
}

// out = softmax(scale q k^T) v, sentence by sentence and head by head
struct AttentionParams {
  const void *q, *k, *v;  // T [rows, num_heads * head_dim], rows ldq, ldk, ldv apart
  int64_t ldq, ldk, ldv;
  const uint8_t* mask;  // of k's rows, 0: not a key; null keeps all. No key gives zeros.
  void* out;  // T [rows of q, num_heads * head_dim], rows ldout apart
  int64_t ldout;
  const AttentionTile* tiles;  // [num_tiles]; null: sentences of seqlen_q queries and seqlen_k keys
  int seqlen_q, seqlen_k;
  int num_tiles, num_heads, head_dim;  // head_dim 32 or 64
  float scale;
};

// y[i] = LayerNorm(word[ids[i]] + position[positions[i]])
struct EmbedParams {
  const int32_t* ids;  // [M]
  const int32_t* positions;  // [M]
  const void* word;  // T [vocab_size, H]
  const void* position;  // T [max_position_embeddings, H]
  const float* gamma;
  const float* beta;
  float eps;
  void* y;  // T [M, H], rows ldy apart
  int64_t ldy;
  int M, H;  // H even
};

// One vector a sentence from its rows; no row gives zeros.
struct PoolParams {
  const void* x;  // T [total_tokens, H], rows ldx apart
  int64_t ldx;
  const int32_t* cu_seqlens;  // [batch + 1]
  const uint8_t* mask;  // [total_tokens], 0: the row stays out; null keeps all
  float* y;  // [batch, H], rows ldy apart
  int64_t ldy;
  int batch, H;
  int first_row;  // rows of a sentence before it stay out
  Pooling pooling;
};

// A CUDA stream, or a device of the emulator: kernels on one stream run in order.
using Stream = void*;

struct Kernels {
  const char* element;  // "float32", "bfloat16", "float16"
  const char* isa;  // "sm_80", "sm_90a"
  int element_bytes;
  int max_ffn_hidden;  // the widest H of ffn_residual_layer_norm; a wider one takes two kernels
  int max_split_hidden;  // the widest H whose two kernels give the fused one's bits; 0: none

  void (*embed_layer_norm)(Stream stream, const EmbedParams& params);
  void (*layer_norm)(Stream stream, const RowNormParams& params);
  void (*linear)(Stream stream, const LinearParams& params);
  void (*attention)(Stream stream, const AttentionParams& params);
  void (*linear_residual_layer_norm)(Stream stream, const LinearNormParams& params);
  void (*ffn_residual_layer_norm)(Stream stream, const FfnParams& params);
  void (*pool)(Stream stream, const PoolParams& params);
};

// The widest H of linear_residual_layer_norm.
inline constexpr int kMaxHidden = 1024;

}  // namespace minifuse::cuda
