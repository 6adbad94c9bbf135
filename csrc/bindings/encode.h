// Code that the two encoders' bindings share: weights in; arrays in, vectors out. `run` is given the
// batch and where its outputs go, and is expected to release the GIL.
#pragma once

#include <utility>

#include "bindings/bindings.h"

namespace minifuse {

template <typename AnyEncoder>
void set_weight(AnyEncoder& encoder, const std::string& name, const FloatArray& array) {
  encoder.weights().set(name, array.data(), shape_of(array));
}
template <typename AnyEncoder>
void set_weight_rows(AnyEncoder& encoder, const std::string& name, const FloatArray& rows,
                     int64_t first_row) {
  encoder.weights().set_rows(name, rows.data(), shape_of(rows), first_row);
}

inline Outputs pooled_outputs(const std::vector<std::string>& poolings, int64_t pool_from) {
  Outputs outputs;
  for (const std::string& name : poolings) outputs.poolings.push_back(parse_pooling(name));
  check(!outputs.poolings.empty(), "poolings: wanted at least one");
  outputs.pool_from = pool_from;
  return outputs;
}

// Room for vectors, [batch, poolings * H], and for rows of tokens, [total_tokens, H].
inline FloatArray new_vectors(int64_t hidden_size, const Batch& batch, size_t num_poolings) {
  return FloatArray(
      {static_cast<py::ssize_t>(batch.batch),
       static_cast<py::ssize_t>(hidden_size) * static_cast<py::ssize_t>(num_poolings)});
}

inline FloatArray new_rows(int64_t hidden_size, const Batch& batch) {
  return FloatArray(
      {static_cast<py::ssize_t>(batch.total_tokens), static_cast<py::ssize_t>(hidden_size)});
}

// float32 [batch, poolings * H]
template <typename Run>
FloatArray encode_pooled(int64_t hidden_size, const OwnedBatch& owned,
                         const std::vector<std::string>& poolings, int64_t pool_from, Run run) {
  const Batch batch = owned.view();
  Outputs outputs = pooled_outputs(poolings, pool_from);
  FloatArray pooled = new_vectors(hidden_size, batch, poolings.size());
  outputs.pooled = pooled.mutable_data();
  run(batch, outputs);
  return pooled;
}

// Both of one pass: vectors and rows of tokens.
template <typename Run>
std::pair<FloatArray, FloatArray> encode_both(int64_t hidden_size, const OwnedBatch& owned,
                                              const std::vector<std::string>& poolings,
                                              int64_t pool_from, Run run) {
  const Batch batch = owned.view();
  Outputs outputs = pooled_outputs(poolings, pool_from);
  FloatArray pooled = new_vectors(hidden_size, batch, poolings.size());
  FloatArray rows = new_rows(hidden_size, batch);
  outputs.pooled = pooled.mutable_data();
  outputs.token_embeddings = rows.mutable_data();
  run(batch, outputs);
  return {pooled, rows};
}

// float32 [total_tokens, H]
template <typename Run>
FloatArray encode_tokens(int64_t hidden_size, const OwnedBatch& owned, Run run) {
  const Batch batch = owned.view();
  FloatArray rows = new_rows(hidden_size, batch);
  Outputs outputs;
  outputs.token_embeddings = rows.mutable_data();
  run(batch, outputs);
  return rows;
}

}  // namespace minifuse
