// The encoder on random weights: the same bits alone, batched, with any number of threads, from
// several callers at once; malformed batches refused; a call that is told to stop stops.

#include <chrono>
#include <thread>

#include "random_encoder.h"
#include "threads/barrier.h"
#include "threads/pool.h"

using namespace minifuse;
using namespace minifuse::test;

namespace {

constexpr int64_t kHidden = 48;
constexpr ModelDescription kSmall{.vocab_size = 50,
                                  .max_position_embeddings = 40,
                                  .hidden_size = kHidden,
                                  .num_hidden_layers = 2,
                                  .num_attention_heads = 3,
                                  .intermediate_size = 70,
                                  .type_vocab_size = 2,
                                  .layer_norm_eps = 1e-12f,
                                  .activation = Activation::kGelu};

// first_bits: the embeddings of the first instruction set with this type, which the others must
// equal, except where an instruction rounds in its own way.
void test_invariance(const InstructionSet& isa, WeightType type, std::vector<float>& first_bits) {
  const std::unique_ptr<Encoder> encoder = random_encoder(isa, type, kSmall);
  const Sentences all = random_sentences({5, 0, 40, 1, 17, 23, 12, 13, 2, 39, 7, 31}, 3, 50, 2);
  const Batch batch = all.batch();
  const std::vector<float> expected = encode(*encoder, batch, 32, 1);
  for (const int threads : {1, 2, 3, 5})
    for (const int64_t batch_size : {1, 2, 32})
      EXPECT(same_bits(encode(*encoder, batch, batch_size, threads), expected),
             "%s: %d threads, batch_size %d", isa.name, threads, int(batch_size));
  for (int64_t i = 0; i < batch.batch; ++i) {
    const Sentences alone = all.alone(i);
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

  if (type == WeightType::kBfloat16 && isa.multiplies_pairs) return;
  if (first_bits.empty()) first_bits = expected;
  EXPECT(same_bits(expected, first_bits), "%s, type %d differs from the first set", isa.name,
         static_cast<int>(type));
}

void test_stop_and_states(const InstructionSet& isa) {
  const std::unique_ptr<Encoder> encoder = random_encoder(isa, WeightType::kFloat32, kSmall);
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

#if defined(MINIFUSE_CHECKED)
// Delays a member on its way into a barrier, so that teams meet in every order.
void sleep_at_random() {
  thread_local std::mt19937 generator(
      static_cast<uint32_t>(std::hash<std::thread::id>{}(std::this_thread::get_id())));
  if (generator() % 16 == 0)
    std::this_thread::sleep_for(std::chrono::microseconds(generator() % 200));
}
#endif

// Chunks that a team shares, stopped at the first, second, ... question: every member leaves, the
// call returns, and the next one gives the right bits.
void test_stop_at_every_check() {
  const InstructionSet& isa = *runnable_sets().front();
  ModelDescription description = kSmall;
  description.max_position_embeddings = 128;
  description.hidden_size = 96;
  description.intermediate_size = 384;
  description.num_hidden_layers = 3;
  const auto encoder = random_encoder(isa, WeightType::kInt8, description);
  const Sentences sentences = random_sentences({128, 127}, 9);
  const Batch batch = sentences.batch();
  const std::vector<float> expected = encode(*encoder, batch, 1, 1);
  std::vector<float> pooled(expected.size());
  Outputs outputs;
  outputs.pooled = pooled.data();
  outputs.poolings = {Pooling::kMean, Pooling::kMax};
#if defined(MINIFUSE_CHECKED)
  on_barrier = sleep_at_random;
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr int kRounds = 1, kEvery = 7;  // each takes a hundred times as long
#else
  constexpr int kRounds = 3, kEvery = 1;
#endif
  const int64_t checks_per_chunk = 7 * description.num_hidden_layers + 3;  // its meetings
  int alone = 0;  // five steps of a layer, embedding, pooling and what is behind them
  EXPECT(encoder->encode(batch, outputs, 1, 1, [&] { return ++alone, false; }), "stopped");
  EXPECT(alone >= 2 * (5 * description.num_hidden_layers + 3), "%d checks", alone);
  for (const int threads : {3, 4, 6}) {
    EXPECT(encoder->plan(batch, 1, threads).num_shared_chunks >= 2, "nothing is shared");
    int checks = 0;
    EXPECT(encoder->encode(batch, outputs, 1, threads, [&] { return ++checks, false; }), "stopped");
    EXPECT(checks >= 2 * checks_per_chunk, "%d checks", checks);
    for (int stop_at = 1; stop_at <= checks; stop_at += kEvery)
      for (int round = 0; round < kRounds; ++round) {
        int asked = 0;
        EXPECT(!encoder->encode(batch, outputs, 1, threads, [&] { return ++asked >= stop_at; }),
               "%d threads: not stopped at check %d of %d", threads, stop_at, checks);
        EXPECT(same_bits(encode(*encoder, batch, 1, threads), expected),
               "%d threads: other bits after a stop at check %d", threads, stop_at);
      }
  }
#if defined(MINIFUSE_CHECKED)
  on_barrier = nullptr;
#endif
}

// A signal's handler runs inside should_stop and may encode: it neither waits for itself nor
// disturbs the call that it interrupts.
void test_encode_within_should_stop(const InstructionSet& isa) {
  const std::unique_ptr<Encoder> encoder = random_encoder(isa, WeightType::kFloat32, kSmall);
  const Sentences sentences = random_sentences({9, 30, 4, 40, 40}, 5);
  const Batch batch = sentences.batch();
  const std::vector<float> expected = encode(*encoder, batch, 2, 1);
  std::vector<float> pooled(expected.size());
  Outputs outputs;
  outputs.pooled = pooled.data();
  outputs.poolings = {Pooling::kMean, Pooling::kMax};
  for (const int threads : {1, 2, 4}) {
    const auto handler = [&] {
      EXPECT(same_bits(encode(*encoder, batch, 2, threads), expected), "within a handler");
      return false;
    };
    EXPECT(encoder->encode(batch, outputs, 2, threads, handler), "stopped");
    EXPECT(same_bits(pooled, expected), "%d threads: around a handler", threads);
  }
}

void test_unfinished_weights() {
  const Encoder encoder(kSmall, select_isa("scalar"), WeightType::kFloat32);
  const Sentences sentences = random_sentences({3}, 1);
  std::vector<float> pooled(kHidden);
  Outputs outputs;
  outputs.pooled = pooled.data();
  outputs.poolings = {Pooling::kMean};
  expect_invalid("finish_weights", [&] { encoder.encode(sentences.batch(), outputs, 1, 1, {}); });
}

void test_refusals() {
  const std::unique_ptr<Encoder> encoder =
      random_encoder(select_isa("scalar"), WeightType::kFloat32, kSmall);
  const auto refused = [&](const char* text, std::vector<int32_t> ids, std::vector<int32_t> offsets,
                           std::vector<int32_t> types = {}) {
    const Sentences sentences{std::move(ids), std::move(offsets), std::move(types)};
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
  refused("token_types[1] is 2, wanted 0..1", {1, 2}, {0, 2}, {0, 2});
  refused("token_types[0] is -1", {1, 2}, {0, 2}, {-1, 0});

  const LinearKernels& kernels = select_isa("scalar").kernels.float32;
  ModelDescription description{.vocab_size = 5,
                               .max_position_embeddings = 5,
                               .hidden_size = 10,
                               .num_hidden_layers = 1,
                               .num_attention_heads = 3,
                               .intermediate_size = 5,
                               .layer_norm_eps = 0.0f,
                               .activation = Activation::kRelu};
  expect_invalid("not a multiple", [&] { Weights(description, kernels.format); });
  description.num_attention_heads = 2;
  Weights weights(description, kernels.format);
  const std::vector<float> values(100);
  expect_invalid("has no slot", [&] { weights.set("x", values.data(), {10}); });
  expect_invalid("wanted [10]", [&] { weights.set("embeddings.norm.bias", values.data(), {9}); });
  weights.set("embeddings.norm.bias", values.data(), {10});
  expect_invalid("given twice", [&] { weights.set("embeddings.norm.bias", values.data(), {10}); });
  expect_invalid("is missing", [&] { weights.finish(); });
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
  for (const WeightType type : {WeightType::kBfloat16, WeightType::kInt8})
    test_invariance(emulated_amx(), type, first_bits[static_cast<int>(type)]);
  test_stop_at_every_check();
  test_encode_within_should_stop(*runnable_sets().front());
  test_unfinished_weights();
  test_refusals();
  ThreadPool::get().shutdown();
  return 0;
}
