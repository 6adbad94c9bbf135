// Encoders of any shape with random weights, random sentences, and their vectors.
#pragma once

#include "model/encoder.h"
#include "linear/quantize.h"
#include "expect.h"

namespace minifuse::test {

inline void set_quantized(Encoder& encoder, const std::string& name,
                          const std::vector<float>& weight, const std::vector<int64_t>& shape) {
  const int64_t N = shape[0], K = shape[1];
  std::vector<int8_t> codes(static_cast<size_t>(N * K));
  std::vector<float> scale(static_cast<size_t>(int8_groups(K) * N));
  quantize_rows(weight.data(), K, N, K, nullptr, nullptr, codes.data(), scale.data(), N);
  encoder.weights().set_quantized(name, codes.data(), shape, scale.data(), nullptr);
}

inline std::unique_ptr<Encoder> random_encoder(const InstructionSet& isa, WeightType type,
                                               const ModelDescription& description,
                                               int64_t l2_bytes = l2_cache_bytes()) {
  auto encoder = std::make_unique<Encoder>(description, isa, type, l2_bytes);
  uint32_t seed = 1;
  for (const auto& [name, shape] : encoder->weights().shapes()) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    const std::vector<float> values =
        random_floats(count, seed++, 0.2f / std::sqrt(static_cast<float>(shape.back()) / 48.0f));
    if (type == WeightType::kInt8 && name.starts_with("layers.") && shape.size() == 2)
      set_quantized(*encoder, name, values, shape);
    else
      encoder->weights().set(name, values.data(), shape);
  }
  encoder->weights().finish();
  return encoder;
}

struct Sentences {
  std::vector<int32_t> ids, offsets{0}, types;

  Batch batch() const {
    return {ids.data(), offsets.data(), static_cast<int64_t>(offsets.size()) - 1,
            static_cast<int64_t>(ids.size()), types.empty() ? nullptr : types.data()};
  }
  // Sentence i as a batch of its own.
  Sentences alone(int64_t i) const {
    const int32_t begin = offsets[static_cast<size_t>(i)];
    const int32_t end = offsets[static_cast<size_t>(i + 1)];
    return {{ids.begin() + begin, ids.begin() + end},
            {0, end - begin},
            {types.begin() + begin, types.begin() + end}};
  }
};

// Sentences whose tokens have the types 0 to num_types - 1.
inline Sentences random_sentences(const std::vector<int>& seqlens, uint32_t seed,
                                  uint32_t vocab_size = 50, uint32_t num_types = 1) {
  std::mt19937 generator(seed);
  Sentences sentences;
  for (const int seqlen : seqlens) {
    for (int i = 0; i < seqlen; ++i)
      sentences.ids.push_back(static_cast<int32_t>(generator() % vocab_size));
    sentences.offsets.push_back(static_cast<int32_t>(sentences.ids.size()));
  }
  for (size_t i = 0; i < sentences.ids.size(); ++i)
    sentences.types.push_back(static_cast<int32_t>(generator() % num_types));
  return sentences;
}

// Means and maxima: [batch, 2 H].
inline std::vector<float> encode(const Encoder& encoder, const Batch& batch, int64_t batch_size,
                                 int num_threads) {
  std::vector<float> pooled(
      static_cast<size_t>(batch.batch * 2 * encoder.description().hidden_size));
  Outputs outputs;
  outputs.pooled = pooled.data();
  outputs.poolings = {Pooling::kMean, Pooling::kMax};
  EXPECT(encoder.encode(batch, outputs, batch_size, num_threads, {}), "stopped");
  return pooled;
}

}  // namespace minifuse::test
