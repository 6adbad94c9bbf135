// The model's parameters, copied once from the caller's arrays into packed, aligned buffers.
// Weights are [out, in] as PyTorch stores them; a packed one is [ceil(out / NR), in, NR].
#pragma once

#include <map>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "common/kernels.h"
#include "encoder/config.h"

namespace minifuse {

struct PackedLinear {
  Buffer weight;  // [ceil(N / NR), K, NR]
  Buffer bias;    // [N]; empty: none
  int64_t N = 0, K = 0;
  int64_t num_panels = 0;

  // Copies weight [N, K], rows ldw apart, into the panels of `kernels`; the bias stays empty.
  static PackedLinear pack(const Kernels& kernels, const float* weight, int64_t ldw, int64_t N,
                           int64_t K);
};

struct LayerWeights {
  PackedLinear qkv;    // Wq, Wk, Wv one after the other: [3H, H]
  PackedLinear out;    // Wo [H, H]
  PackedLinear ffn1;   // W1 [F, H]
  PackedLinear ffn2;   // W2 [H, F]
  Buffer attention_gamma, attention_beta;  // [H]
  Buffer output_gamma, output_beta;        // [H]
};

class Weights {
 public:
  Weights(const Config& config, const Kernels& kernels);

  // Copies a tensor by its Hugging Face name without prefix ("encoder.layer.0.output.dense.bias").
  // Throws on an unknown name, a wrong shape or a second tensor of that name.
  void set(const std::string& name, const float* data, const std::vector<int64_t>& shape);

  // Packs what is left and throws if a tensor never came.
  void finish();

  // Every name that set() expects, with its shape.
  const std::map<std::string, std::vector<int64_t>>& expected() const { return expected_; }

  Buffer word_embeddings;      // [vocab_size, H]
  Buffer position_embeddings;  // [max_position_embeddings, H], token type 0 added
  Buffer embedding_gamma, embedding_beta;
  std::vector<LayerWeights> layers;

 private:
  Config config_;
  const Kernels& kernels_;
  std::map<std::string, std::vector<int64_t>> expected_;
  std::map<std::string, Buffer> staged_;  // tensors waiting for the others they are joined with
  std::map<std::string, bool> seen_;

  void pack_layer_if_ready(int64_t layer);
};

}  // namespace minifuse
