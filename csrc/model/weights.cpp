// Names to packed buffers. Q, K and V of a layer become one matrix, so they wait for each other;
// any other tensor is packed as it comes. Nothing is kept twice.

#include "model/weights.h"

#include <algorithm>
#include <cstring>

#include "linear/quantize.h"

namespace minifuse {
namespace {

Buffer copy_of(const float* data, int64_t num_floats) {
  Buffer buffer(num_floats);
  std::memcpy(buffer.data(), data, static_cast<size_t>(num_floats) * sizeof(float));
  return buffer;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

constexpr const char* kProjections[3] = {"attention.self.query", "attention.self.key",
                                         "attention.self.value"};

constexpr const char* kJoinedProjections = "attention.self.qkv.weight";

const std::string kLayers = "encoder.layer.";

std::string layer_prefix(int64_t layer) { return kLayers + std::to_string(layer) + "."; }

// "encoder.layer.3.output.dense.bias" in its parts.
struct LayerName {
  bool is_in_layer = false;
  int64_t layer = 0;
  std::string rest;

  // Splits a name into its layer and the rest; names outside the layers have no layer.
  static LayerName parse(const std::string& name) {
    if (!name.starts_with(kLayers)) return {};
    const size_t dot = name.find('.', kLayers.size());
    if (dot == std::string::npos) return {};
    return {true, std::atoll(name.c_str() + kLayers.size()), name.substr(dot + 1)};
  }
};

}  // namespace

Weights::Weights(const Config& config, const MatrixFormat& format)
    : config_(config), format_(format) {
  config.validate();
  const int64_t H = config.hidden_size, F = config.intermediate_size;
  expected_["embeddings.word_embeddings.weight"] = {config.vocab_size, H};
  expected_["embeddings.position_embeddings.weight"] = {config.max_position_embeddings, H};
  expected_["embeddings.token_type_embeddings.weight"] = {-1, H};  // row 0 is all that is used
  expected_["embeddings.LayerNorm.weight"] = {H};
  expected_["embeddings.LayerNorm.bias"] = {H};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = layer_prefix(layer);
    const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
      expected_[prefix + name + ".weight"] = {out, in};
      expected_[prefix + name + ".bias"] = {out};
    };
    for (const char* name : kProjections) linear(name, H, H);
    if (is_quantized()) {
      for (const char* name : kProjections) expected_.erase(prefix + name + ".weight");
      expected_[prefix + kJoinedProjections] = {3 * H, H};
    }
    linear("attention.output.dense", H, H);
    linear("intermediate.dense", F, H);
    linear("output.dense", H, F);
    for (const char* name : {"attention.output.LayerNorm", "output.LayerNorm"}) {
      expected_[prefix + name + ".weight"] = {H};
      expected_[prefix + name + ".bias"] = {H};
    }
  }
  layers.resize(static_cast<size_t>(config.num_hidden_layers));
}

void Weights::accept(const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = expected_.find(name);
  check(found != expected_.end(), "weights: no tensor is called '", name, "' in this model");
  const std::vector<int64_t>& wanted = found->second;
  bool same = shape.size() == wanted.size();
  for (size_t i = 0; same && i < shape.size(); ++i)
    same = wanted[i] < 0 ? shape[i] > 0 : shape[i] == wanted[i];
  check(same, "weights: '", name, "' has shape ", shape_text(shape), ", wanted ",
        shape_text(wanted));
  check(!seen_.contains(name), "weights: '", name, "' was given twice");
}

PackedLinear* Weights::find_matrix(LayerWeights& layer, const std::string& name) const {
  if (name == kJoinedProjections) return &layer.qkv;
  if (name == "attention.output.dense.weight") return &layer.out;
  if (name == "intermediate.dense.weight") return &layer.ffn1;
  if (name == "output.dense.weight") return &layer.ffn2;
  return nullptr;
}

PackedLinear& Weights::renew(PackedLinear& linear, int64_t N, int64_t K) const {
  Buffer bias = std::move(linear.bias);
  linear = PackedLinear(format_, N, K);
  linear.bias = std::move(bias);
  return linear;
}

void Weights::set_quantized(const std::string& name, const int8_t* codes,
                            const std::vector<int64_t>& shape, const float* scale,
                            const float* input_scale) {
  const LayerName where = LayerName::parse(name);
  check(is_quantized() && where.is_in_layer && shape.size() == 2, "weights: '", name,
        "' is no matrix of a layer, or this model is not in int8");
  accept(name, shape);
  check(are_weight_codes(codes, shape[0], shape[1]), "weights: '", name,
        "' holds codes beyond what int8 kernels multiply exactly: damaged?");
  PackedLinear* matrix = find_matrix(layers[static_cast<size_t>(where.layer)], where.rest);
  renew(*matrix, shape[0], shape[1]).pack_codes(codes, scale, input_scale);
  seen_.insert(name);  // last: what failed has not come
}

void Weights::set(const std::string& name, const float* data, const std::vector<int64_t>& shape) {
  accept(name, shape);
  int64_t num_floats = 1;
  for (const int64_t extent : shape) num_floats *= extent;
  const int64_t H = config_.hidden_size;

  if (name == "embeddings.word_embeddings.weight") {
    word_embeddings = copy_of(data, num_floats);
  } else if (name == "embeddings.position_embeddings.weight") {
    position_embeddings = copy_of(data, num_floats);
  } else if (name == "embeddings.token_type_embeddings.weight") {
    staged_[name] = copy_of(data, H);
  } else if (name == "embeddings.LayerNorm.weight") {
    embedding_gamma = copy_of(data, num_floats);
  } else if (name == "embeddings.LayerNorm.bias") {
    embedding_beta = copy_of(data, num_floats);
  } else {
    const LayerName where = LayerName::parse(name);
    LayerWeights& layer = layers[static_cast<size_t>(where.layer)];
    if (PackedLinear* matrix = find_matrix(layer, where.rest)) {
      check(!is_quantized(), "weights: '", name, "' must come quantised");
      renew(*matrix, shape[0], shape[1]).pack(data, shape[1], 0, matrix->num_panels);
    } else if (where.rest == "attention.output.dense.bias")
      layer.out.bias = copy_of(data, num_floats);
    else if (where.rest == "intermediate.dense.bias")
      layer.ffn1.bias = copy_of(data, num_floats);
    else if (where.rest == "output.dense.bias")
      layer.ffn2.bias = copy_of(data, num_floats);
    else if (where.rest == "attention.output.LayerNorm.weight")
      layer.attention_gamma = copy_of(data, H);
    else if (where.rest == "attention.output.LayerNorm.bias")
      layer.attention_beta = copy_of(data, H);
    else if (where.rest == "output.LayerNorm.weight")
      layer.output_gamma = copy_of(data, H);
    else if (where.rest == "output.LayerNorm.bias")
      layer.output_beta = copy_of(data, H);
    else {
      staged_[name] = copy_of(data, num_floats);
      join_projections_if_ready(where.layer);
    }
  }
  seen_.insert(name);  // last: what failed has not come
}

void Weights::join_projections_if_ready(int64_t index) {
  const std::string prefix = layer_prefix(index);
  LayerWeights& layer = layers[static_cast<size_t>(index)];
  const int64_t H = config_.hidden_size;
  // [3, rows, columns] from the three parts of that name, which are dropped; empty: not all here.
  const auto join = [&](const std::string& part, int64_t floats) {
    for (const char* projection : kProjections)
      if (!staged_.contains(prefix + projection + part)) return Buffer();
    Buffer joined(3 * floats);
    for (int64_t i = 0; i < 3; ++i) {
      const auto staged = staged_.find(prefix + kProjections[i] + part);
      std::copy_n(staged->second.data(), floats, joined.data() + i * floats);
      staged_.erase(staged);
    }
    return joined;
  };
  if (Buffer bias = join(".bias", H); bias.data()) layer.qkv.bias = std::move(bias);
  if (const Buffer weight = join(".weight", H * H); weight.data())
    renew(layer.qkv, 3 * H, H).pack(weight.data(), H, 0, layer.qkv.num_panels);
}

std::vector<std::string> Weights::missing() const {
  std::vector<std::string> names;
  for (const auto& [name, shape] : expected_)
    if (!seen_.contains(name)) names.push_back(name);
  return names;
}

void Weights::finish() {
  if (is_finished_) return;
  for (const std::string& name : missing())
    fail("weights: the checkpoint lacks '", name, "', shape ", shape_text(expected_.at(name)));
  const int64_t H = config_.hidden_size;
  const float* token_type = staged_.at("embeddings.token_type_embeddings.weight").data();
  for (int64_t row = 0; row < config_.max_position_embeddings; ++row)
    for (int64_t c = 0; c < H; ++c) position_embeddings.data()[row * H + c] += token_type[c];
  staged_.clear();
  is_finished_ = true;
}

}  // namespace minifuse
