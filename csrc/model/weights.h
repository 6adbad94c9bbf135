// The model's parameters by name, copied once from the caller's arrays into packed, aligned buffers.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "linear/packed_linear.h"
#include "model/config.h"

namespace minifuse {

struct LayerWeights {
  PackedLinear qkv;  // Wq, Wk, Wv one after the other: [3H, H]
  PackedLinear out;  // Wo [H, H]
  PackedLinear ffn1;  // W1 [F, H]
  PackedLinear ffn2;  // W2 [H, F]
  Buffer attention_gamma, attention_beta;  // [H]
  Buffer output_gamma, output_beta;  // [H]
};

class Weights {
 public:
  Weights(const Config& config, const MatrixFormat& format);

  // Copies a tensor by its Hugging Face name without prefix ("encoder.layer.0.output.dense.bias").
  // Throws on an unknown name, a wrong shape or a second tensor of that name.
  void set(const std::string& name, const float* data, const std::vector<int64_t>& shape);

  // In int8 the matrices come quantised, those of Q, K and V as one
  // ("encoder.layer.0.attention.self.qkv.weight"): as PackedLinear::pack_codes takes them.
  void set_quantized(const std::string& name, const int8_t* codes,
                     const std::vector<int64_t>& shape, const float* scale,
                     const float* input_scale);

  // Packs what is left and throws if a tensor never came. A second call changes nothing.
  void finish();

  // Every name that is expected, with its shape; in int8 those of two dimensions in layers come
  // through set_quantized().
  const std::map<std::string, std::vector<int64_t>>& expected() const { return expected_; }
  // Those that have not come.
  std::vector<std::string> missing() const;
  // Returns whether finish() has been called: only then may an encoder read them.
  bool is_finished() const { return is_finished_; }

  Buffer word_embeddings;  // [vocab_size, H]
  Buffer position_embeddings;  // [max_position_embeddings, H], token type 0 added
  Buffer embedding_gamma, embedding_beta;
  std::vector<LayerWeights> layers;

 private:
  Config config_;
  const MatrixFormat& format_;
  std::map<std::string, std::vector<int64_t>> expected_;
  std::map<std::string, Buffer> staged_;  // tensors waiting for the others they are joined with
  std::set<std::string> seen_;
  bool is_finished_ = false;

  bool is_quantized() const { return format_.weight_type == WeightType::kInt8; }
  // Throws unless a tensor of this name and shape is expected and did not come before.
  void accept(const std::string& name, const std::vector<int64_t>& shape);
  // The matrix of that name, and null for other tensors of a layer.
  PackedLinear* find_matrix(LayerWeights& layer, const std::string& name_in_layer) const;
  // A matrix with room, its bias kept.
  PackedLinear& renew(PackedLinear& linear, int64_t N, int64_t K) const;
  void join_projections_if_ready(int64_t layer);
};

}  // namespace minifuse
