// The encoder on random weights: the same bits alone, batched, with any number of threads, from
// several callers at once; malformed batches refused; a call that is told to stop stops.

#include <thread>

#include "encoder/encoder.h"
#include "encoder/quantize.h"
#include "expect.h"

using namespace minifuse;
using namespace minifuse::test;

namespace {

constexpr int64_t kHidden = 48;

void set_quantized(Encoder& encoder, const std::string& name, const std::vector<float>& weight,
                   const std::vector<int64_t>& shape) {
  const int64_t N = shape[0], K = shape[1];
  std::vector<int8_t> codes(static_cast<size_t>(N * K));
  std::vector<float> scale(static_cast<size_t>(int8_groups(K) * N));
  quantize_rows(weight.data(), K, N, K, nullptr, nullptr, codes.data(), scale.data(), N);
  encoder.weights().set_quantized(name, codes.data(), shape, scale.data(), nullptr);
}

std::unique_ptr<Encoder> random_encoder(const InstructionSet& isa, WeightType type) {
  const Config config{.vocab_size = 50,
                      .max_position_embeddings = 40,
                      .hidden_size = kHidden,
                      .num_hidden_layers = 2,
                      .num_attention_heads = 3,
                      .intermediate_size = 70,
                      .layer_norm_eps = 1e-12f,
                      .activation = Activation::kGelu};
  auto encoder = std::make_unique<Encoder>(config, isa, type);
  uint32_t seed = 1;
  for (const auto& [name, wanted] : encoder->weights().expected()) {
    std::vector<int64_t> shape = wanted;
    int64_t count = 1;
    for (int64_t& extent : shape) {
      if (extent < 0) extent = 2;
      count *= extent;
    }
    const std::vector<float> values = random_floats(count, seed++, 0.2f);
    if (type == WeightType::kInt8 && name.starts_with("encoder.layer.") && shape.size() == 2)
      set_quantized(*encoder, name, values, shape);
    else
      encoder->weights().set(name, values.data(), shape);
  }
  encoder->weights().finish();
  return encoder;
}

struct Sentences {
  std::vector<int32_t> ids, offsets{0};

  Batch batch() const {
    return {ids.data(), offsets.data(), static_cast<int64_t>(offsets.size()) - 1,
            static_cast<int64_t>(ids.size())};
  }
};

Sentences random_sentences(const std::vector<int>& seqlens, uint32_t seed) {
  std::mt19937 generator(seed);
  Sentences sentences;
  for (const int seqlen : seqlens) {
    for (int i = 0; i < seqlen; ++i)
      sentences.ids.push_back(static_cast<int32_t>(generator() % 50));
    sentences.offsets.push_back(static_cast<int32_t>(sentences.ids.size()));
  }
  return sentences;
}

std::vector<float> encode(const Encoder& encoder, const Batch& batch, int64_t batch_size,
                          int num_threads) {
  std::vector<float> pooled(static_cast<size_t>(batch.batch * 2 * kHidden));
  Outputs outputs;
  outputs.pooled = pooled.data();
  outputs.poolings = {Pooling::kMean, Pooling::kMax};
  EXPECT(encoder.encode(batch, outputs, batch_size, num_threads, {}), "stopped");
  return pooled;
}

// first_bits: the embeddings of the first instruction set with this type, which the others must
// equal.
void test_invariance(const InstructionSet& isa, WeightType type, std::vector<float>& first_bits) {
  const std::unique_ptr<Encoder> encoder = random_encoder(isa, type);
  const Sentences all = random_sentences({5, 0, 40, 1, 17, 23, 12, 13, 2, 39, 7, 31}, 3);
  const Batch batch = all.batch();
  const std::vector<float> expected = encode(*encoder, batch, 32, 1);
  for (const int threads : {1, 2, 3, 5})
    for (const int64_t batch_size : {1, 2, 32})
      EXPECT(same_bits(encode(*encoder, batch, batch_size, threads), expected),
             "%s: %d threads, batch_size %d", isa.name, threads, int(batch_size));
  for (int64_t i = 0; i < batch.batch; ++i) {
    const int32_t begin = batch.cu_seqlens[i], end = batch.cu_seqlens[i + 1];
    const Sentences alone{{all.ids.begin() + begin, all.ids.begin() + end}, {0, end - begin}};
    const auto row = expected.begin() + i * 2 * kHidden;
    for (const int threads : {1, 2})
      EXPECT(same_bits(encode(*encoder, alone.batch(), 32, threads), {row, row + 2 * kHidden}),
             "%s: sentence %d alone, %d threads", isa.name, int(i), threads);
  }
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int round = 0; round < 20; ++round)
        EXPECT(same_bits(encode(*encoder, batch, 4, 2), expected), "%s: concurrent", isa.name);
    });
  for (std::thread& caller : callers) caller.join();

  if (first_bits.empty()) first_bits = expected;
  EXPECT(same_bits(expected, first_bits), "%s, type %d differs from the first set", isa.name,
         static_cast<int>(type));
}

void test_stop_and_states(const InstructionSet& isa) {
  const std::unique_ptr<Encoder> encoder = random_encoder(isa, WeightType::kFloat32);
  const Sentences sentences = random_sentences({9, 30, 4}, 5);
  const Batch batch = sentences.batch();
  std::vector<float> states(static_cast<size_t>(3 * batch.total_tokens * kHidden));
  std::vector<float> last(static_cast<size_t>(batch.total_tokens * kHidden));
  Outputs outputs;
  outputs.hidden_states = states.data();
  outputs.token_embeddings = last.data();
  for (const int threads : {1, 4})
    EXPECT(!encoder->encode(batch, outputs, 32, threads, [] { return true; }), "did not stop");
  EXPECT(encoder->encode(batch, outputs, 32, 3, [] { return false; }), "stopped");
  EXPECT(same_bits({states.end() - static_cast<int64_t>(last.size()), states.end()}, last),
         "the last hidden state is not the token embeddings");
}

void test_refusals() {
  const std::unique_ptr<Encoder> encoder =
      random_encoder(select_isa("scalar"), WeightType::kFloat32);
  const auto refused = [&](const char* text, std::vector<int32_t> ids,
                           std::vector<int32_t> offsets) {
    const Sentences sentences{std::move(ids), std::move(offsets)};
    std::vector<float> pooled(64 * kHidden);
    Outputs outputs;
    outputs.pooled = pooled.data();
    outputs.poolings = {Pooling::kMean};
    expect_invalid(text, [&] { encoder->encode(sentences.batch(), outputs, 8, 1, {}); });
  };
  refused("descends", {1, 2, 3}, {0, 2, 1, 3});
  refused("ends at 4", {1, 2, 3}, {0, 4});
  refused("cu_seqlens[0] is 1", {1, 2, 3}, {1, 3});
  refused("ids[1] is 50", {1, 50}, {0, 2});
  refused("ids[0] is -1", {-1, 5}, {0, 2});
  refused("max_position_embeddings=40", std::vector<int32_t>(41, 1), {0, 41});

  const LinearKernels& kernels = select_isa("scalar").kernels->float32;
  Config config{.vocab_size = 5,
                .max_position_embeddings = 5,
                .hidden_size = 10,
                .num_hidden_layers = 1,
                .num_attention_heads = 3,
                .intermediate_size = 5,
                .layer_norm_eps = 0.0f,
                .activation = Activation::kRelu};
  expect_invalid("not a multiple", [&] { Weights(config, kernels); });
  config.num_attention_heads = 2;
  Weights weights(config, kernels);
  const std::vector<float> values(100);
  expect_invalid("no tensor is called", [&] { weights.set("x", values.data(), {10}); });
  expect_invalid("wanted [10]",
                 [&] { weights.set("embeddings.LayerNorm.bias", values.data(), {9}); });
  weights.set("embeddings.LayerNorm.bias", values.data(), {10});
  expect_invalid("given twice",
                 [&] { weights.set("embeddings.LayerNorm.bias", values.data(), {10}); });
  expect_invalid("the checkpoint lacks", [&] { weights.finish(); });
}

}  // namespace

int main() {
  std::vector<float> first_bits[3];
  for (const InstructionSet* isa : runnable_sets()) {
    for (const WeightType type : {WeightType::kFloat32, WeightType::kBfloat16, WeightType::kInt8})
      test_invariance(*isa, type, first_bits[static_cast<int>(type)]);
    test_stop_and_states(*isa);
    std::printf("%s: the encoder keeps its bits\n", isa->name);
  }
  test_refusals();
  ThreadPool::get().shutdown();
  return 0;
}
