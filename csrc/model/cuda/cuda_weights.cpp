#include "model/cuda/cuda_weights.h"

#include <stdexcept>

#include "common/float_bits.h"

namespace minifuse {

using cuda::DeviceBuffer;

namespace {

// Rows of floats as rows of the element type, one after the other: the "panels" of the device.
template <typename F>
void convert_rows(const void* weight, int64_t ldw, int64_t num_rows, int64_t K, void* panel,
                  F convert) {
  for (int64_t row = 0; row < num_rows; ++row)
    for (int64_t k = 0; k < K; ++k)
      convert(static_cast<const float*>(weight)[row * ldw + k], panel, row * K + k);
}

void pack_float32(const void* weight, int64_t ldw, int64_t num_rows, int64_t K, void* panel) {
  convert_rows(weight, ldw, num_rows, K, panel,
               [](float x, void* to, int64_t i) { static_cast<float*>(to)[i] = x; });
}
void pack_bfloat16(const void* weight, int64_t ldw, int64_t num_rows, int64_t K, void* panel) {
  convert_rows(weight, ldw, num_rows, K, panel, [](float x, void* to, int64_t i) {
    static_cast<uint16_t*>(to)[i] = to_bfloat16_bits(x);
  });
}
void pack_float16(const void* weight, int64_t ldw, int64_t num_rows, int64_t K, void* panel) {
  convert_rows(weight, ldw, num_rows, K, panel, [](float x, void* to, int64_t i) {
    static_cast<uint16_t*>(to)[i] = to_float16_bits(x);
  });
}

}  // namespace

MatrixFormat row_major_format(const std::string& element) {
  // pack_panel is given float32 and rounds by itself.
  const auto format = [](auto pack_panel, auto panel_bytes) {
    return MatrixFormat{"cuda", WeightType::kFloat32, 1, panel_bytes, pack_panel};
  };
  if (element == "float32") return format(pack_float32, +[](int64_t K) { return K * 4; });
  return format(
      element == "bfloat16" ? pack_bfloat16 : pack_float16, +[](int64_t K) { return K * 2; });
}

namespace {

DeviceBuffer send(cuda::Runtime& runtime, const void* data, size_t size_bytes,
                  const std::string& name) {
  void* memory = runtime.allocate(size_bytes, name);
  if (memory == nullptr)
    throw std::runtime_error(runtime.device_name() + " has no room for the weights (" +
                             std::to_string(size_bytes) + " bytes of " + name +
                             "): free memory of it, or use a dtype of 16 bits or device='cpu'");
  DeviceBuffer buffer(runtime, memory, size_bytes);
  const cuda::Stream stream = runtime.create_stream();
  runtime.upload(memory, data, size_bytes, stream);
  runtime.synchronize(stream);
  runtime.destroy_stream(stream);
  if (cuda::MemoryRules* rules = runtime.memory_rules()) rules->protect(memory);
  return buffer;
}

}  // namespace

CudaWeights::CudaWeights(const ModelDescription& description, const Weights& weights,
                         const MatrixFormat& rows, cuda::Runtime& runtime) {
  const auto send_floats = [&](const Buffer& buffer, const char* name) {
    return send(runtime, buffer.data(), static_cast<size_t>(buffer.size()) * sizeof(float), name);
  };
  const auto send_matrix = [&](const PackedLinear& matrix, const char* name) {
    const auto size_bytes = static_cast<size_t>(matrix.weight.size());
    return Matrix{send(runtime, matrix.weight.data(), size_bytes, name),
                  send_floats(matrix.bias, "a bias"), static_cast<int>(matrix.N),
                  static_cast<int>(matrix.K)};
  };
  const auto send_norm = [&](const NormWeights& norm) {
    return Norm{send_floats(norm.gamma, "a LayerNorm's gamma"),
                send_floats(norm.beta, "a LayerNorm's beta")};
  };
  const auto send_table = [&](const Buffer& table, int64_t num_rows, const char* name) {
    const int64_t H = description.hidden_size;
    BufferOf<std::byte> packed(num_rows * rows.panel_bytes(H));
    rows.pack_panel(table.data(), H, num_rows, H, packed.data());
    return send(runtime, packed.data(), static_cast<size_t>(packed.size()), name);
  };
  word = send_table(weights.word_embeddings, description.vocab_size, "word embeddings");
  position = send_table(weights.position_embeddings,
                        description.num_token_types() * description.position_rows(),
                        "position embeddings");
  embedding_gamma = send_floats(weights.embedding_gamma, "embedding gamma");
  embedding_beta = send_floats(weights.embedding_beta, "embedding beta");
  for (const LayerWeights& w : weights.layers)
    layers.push_back({.qkv = send_matrix(w.qkv, "Wqkv"),
                      .out = send_matrix(w.out, "Wo"),
                      .ffn1 = send_matrix(w.ffn1, "W1"),
                      .ffn2 = send_matrix(w.ffn2, "W2"),
                      .attention_norm = send_norm(w.attention_norm),
                      .ffn_norm = send_norm(w.ffn_norm)});
}

}  // namespace minifuse
