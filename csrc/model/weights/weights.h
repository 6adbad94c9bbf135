// The model's parameters, copied once from the caller's arrays into packed, aligned buffers. Each has
// a slot with a name of our own; a family's file in Python says which tensor of a checkpoint goes
// into which slot.
#pragma once

#include <deque>
#include <map>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "linear/packed_linear.h"
#include "model/description.h"

namespace minifuse {

// A matrix of a layer, and where its inputs begin in a row of Outputs::matrix_inputs.
struct LayerLinear : PackedLinear {
  int64_t input_column = 0;
};

struct NormWeights {
  Buffer gamma, beta;  // [H]
};

struct LayerWeights {
  LayerLinear qkv;  // Wq, Wk, Wv one after the other: [qkv_columns, H]
  LayerLinear out;  // Wo [H, query_columns]
  LayerLinear ffn1;  // W1 [F, H]; with a gate Wg and W1 [2F, H]
  LayerLinear ffn2;  // W2 [H, F]
  NormWeights attention_norm, ffn_norm;  // behind each or before it (Norms)
  NormWeights attention_output_norm, ffn_output_norm;  // behind each, where norms stand before, too
  NormWeights query_norm, key_norm;  // gamma [head_dim], where heads have norms
};

// A matrix of a layer: its rows come in one or several tensors, one after the other.
struct LayerMatrix {
  struct Part {
    const char* name;
    int64_t rows;
  };
  const char* name;
  std::vector<Part> parts;
  int64_t N, K;
  LayerLinear LayerWeights::* member;
};
// Returns the matrices of a layer in the order of Outputs::matrix_inputs.
std::vector<LayerMatrix> layer_matrices(const ModelDescription& description);
// Returns the number of inputs that the matrices of a layer have together.
int64_t inputs_per_layer(const ModelDescription& description);

// Slots, besides those of the embeddings, are "layers.I.NAME.weight" and ".bias". NAME is a part of a
// matrix, attention_norm or ffn_norm. In int8 matrices come quantised and whole: then NAME is
// the matrix for the weight, and each part for the bias.
class Weights {
 public:
  Weights(const ModelDescription& description, const MatrixFormat& format);
  Weights(const Weights&) = delete;  // slots point to the buffers below

  // Copies a tensor into its slot. Throws on an unknown name, a wrong shape or a second tensor.
  void set(const std::string& name, const float* data, const std::vector<int64_t>& shape);
  // The same for some rows of a table, those behind the rows that came before. Throws for a matrix of
  // a layer.
  void set_rows(const std::string& name, const float* data, const std::vector<int64_t>& shape,
                int64_t first_row);
  // The same for a matrix in 8 bits, as PackedLinear::pack_codes takes it.
  void set_quantized(const std::string& name, const int8_t* codes,
                     const std::vector<int64_t>& shape, const float* scale,
                     const float* input_scale);

  // Throws if a slot is empty. Only then may an encoder read the weights. A second call changes
  // nothing.
  void finish();
  bool is_finished() const { return is_finished_; }

  // Returns the name and shape of every slot.
  std::map<std::string, std::vector<int64_t>> shapes() const;
  // Returns the names of the slots that are empty.
  std::vector<std::string> missing() const;

  Buffer word_embeddings;  // [vocab_size, H]
  // [num_token_types, position_rows, H]: the sum of both embeddings, by position_row().
  Buffer position_embeddings;
  Buffer embedding_gamma, embedding_beta;
  Buffer relative_bias;  // [num_attention_heads, relative_bias_stride()], where the model has it
  NormWeights final_norm;  // behind the last layer, where norms stand before the others
  Buffer rotary, local_rotary;  // rotary_angles(), where the model has them
  std::vector<LayerWeights> layers;

  const ModelDescription& description() const { return description_; }
  // Returns the bias of head 0 and distance 0, or null where the model has none.
  const float* bias_of_distance_0() const {
    return relative_bias.data() ? relative_bias.data() + description_.max_position_embeddings - 1
                                : nullptr;
  }

 private:
  // A matrix whose rows come in one or several tensors.
  struct Matrix {
    PackedLinear* packed;
    int64_t N, K;
    int64_t rows_set = 0;
    Buffer rows = {};  // [N, K], where several tensors make it and some are still to come
  };
  // The place of one tensor: rows of a matrix, or floats of a buffer.
  struct Slot {
    std::vector<int64_t> shape;
    Matrix* matrix = nullptr;
    int64_t first_row = 0;
    Buffer* buffer = nullptr;
    int64_t offset = 0, buffer_size = 0;
    int64_t rows_set = 0;  // where it comes in pieces
    bool is_set = false;
  };

  void add_layer(const std::string& prefix, LayerWeights& layer);
  // Throws unless the slot exists, has this shape and is empty.
  Slot& accept(const std::string& name, const std::vector<int64_t>& shape);
  void pack_rows(Matrix& matrix, int64_t first_row, const float* rows, int64_t num_rows);
  // A matrix with room, its bias kept.
  PackedLinear& renew(const Matrix& matrix) const;
  bool is_quantized() const { return format_.weight_type == WeightType::kInt8; }

  const ModelDescription description_;
  const MatrixFormat& format_;
  std::map<std::string, Slot> slots_;
  std::deque<Matrix> matrices_;  // slots point to them
  // These are until finish(): [position_rows, H] and [num_token_types, H],
  Buffer positions_, token_types_;
  Buffer distances_;  // [num_attention_heads, 2 max_position_embeddings - 1]
  bool is_finished_ = false;
};

}  // namespace minifuse
