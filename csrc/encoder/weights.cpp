// Names to packed buffers. Q, K and V of a layer become one matrix, so they wait for each other;
// any other tensor is packed as it comes. Nothing is kept twice.

#include "encoder/weights.h"

#include <algorithm>
#include <cstring>

#include "encoder/quantize.h"
#include "encoder/schedule.h"

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

std::string layer_prefix(int64_t layer) { return "encoder.layer." + std::to_string(layer) + "."; }

}  // namespace

PackedLinear::PackedLinear(const LinearKernels& kernels, int64_t N, int64_t K)
    : kernels(&kernels),
      N(N),
      K(K),
      num_panels((N + kernels.panel_columns - 1) / kernels.panel_columns),
      weight(num_panels * kernels.panel_bytes(K)) {
  if (kernels.weight_type != WeightType::kInt8) return;
  weight_scale = Buffer(int8_groups(K) * num_panels * kernels.panel_columns);
  weight_sum = Buffer(weight_scale.size());
}

void PackedLinear::smooth(const float* weight, int64_t ldw, const float* max_input) {
  input_scale = Buffer(K);
  smoothing_scales(weight, ldw, N, K, max_input, input_scale.data());
}

void PackedLinear::pack(const float* source, int64_t ldw, int64_t begin, int64_t end) {
  const int64_t columns = kernels->panel_columns;
  std::vector<uint16_t> halves;
  std::vector<int8_t> codes;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * columns, rows = std::min(columns, N - first);
    const float* from = source + first * ldw;
    const void* rounded = from;
    int64_t stride = ldw;
    if (kernels->weight_type == WeightType::kBfloat16) {
      halves.resize(static_cast<size_t>(rows * K));
      for (int64_t i = 0; i < rows; ++i) to_bfloat16(from + i * ldw, K, halves.data() + i * K);
      rounded = halves.data();
      stride = K;
    } else if (kernels->weight_type == WeightType::kInt8) {
      codes.resize(static_cast<size_t>(rows * K));
      for (int64_t group = 0; group < int8_groups(K); ++group) {
        const int64_t k = group * kInt8Group, at = group * num_panels * columns + first;
        for (int64_t i = 0; i < columns; ++i) {
          weight_scale.data()[at + i] = 0.0f;
          weight_sum.data()[at + i] = 0.0f;
          if (i < rows)
            quantize_channel(from + i * ldw + k,
                             input_scale.data() ? input_scale.data() + k : nullptr,
                             std::min(kInt8Group, K - k), codes.data() + i * K + k,
                             weight_scale.data() + at + i, weight_sum.data() + at + i);
        }
      }
      rounded = codes.data();
      stride = K;
    }
    kernels->pack_panel(rounded, stride, rows, K, weight.data() + panel * kernels->panel_bytes(K));
  }
}

LinearParams PackedLinear::params(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t M,
                                  Activation activation, void* scratch) const {
  return {.x = x,
          .ldx = ldx,
          .packed_weight = weight.data(),
          .bias = bias.data(),
          .y = y,
          .ldy = ldy,
          .M = M,
          .N = N,
          .K = K,
          .panel_begin = 0,
          .panel_end = num_panels,
          .activation = activation,
          .weight_scale = weight_scale.data(),
          .weight_sum = weight_sum.data(),
          .input_scale = input_scale.data(),
          .scratch = scratch};
}

Weights::Weights(const Config& config, const LinearKernels& kernels)
    : config_(config), kernels_(kernels) {
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

void Weights::set_input_maxima(const float* maxima, int64_t num_layers, int64_t width) {
  const int64_t wanted = 3 * config_.hidden_size + config_.intermediate_size;
  check(num_layers == config_.num_hidden_layers && width == wanted, "input_maxima has shape [",
        num_layers, ", ", width, "], wanted [", config_.num_hidden_layers, ", ", wanted, "]");
  input_maxima_.assign(maxima, maxima + num_layers * width);
}

// `maxima_from`: where in a layer's row of maxima this matrix's inputs begin.
void Weights::pack(PackedLinear& linear, const float* weight, int64_t N, int64_t K, int64_t layer,
                   int64_t maxima_from) const {
  Buffer bias = std::move(linear.bias);
  linear = PackedLinear(kernels_, N, K);
  linear.bias = std::move(bias);
  if (!input_maxima_.empty() && kernels_.weight_type == WeightType::kInt8)
    linear.smooth(weight, K,
                  input_maxima_.data() +
                      layer * (3 * config_.hidden_size + config_.intermediate_size) + maxima_from);
  if (kernels_.weight_type != WeightType::kInt8)
    return linear.pack(weight, K, 0, linear.num_panels);
  // The search for scales is worth several threads.
  ThreadPool::get().run(default_num_threads(), [&](int member, int size) {
    linear.pack(weight, K, linear.num_panels * member / size,
                linear.num_panels * (member + 1) / size);
  });
}

void Weights::set(const std::string& name, const float* data, const std::vector<int64_t>& shape) {
  const auto found = expected_.find(name);
  check(found != expected_.end(), "weights: no tensor is called '", name, "' in this model");
  const std::vector<int64_t>& wanted = found->second;
  bool same = shape.size() == wanted.size();
  for (size_t i = 0; same && i < shape.size(); ++i)
    same = wanted[i] < 0 ? shape[i] > 0 : shape[i] == wanted[i];
  check(same, "weights: '", name, "' has shape ", shape_text(shape), ", wanted ",
        shape_text(wanted));
  check(!seen_[name], "weights: '", name, "' was given twice");
  seen_[name] = true;

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
    const std::string prefix = "encoder.layer.";
    const size_t dot = name.find('.', prefix.size());
    const int64_t index = std::stoll(name.substr(prefix.size(), dot - prefix.size()));
    const std::string rest = name.substr(dot + 1);
    LayerWeights& layer = layers[static_cast<size_t>(index)];
    if (rest == "attention.output.dense.weight")
      pack(layer.out, data, shape[0], shape[1], index, H);
    else if (rest == "intermediate.dense.weight")
      pack(layer.ffn1, data, shape[0], shape[1], index, 2 * H);
    else if (rest == "output.dense.weight")
      pack(layer.ffn2, data, shape[0], shape[1], index, 3 * H);
    else if (rest == "attention.output.dense.bias")
      layer.out.bias = copy_of(data, num_floats);
    else if (rest == "intermediate.dense.bias")
      layer.ffn1.bias = copy_of(data, num_floats);
    else if (rest == "output.dense.bias")
      layer.ffn2.bias = copy_of(data, num_floats);
    else if (rest == "attention.output.LayerNorm.weight")
      layer.attention_gamma = copy_of(data, H);
    else if (rest == "attention.output.LayerNorm.bias")
      layer.attention_beta = copy_of(data, H);
    else if (rest == "output.LayerNorm.weight")
      layer.output_gamma = copy_of(data, H);
    else if (rest == "output.LayerNorm.bias")
      layer.output_beta = copy_of(data, H);
    else {
      staged_[name] = copy_of(data, num_floats);
      pack_layer_if_ready(index);
    }
  }
}

void Weights::pack_layer_if_ready(int64_t index) {
  const std::string prefix = layer_prefix(index);
  for (const char* projection : kProjections)
    for (const char* part : {".weight", ".bias"})
      if (staged_.find(prefix + projection + part) == staged_.end()) return;
  const int64_t H = config_.hidden_size;
  Buffer joined(3 * H * H), bias(3 * H);
  for (int64_t i = 0; i < 3; ++i) {
    const std::string name = prefix + kProjections[i];
    std::memcpy(joined.data() + i * H * H, staged_.at(name + ".weight").data(),
                static_cast<size_t>(H * H) * sizeof(float));
    std::memcpy(bias.data() + i * H, staged_.at(name + ".bias").data(),
                static_cast<size_t>(H) * sizeof(float));
    staged_.erase(name + ".weight");
    staged_.erase(name + ".bias");
  }
  LayerWeights& layer = layers[static_cast<size_t>(index)];
  pack(layer.qkv, joined.data(), 3 * H, H, index, 0);
  layer.qkv.bias = std::move(bias);
}

void Weights::finish() {
  for (const auto& [name, shape] : expected_)
    check(seen_[name], "weights: the checkpoint lacks '", name, "', shape ", shape_text(shape));
  const int64_t H = config_.hidden_size;
  const float* token_type = staged_.at("embeddings.token_type_embeddings.weight").data();
  for (int64_t row = 0; row < config_.max_position_embeddings; ++row)
    for (int64_t c = 0; c < H; ++c) position_embeddings.data()[row * H + c] += token_type[c];
  staged_.clear();
}

}  // namespace minifuse
