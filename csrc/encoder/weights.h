// The model's parameters, copied once from the caller's arrays into packed, aligned buffers.
// Weights are [out, in] as PyTorch stores them; a packed one is panels of NR outputs each.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "common/kernels.h"
#include "encoder/config.h"

namespace minifuse {

// A linear layer's parameters as its kernels read them.
struct PackedLinear {
  const LinearKernels* kernels = nullptr;
  int64_t N = 0, K = 0;
  int64_t num_panels = 0;
  BufferOf<std::byte> weight;  // [num_panels, kernels->panel_bytes(K)]
  Buffer bias;  // [N]; empty: none
  // int8 only (types.h); input_scale is empty where x is quantised as it is.
  Buffer weight_scale, weight_sum, input_scale;

  PackedLinear() = default;
  // Room for weight [N, K].
  PackedLinear(const LinearKernels& kernels, int64_t N, int64_t K);

  // Smooths what pack() will quantise: scales from the largest magnitudes that each input channel
  // took on sample text, max_input [K], and from those of weight's columns.
  void smooth(const float* weight, int64_t ldw, const float* max_input);

  // Copies weight [N, K], rows ldw apart, into the panels [begin, end), rounded to the kernels'
  // type.
  void pack(const float* weight, int64_t ldw, int64_t begin, int64_t end);

  // y [M, N] = activation(x W^T + b), all panels.
  LinearParams params(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t M,
                      Activation activation, void* scratch) const;
  int64_t scratch_bytes(int64_t M) const { return kernels->scratch_bytes(M, N, K); }
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
  Weights(const Config& config, const LinearKernels& kernels);

  // What each input channel of each matrix took at most on sample text, [num_hidden_layers, 3 H +
  // F] (qkv, out, ffn1, ffn2): int8 matrices set afterwards are smoothed by it.
  void set_input_maxima(const float* maxima, int64_t num_layers, int64_t width);

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
  const LinearKernels& kernels_;
  std::vector<float> input_maxima_;
  std::map<std::string, std::vector<int64_t>> expected_;
  std::map<std::string, Buffer> staged_;  // tensors waiting for the others they are joined with
  std::map<std::string, bool> seen_;

  void pack(PackedLinear& linear, const float* weight, int64_t N, int64_t K, int64_t layer,
            int64_t maxima_from) const;
  void pack_layer_if_ready(int64_t layer);
};

}  // namespace minifuse
