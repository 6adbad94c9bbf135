// Input and output of an encoder, the same on every device.
#pragma once

#include <vector>

#include "common/types.h"
#include "model/description.h"

namespace minifuse {

// Sentences without padding: sentence b owns ids[cu_seqlens[b]] .. ids[cu_seqlens[b + 1] - 1].
struct Batch {
  const int32_t* ids;  // [total_tokens]
  const int32_t* cu_seqlens;  // [batch + 1]
  int64_t batch;
  int64_t total_tokens;
  const int32_t* token_types = nullptr;  // [total_tokens]; null: all are 0

  int32_t token_type(int64_t token) const { return token_types ? token_types[token] : 0; }
};

// Destinations of the results of a call; what has a null pointer is not computed.
struct Outputs {
  float* pooled = nullptr;  // [batch, poolings.size() * H]
  bool is_on_device = false;  // where pooled is, of a CUDA encoder
  std::vector<Pooling> poolings;
  int64_t pool_from = 0;  // rows of a sentence before this one stay out of the pooling
  float* token_embeddings = nullptr;  // [total_tokens, H], the last layer
  float* hidden_states = nullptr;  // [num_hidden_layers + 1, total_tokens, H]
  // [num_hidden_layers, total_tokens, 3 H + F]: what goes into qkv, out, ffn1 and ffn2.
  float* matrix_inputs = nullptr;
  StageTicks* ticks = nullptr;  // all threads' together
};

// Throw std::invalid_argument where cu_seqlens is not well formed or a sentence is too long; and
// where the ids do not fit it or the vocabulary, or a token type has no embedding.
void check_lengths(const ModelDescription& description, const Batch& batch);
void check_ids(const ModelDescription& description, const Batch& batch);

}  // namespace minifuse
