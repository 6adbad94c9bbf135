// The table of slots, and the way of a tensor into its slot. Q, K and V of a layer become one matrix,
// so their rows wait for each other; any other tensor is packed as it comes. Nothing is kept twice.

#include "model/weights/weights.h"

#include <algorithm>
#include <utility>

#include "linear/quantize.h"
#include "model/weights/rotary.h"

namespace minifuse {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

std::vector<LayerMatrix> layer_matrices(const ModelDescription& description) {
  const int64_t H = description.hidden_size, F = description.intermediate_size;
  const int64_t Q = description.query_columns(), KV = description.key_columns();
  LayerMatrix ffn1{"ffn_input", {{"ffn_input", F}}, F, H, &LayerWeights::ffn1};
  if (description.has_gate)
    ffn1 = {"ffn_gate_input", {{"ffn_gate", F}, {"ffn_input", F}}, 2 * F, H, &LayerWeights::ffn1};
  return {{"qkv", {{"query", Q}, {"key", KV}, {"value", KV}}, Q + 2 * KV, H, &LayerWeights::qkv},
          {"attention_output", {{"attention_output", H}}, H, Q, &LayerWeights::out},
          ffn1,
          {"ffn_output", {{"ffn_output", H}}, H, F, &LayerWeights::ffn2}};
}

int64_t inputs_per_layer(const ModelDescription& description) {
  int64_t total = 0;
  for (const LayerMatrix& matrix : layer_matrices(description)) total += matrix.K;
  return total;
}

Weights::Weights(const ModelDescription& description, const MatrixFormat& format)
    : description_(description), format_(format) {
  description.validate();
  const int64_t H = description.hidden_size, P = description.max_position_embeddings;
  const auto add = [&](const std::string& name, Buffer& buffer, std::vector<int64_t> shape) {
    int64_t size = 1;
    for (const int64_t extent : shape) size *= extent;
    slots_[name] = {.shape = std::move(shape), .buffer = &buffer, .buffer_size = size};
  };
  add("embeddings.word", word_embeddings, {description.vocab_size, H});
  if (description.has_position_embeddings)
    add("embeddings.position", positions_, {description.position_rows(), H});
  if (description.type_vocab_size > 0)
    add("embeddings.token_type", token_types_, {description.type_vocab_size, H});
  if (description.has_embedding_norm) {
    add("embeddings.norm.weight", embedding_gamma, {H});
    add("embeddings.norm.bias", embedding_beta, {H});
  }
  if (description.has_relative_bias)
    add("attention.relative_bias", distances_, {description.num_attention_heads, 2 * P - 1});
  if (description.norms != Norms::kPost) {
    add("final_norm.weight", final_norm.gamma, {H});
    if (!description.has_rms_norms) add("final_norm.bias", final_norm.beta, {H});
  }
  layers.resize(static_cast<size_t>(description.num_hidden_layers));
  for (size_t i = 0; i < layers.size(); ++i)
    add_layer("layers." + std::to_string(i) + ".", layers[i]);
}

void Weights::add_layer(const std::string& prefix, LayerWeights& layer) {
  int64_t input_column = 0;
  for (const LayerMatrix& one : layer_matrices(description_)) {
    LayerLinear& packed = layer.*one.member;
    packed.input_column = input_column;
    input_column += one.K;
    Matrix& matrix = matrices_.emplace_back(Matrix{.packed = &packed, .N = one.N, .K = one.K});
    if (is_quantized())
      slots_[prefix + one.name + ".weight"] = {.shape = {one.N, one.K}, .matrix = &matrix};
    int64_t first = 0;
    for (const auto& [part, rows] : one.parts) {
      if (!is_quantized())
        slots_[prefix + part + ".weight"] = {
            .shape = {rows, one.K}, .matrix = &matrix, .first_row = first};
      slots_[prefix + part + ".bias"] = {
          .shape = {rows}, .buffer = &packed.bias, .offset = first, .buffer_size = one.N};
      first += rows;
    }
  }
  const auto add_norm = [&](const char* name, NormWeights& norm, int64_t width) {
    slots_[prefix + name + ".weight"] = {
        .shape = {width}, .buffer = &norm.gamma, .buffer_size = width};
    if (!description_.has_rms_norms)
      slots_[prefix + name + ".bias"] = {
          .shape = {width}, .buffer = &norm.beta, .buffer_size = width};
  };
  const int64_t H = description_.hidden_size, D = description_.head_dim();
  const bool norms_stand_first = description_.norms != Norms::kPost;
  const bool is_normed_already =
      norms_stand_first && description_.has_embedding_norm && &layer == layers.data();
  if (!is_normed_already) add_norm("attention_norm", layer.attention_norm, H);
  add_norm("ffn_norm", layer.ffn_norm, H);
  if (description_.norms == Norms::kSandwich) {
    add_norm("attention_output_norm", layer.attention_output_norm, H);
    add_norm("ffn_output_norm", layer.ffn_output_norm, H);
  }
  if (description_.has_head_norms)
    for (const auto& [name, norm] :
         {std::pair{"query_norm", &layer.query_norm}, std::pair{"key_norm", &layer.key_norm}})
      slots_[prefix + name + ".weight"] = {.shape = {D}, .buffer = &norm->gamma, .buffer_size = D};
}

Weights::Slot& Weights::accept(const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = slots_.find(name);
  check(found != slots_.end(), "weights: this model has no slot '", name, "'");
  Slot& slot = found->second;
  check(shape == slot.shape, "weights: '", name, "' has shape ", shape_text(shape), ", wanted ",
        shape_text(slot.shape));
  check(!slot.is_set, "weights: '", name, "' was given twice");
  return slot;
}

PackedLinear& Weights::renew(const Matrix& matrix) const {
  Buffer bias = std::move(matrix.packed->bias);
  *matrix.packed = PackedLinear(format_, matrix.N, matrix.K);
  matrix.packed->bias = std::move(bias);
  return *matrix.packed;
}

void Weights::pack_rows(Matrix& matrix, int64_t first_row, const float* rows, int64_t num_rows) {
  if (num_rows < matrix.N) {
    if (matrix.rows.data() == nullptr) matrix.rows = Buffer(matrix.N * matrix.K);
    std::copy_n(rows, num_rows * matrix.K, matrix.rows.data() + first_row * matrix.K);
    rows = matrix.rows.data();
  }
  if (matrix.rows_set + num_rows == matrix.N) {
    renew(matrix).pack(rows, matrix.K, 0, matrix.packed->num_panels);
    matrix.rows = Buffer();
  }
  matrix.rows_set += num_rows;
}

void Weights::set(const std::string& name, const float* data, const std::vector<int64_t>& shape) {
  Slot& slot = accept(name, shape);
  if (slot.matrix) {
    check(!is_quantized(), "weights: '", name, "' must come quantised");
    pack_rows(*slot.matrix, slot.first_row, data, shape[0]);
  } else {
    check(slot.rows_set == 0, "weights: '", name, "' came in part already");
    int64_t size = 1;
    for (const int64_t extent : shape) size *= extent;
    if (slot.buffer->data() == nullptr) *slot.buffer = Buffer(slot.buffer_size);
    std::copy_n(data, size, slot.buffer->data() + slot.offset);
  }
  slot.is_set = true;  // last: a tensor that failed has not come
}

void Weights::set_rows(const std::string& name, const float* data,
                       const std::vector<int64_t>& shape, int64_t first_row) {
  check(!shape.empty(), "weights: rows of '", name, "' have no shape");
  const auto found = slots_.find(name);
  std::vector<int64_t> whole = shape;
  if (found != slots_.end() && !found->second.shape.empty()) whole[0] = found->second.shape[0];
  Slot& slot = accept(name, whole);
  check(!slot.matrix, "weights: '", name, "' is a matrix of a layer, which comes whole");
  check(first_row == slot.rows_set && shape[0] <= whole[0] - first_row, "weights: ", shape[0],
        " rows of '", name, "' from ", first_row, " on, wanted those from ", slot.rows_set, " on, ",
        whole[0], " in all");
  int64_t row_size = 1;
  for (size_t i = 1; i < shape.size(); ++i) row_size *= shape[i];
  if (slot.buffer->data() == nullptr) *slot.buffer = Buffer(slot.buffer_size);
  std::copy_n(data, shape[0] * row_size, slot.buffer->data() + slot.offset + first_row * row_size);
  slot.rows_set += shape[0];
  slot.is_set = slot.rows_set == whole[0];
}

void Weights::set_quantized(const std::string& name, const int8_t* codes,
                            const std::vector<int64_t>& shape, const float* scale,
                            const float* input_scale) {
  Slot& slot = accept(name, shape);
  check(is_quantized() && slot.matrix, "weights: '", name,
        "' is no matrix of a layer, or this model is not in int8");
  check(are_weight_codes(codes, shape[0], shape[1]), "weights: '", name,
        "' holds codes beyond what int8 kernels multiply exactly: damaged?");
  renew(*slot.matrix).pack_codes(codes, scale, input_scale);
  slot.is_set = true;
}

std::map<std::string, std::vector<int64_t>> Weights::shapes() const {
  std::map<std::string, std::vector<int64_t>> all;
  for (const auto& [name, slot] : slots_) all[name] = slot.shape;
  return all;
}

std::vector<std::string> Weights::missing() const {
  std::vector<std::string> names;
  for (const auto& [name, slot] : slots_)
    if (!slot.is_set) names.push_back(name);
  return names;
}

void Weights::finish() {
  if (is_finished_) return;
  for (const std::string& name : missing())
    fail("weights: '", name, "' is missing, shape ", shape_text(slots_.at(name).shape));
  const int64_t H = description_.hidden_size, P = description_.max_position_embeddings;
  const int64_t num_rows = description_.position_rows();
  const auto row_of = [&](const Buffer& table, int64_t row, int64_t column) {
    return table.data() ? table.data()[row * H + column] : 0.0f;
  };
  position_embeddings = Buffer(description_.num_token_types() * num_rows * H);
  float* sum = position_embeddings.data();
  for (int64_t type = 0; type < description_.num_token_types(); ++type)
    for (int64_t position = 0; position < num_rows; ++position)
      for (int64_t c = 0; c < H; ++c)
        *sum++ = row_of(positions_, position, c) + row_of(token_types_, type, c);
  positions_ = Buffer();
  token_types_ = Buffer();
  if (description_.rotary_theta > 0)
    rotary = rotary_angles(description_.rotary_theta, description_.rotary_scale, P,
                           description_.head_dim());
  if (description_.local_rotary_theta > 0)
    local_rotary = rotary_angles(description_.local_rotary_theta, 1.0, P, description_.head_dim());
  if (description_.has_relative_bias) {
    const int64_t A = description_.num_attention_heads, stride = relative_bias_stride(P);
    relative_bias = Buffer(A * stride);
    std::fill_n(relative_bias.data(), A * stride, 0.0f);
    for (int64_t head = 0; head < A; ++head)
      std::copy_n(distances_.data() + head * (2 * P - 1), 2 * P - 1,
                  relative_bias.data() + head * stride);
    distances_ = Buffer();
  }
  is_finished_ = true;
}

}  // namespace minifuse
