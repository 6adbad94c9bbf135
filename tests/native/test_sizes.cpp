// Every buffer of the encoder is as large as what is written to it, at the shapes of real models: by
// the functions that compute sizes, over all of them; and by encoding ragged batches whose blocks of
// rows end everywhere, which sanitizers and checked kernels watch.

#include "random_encoder.h"
#include "threads/barrier.h"
#include "threads/pool.h"

using namespace minifuse;
using namespace minifuse::test;

namespace {

constexpr WeightType kTypes[] = {WeightType::kFloat32, WeightType::kBfloat16, WeightType::kInt8};

ModelDescription shape(int64_t H, int64_t F, int64_t num_layers) {
  return {.vocab_size = 50,
          .max_position_embeddings = 512,
          .hidden_size = H,
          .num_hidden_layers = num_layers,
          .num_attention_heads = H / (H % 64 == 0 && H >= 512 ? 64 : 32),
          .intermediate_size = F,
          .layer_norm_eps = 1e-12f,
          .activation = Activation::kGelu};
}

// Bytes that y [M, N] = x [M, K] W^T writes to scratch memory.
int64_t linear_need(const LinearKernels& kernels, int64_t M, int64_t N, int64_t K) {
  const int64_t rows = kernels.block_rows(M, N, K);
  EXPECT(rows <= M && rows <= kMaxBlockRows, "%s: %d rows of M=%d N=%d K=%d", kernels.format.isa,
         int(rows), int(M), int(N), int(K));
  return kernels.scratch_bytes(rows, K);
}

// Checks what a chunk of M tokens writes, in the order of Encoder::layer.
void check_need(const ModelDescription& description, const LinearKernels& kernels,
                const BlockSizes& blocks, int64_t M, const WorkspaceSizes& allocated,
                bool is_alone) {
  const int64_t H = description.hidden_size, F = description.intermediate_size;
  const int64_t rows = is_alone ? std::min(M, ffn_block_rows(M, blocks, kernels)) : M;
  int64_t need = std::max(linear_need(kernels, M, 3 * H, H), linear_need(kernels, M, H, H));
  // The last block of the feed-forward may have any number of rows up to a whole one.
  for (const int64_t r : {rows, M % rows == 0 ? rows : M % rows})
    need = std::max({need, linear_need(kernels, r, F, H), linear_need(kernels, r, H, F)});
  EXPECT(need <= allocated.linear_bytes && rows <= allocated.hidden_rows && M <= allocated.tokens,
         "%s type %d H=%d F=%d: %d tokens need %d bytes and %d rows, of %d bytes and %d rows",
         kernels.format.isa, int(kernels.format.weight_type), int(H), int(F), int(M), int(need),
         int(rows), int(allocated.linear_bytes), int(allocated.hidden_rows));
}

void test_sizes(const LinearKernels& kernels) {
  for (const int64_t H : {128, 256, 384, 512, 768, 1024})
    for (const int64_t F : {512, 1024, 1152, 1536, 2048, 3072, 4096})
      for (int64_t l2 = 256 * 1024; l2 <= 2048 * 1024; l2 *= 2)
        for (const int64_t members : {1, 4}) {
          const ModelDescription description = shape(H, F, 1);
          const BlockSizes blocks = block_sizes(l2);
          WorkspaceSizes smaller{};
          for (int64_t tokens = 1; tokens <= 512; ++tokens) {
            const WorkspaceSizes sizes =
                workspace_sizes(description, kernels, blocks, tokens, tokens, members);
            check_need(description, kernels, blocks, tokens, sizes, members == 1);
            // With monotone sizes, what serves `tokens` serves every smaller chunk, too.
            EXPECT(sizes.covers(smaller) && sizes.linear_bytes >= smaller.linear_bytes &&
                       sizes.attention_floats >= smaller.attention_floats,
                   "%s H=%d F=%d: %d tokens need less than one fewer", kernels.format.isa, int(H),
                   int(F), int(tokens));
            smaller = sizes;
            // Neither of these covers the other: more members here, more tokens there.
            const WorkspaceSizes shared =
                workspace_sizes(description, kernels, blocks, 1, 1, members + 8);
            for (const WorkspaceSizes& joined :
                 {sizes.joined_with(shared), shared.joined_with(sizes)})
              EXPECT(joined.covers(sizes) && joined.covers(shared), "joined sizes serve one only");
          }
        }
}

// scratch_bytes itself, over more than a model uses.
void test_scratch_is_monotone(const LinearKernels& kernels) {
  for (int64_t K = 0; K < 4200; K += K < 200 ? 1 : 37)
    for (int64_t M = 0; M < 1100; M += M < 40 ? 1 : 13) {
      const int64_t bytes = kernels.scratch_bytes(M, K);
      EXPECT(bytes <= kernels.scratch_bytes(M + 1, K) && bytes <= kernels.scratch_bytes(M, K + 1),
             "%s M=%d K=%d", kernels.format.isa, int(M), int(K));
      for (const int64_t N : {0, 1, 384, 1152, 4096})
        if (M > 0)
          EXPECT(linear_need(kernels, M, N, K) <= bytes, "%s M=%d N=%d K=%d", kernels.format.isa,
                 int(M), int(N), int(K));
    }
}

// Batches that overflowed, lengths at which the balanced blocks are larger than those of the largest
// chunk, and lengths at random.
std::vector<std::vector<int>> ragged_batches(uint32_t seed, int count) {
  std::vector<std::vector<int>> batches = {{250, 150},    {256, 130},     {216, 130},
                                           {103, 102},    {154, 153},     {205, 204},
                                           {97, 145, 49}, {512, 1, 2, 3}, {193, 192, 191}};
  std::mt19937 generator(seed);
  for (int i = 0; i < count; ++i) {
    std::vector<int> lengths(1 + generator() % 5);
    for (int& length : lengths) length = static_cast<int>(1 + generator() % (i % 3 ? 260 : 512));
    batches.push_back(lengths);
  }
  return batches;
}

void test_encodes(const InstructionSet& isa, WeightType type, int64_t H, int64_t l2_bytes,
                  int count) {
  const auto encoder = random_encoder(isa, type, shape(H, 4 * H, 1), l2_bytes);
  for (const std::vector<int>& lengths : ragged_batches(static_cast<uint32_t>(H), count)) {
    const Sentences all = random_sentences(lengths, 3);
    const Batch batch = all.batch();
    const std::vector<float> expected = encode(*encoder, batch, 32, 1);
    for (const float value : expected) EXPECT(std::isfinite(value), "H=%d", int(H));
    for (const int threads : {2, 4})
      EXPECT(same_bits(encode(*encoder, batch, 32, threads), expected),
             "%s type %d H=%d: %d threads, first length %d of %d", isa.name, int(type), int(H),
             threads, lengths[0], int(lengths.size()));
    const auto last = batch.batch - 1;
    EXPECT(same_bits(encode(*encoder, all.alone(last).batch(), 32, 1),
                     {expected.end() - 2 * H, expected.end()}),
           "%s type %d H=%d: alone, length %d", isa.name, int(type), int(H), lengths.back());
  }
}

// A workspace in which one thread computed a long sentence, and then a short one that four threads
// share: each needs less than the one did, and all together more.
void test_reuse(const InstructionSet& isa, WeightType type, int64_t H) {
  const auto encoder = random_encoder(isa, type, shape(H, 4 * H, 1));
  for (const int length : {20, 40, 60, 80, 100, 120}) {
    const auto fresh = random_encoder(isa, type, shape(H, 4 * H, 1));
    encode(*fresh, random_sentences({512}, 1).batch(), 32, 1);
    const Sentences sentence = random_sentences({length}, 2);
    EXPECT(same_bits(encode(*fresh, sentence.batch(), 32, 4),
                     encode(*encoder, sentence.batch(), 32, 1)),
           "%s type %d H=%d: %d tokens by four threads", isa.name, int(type), int(H), length);
  }
}

}  // namespace

int main(int argc, char**) {
  // Any argument: more batches, every instruction set. Without: what a check of a change can afford.
  const bool is_long = argc > 1;
  std::vector<const InstructionSet*> sets = runnable_sets();
  sets.push_back(&emulated_amx());
  for (const InstructionSet* isa : sets)
    for (const WeightType type : kTypes) {
      test_sizes(isa->linear(type));
      test_scratch_is_monotone(isa->linear(type));
    }
  std::printf("sizes cover needs\n");
  for (const InstructionSet* isa : runnable_sets()) {
    if (std::string(isa->name) == "scalar" || (!is_long && isa != runnable_sets().front()))
      continue;
    for (const WeightType type : kTypes)
      for (const int64_t H : {384, 512, 768, 1024}) {
        if (!is_long && type == WeightType::kFloat32 && H != 384) continue;  // uses no scratch
        test_encodes(*isa, type, H, int64_t{2} << 20, is_long ? 40 : 3);
        if (H == 384) test_reuse(*isa, type, H);
        if (H == 384) test_encodes(*isa, type, H, int64_t{512} << 10, is_long ? 40 : 3);
      }
    std::printf("%s: real shapes keep their bits\n", isa->name);
  }
  ThreadPool::get().shutdown();
  return 0;
}
