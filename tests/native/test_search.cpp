// Search and what training computes, on buffers without a byte to spare: against plain loops, and
// every instruction set that runs here against the scalar build's bits.

#include <algorithm>
#include <cmath>

#include "expect.h"
#include "search/search.h"
#include "training/contrastive.h"

using namespace minifuse;
using namespace minifuse::test;

namespace {

struct Found {
  std::vector<float> scores;
  std::vector<int64_t> ids;
};

// Vectors in two segments, as they would lie in an index of this type.
Found search_in(const InstructionSet& isa, WeightType type, int64_t n, int64_t dim, int64_t q,
                int64_t k, int threads) {
  const auto x = random_floats(n * dim, 1), queries = random_floats(q * dim, 2);
  const int64_t stride = type == WeightType::kInt8 ? round_up(dim, 4) : dim, first = n / 3;
  const size_t size = type == WeightType::kFloat32 ? 4 : type == WeightType::kBfloat16 ? 2 : 1;
  std::vector<std::byte> parts[2];
  std::vector<float> scales[2];
  SearchSpace space{type, dim, stride, {}};
  for (const int part : {0, 1}) {
    const int64_t begin = part ? first : 0, count = part ? n - first : first;
    const float* from = x.data() + begin * dim;
    parts[part].resize(static_cast<size_t>(count * stride) * size);
    scales[part].resize(static_cast<size_t>(2 * count));
    if (count == 0) {
      space.segments.push_back({nullptr, nullptr, 0, begin});
      continue;
    }
    if (type == WeightType::kFloat32)
      std::memcpy(parts[part].data(), from, parts[part].size());
    else if (type == WeightType::kBfloat16)
      for (size_t i = 0; i < parts[part].size() / 2; ++i)
        std::memcpy(parts[part].data() + 2 * i, reinterpret_cast<const std::byte*>(from + i) + 2,
                    2);
    else
      isa.kernels.quantize_vectors(from, count, dim, reinterpret_cast<uint8_t*>(parts[part].data()),
                                   stride, scales[part].data());
    space.segments.push_back({parts[part].data(), scales[part].data(), count, begin});
  }
  Found found{std::vector<float>(static_cast<size_t>(q * k)),
              std::vector<int64_t>(static_cast<size_t>(q * k))};
  EXPECT(
      search(isa, space, queries.data(), q, k, threads, {}, found.scores.data(), found.ids.data()),
      "stopped");
  if (type == WeightType::kFloat32)
    for (int64_t row = 0; row < q; ++row) {
      std::vector<std::pair<double, int64_t>> exact;
      for (int64_t i = 0; i < n; ++i) {
        double score = 0;
        for (int64_t d = 0; d < dim; ++d)
          score += double{queries[static_cast<size_t>(row * dim + d)]} *
                   x[static_cast<size_t>(i * dim + d)];
        exact.push_back({-score, i});
      }
      std::sort(exact.begin(), exact.end());
      for (int64_t i = 0; i < k; ++i)
        EXPECT(std::fabs(found.scores[static_cast<size_t>(row * k + i)] +
                         exact[static_cast<size_t>(i)].first) < 1e-4,
               "%s n=%d dim=%d query %d place %d", isa.name, int(n), int(dim), int(row), int(i));
    }
  return found;
}

void test_search(const InstructionSet& isa) {
  for (const WeightType type : {WeightType::kFloat32, WeightType::kBfloat16, WeightType::kInt8})
    for (const int64_t dim : {1, 3, 16, 17, 64, 70})
      for (const int64_t n : {1, 5, 31, 33, 100})
        for (const int64_t q : {1, 2, 7, 9, 17, 33}) {
          const int64_t k = std::min<int64_t>(n, 4);
          const Found ours = search_in(isa, type, n, dim, q, k, 1);
          const Found theirs = search_in(select_isa("scalar"), type, n, dim, q, k, 2);
          EXPECT(same_bits(ours.scores, theirs.scores) && ours.ids == theirs.ids,
                 "%s type %d n=%d dim=%d q=%d", isa.name, int(type), int(n), int(dim), int(q));
        }
}

// Forward and gradient of one sentence, one after the other.
std::vector<float> attention_with_gradient(const Kernels& kernels, int64_t S, int64_t D, float p) {
  constexpr int64_t kHeads = 2;
  const int64_t H = kHeads * D;
  const auto qkv = random_floats(3 * S * H, 1), dout = random_floats(S * H, 2);
  std::vector<float> out(static_cast<size_t>(S * H)), gradient(static_cast<size_t>(3 * S * H));
  Buffer scratch(attention_training_floats(S, D));
  AttentionTrainingParams params{.forward = {.q = {qkv.data(), 3 * H, D},
                                             .k = {qkv.data() + H, 3 * H, D},
                                             .v = {qkv.data() + 2 * H, 3 * H, D},
                                             .out = {out.data(), H, D},
                                             .seqlen_q = S,
                                             .seqlen_k = S,
                                             .head_dim = D,
                                             .head_begin = 0,
                                             .head_end = kHeads,
                                             .scale = 0.3f,
                                             .scratch = scratch.data()},
                                 .dropout = p,
                                 .seed = 7,
                                 .first_number = 1};
  kernels.attention_forward(params);
  params.dout = dout.data();
  params.dq = gradient.data();
  params.dk = gradient.data() + H;
  params.dv = gradient.data() + 2 * H;
  kernels.attention_backward(params);
  gradient.insert(gradient.end(), out.begin(), out.end());
  return gradient;
}

// Asked for the n-th time, a call says that it is to stop: it asks no more, and ends.
void test_training_stops(const InstructionSet& isa) {
  constexpr int64_t S = 700, D = 16;
  const auto qkv = random_floats(3 * S * D, 1);
  std::vector<float> out(static_cast<size_t>(S * D)), gradient(static_cast<size_t>(3 * S * D));
  Buffer scratch(attention_training_floats(S, D));
  struct Call {
    int asked, stop_at;
  } call{};
  const Heads<const float> q = {qkv.data(), 3 * D, D};
  const AttentionTrainingParams params{.forward = {.q = q,
                                                   .k = {q.data + D, 3 * D, D},
                                                   .v = {q.data + 2 * D, 3 * D, D},
                                                   .out = {out.data(), D, D},
                                                   .seqlen_q = S,
                                                   .seqlen_k = S,
                                                   .head_dim = D,
                                                   .head_begin = 0,
                                                   .head_end = 1,
                                                   .scale = 0.3f,
                                                   .scratch = scratch.data()},
                                       .dropout = 0.1f,
                                       .seed = 7,
                                       .first_number = 1,
                                       .dout = qkv.data(),
                                       .dq = gradient.data(),
                                       .dk = gradient.data() + D,
                                       .dv = gradient.data() + 2 * D,
                                       .is_stopped =
                                           [](void* asking) {
                                             Call& c = *static_cast<Call*>(asking);
                                             return ++c.asked == c.stop_at;
                                           },
                                       .call = &call};
  for (const auto& kernel : {isa.kernels.attention_forward, isa.kernels.attention_backward}) {
    call = {0, 0};
    kernel(params);
    const int all = call.asked;
    EXPECT(all > 2, "%s asked %d times", isa.name, all);
    for (int n = 1; n <= all; ++n) {
      call = {0, n};
      kernel(params);
      EXPECT(call.asked == n, "%s asked %d times, stopped at %d", isa.name, call.asked, n);
    }
  }
}

void test_training(const InstructionSet& isa) {
  const Kernels& scalar = select_isa("scalar").kernels;
  for (const int64_t D : {1, 16, 26, 32, 64})
    for (const int64_t S : {1, 2, 15, 16, 17, 33, 50})
      for (const float p : {0.0f, 0.2f})
        EXPECT(same_bits(attention_with_gradient(isa.kernels, S, D, p),
                         attention_with_gradient(scalar, S, D, p)),
               "%s S=%d D=%d", isa.name, int(S), int(D));
  for (const int64_t n : {1, 7, 50})
    for (const int64_t m : {n, n + 13}) {
      const int64_t d = 20;
      const auto a = random_floats(n * d, 1, 0.2f), b = random_floats(m * d, 2, 0.2f);
      std::vector<float> gradients[2];
      double losses[2];
      for (const int i : {0, 1}) {
        std::vector<float> da(static_cast<size_t>(n * d)), db(static_cast<size_t>(m * d));
        losses[i] = contrastive_loss(i ? isa : select_isa("scalar"),
                                     {.a = a.data(),
                                      .b = b.data(),
                                      .n = n,
                                      .m = m,
                                      .d = d,
                                      .scale = 20,
                                      .weight = 1.0f / static_cast<float>(n)},
                                     i + 1, {}, da.data(), db.data())
                        .value();
        gradients[i] = da;
        gradients[i].insert(gradients[i].end(), db.begin(), db.end());
      }
      EXPECT(losses[0] == losses[1] && same_bits(gradients[0], gradients[1]), "%s n=%d m=%d",
             isa.name, int(n), int(m));
    }
}

}  // namespace

int main() {
  for (const InstructionSet* isa : runnable_sets()) {
    test_search(*isa);
    test_training(*isa);
    test_training_stops(*isa);
    std::printf("%s: search and training as the scalar build's\n", isa->name);
  }
  test_search(emulated_amx());
  return 0;
}
