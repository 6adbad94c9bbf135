// The caller's description of a model (minifuse.models.ModelDescription) as the core's own.
#pragma once

#include "bindings/bindings.h"
#include "model/description.h"

namespace minifuse {

inline Norms parse_norms(const std::string& name) {
  if (name == "post") return Norms::kPost;
  if (name == "pre") return Norms::kPre;
  if (name == "sandwich") return Norms::kSandwich;
  fail("norms is '", name, "', wanted one of post, pre, sandwich");
}

// Reads the attributes of a Python object; throws where one is missing, of another type or nonsense.
inline ModelDescription description_of(const py::object& object) {
  const auto integer = [&](const char* name) { return object.attr(name).cast<int64_t>(); };
  const ModelDescription description{
      .vocab_size = integer("vocab_size"),
      .max_position_embeddings = integer("max_position_embeddings"),
      .hidden_size = integer("hidden_size"),
      .num_hidden_layers = integer("num_hidden_layers"),
      .num_attention_heads = integer("num_attention_heads"),
      .intermediate_size = integer("intermediate_size"),
      .type_vocab_size = integer("type_vocab_size"),
      .layer_norm_eps = static_cast<float>(object.attr("layer_norm_eps").cast<double>()),
      .activation = parse_activation(object.attr("activation").cast<std::string>()),
      .has_position_embeddings = object.attr("has_position_embeddings").cast<bool>(),
      .padding_id = integer("padding_id"),
      .has_relative_bias = object.attr("has_relative_bias").cast<bool>(),
      .rotary_theta = object.attr("rotary_theta").cast<double>(),
      .local_rotary_theta = object.attr("local_rotary_theta").cast<double>(),
      .rotary_scale = object.attr("rotary_scale").cast<double>(),
      .windows = object.attr("windows").cast<std::vector<int64_t>>(),
      .norms = parse_norms(object.attr("norms").cast<std::string>()),
      .has_rms_norms = object.attr("has_rms_norms").cast<bool>(),
      .has_embedding_norm = object.attr("has_embedding_norm").cast<bool>(),
      .num_key_value_heads = integer("num_key_value_heads"),
      .head_size = integer("head_dim"),
      .has_head_norms = object.attr("has_head_norms").cast<bool>(),
      .attention_scale = object.attr("attention_scale").cast<double>(),
      .is_causal = object.attr("is_causal").cast<bool>(),
      .has_gate = object.attr("has_gate").cast<bool>()};
  description.validate();
  return description;
}

}  // namespace minifuse
