#include "model/plan.h"

#include <algorithm>
#include <functional>

namespace minifuse {

BlockSizes block_sizes(int64_t l2_bytes) {
  // A panel of weights fetched from memory serves every tile of a block, which hides the fetch, and
  // the block's activations want L2 at the same time (MiniLM: 1.5 KiB a row of x, 6 KiB of hidden).
  // 512 KiB (Zen 3): 96 to 192 tokens and 48 to 96 hidden rows are alike within the noise of two
  // threads; on one, before blocks were of equal size, 96 and 48 rows reached 87.6 % of the ceiling
  // on short sentences, 192 and 48 86.8, 192 and 96 85.8, 192 and 192 85.0.
  // 1 MiB (Zen 5): 384 tokens no faster than 192, 128 cost 3 %; 96 hidden rows 2 %.
  constexpr int64_t kMebibyte = int64_t{1} << 20;
  if (l2_bytes > 0 && l2_bytes < kMebibyte) return {.chunk_tokens = 96, .ffn_rows = 48};
  return {.chunk_tokens = 192, .ffn_rows = 192};
}

namespace {

struct CostedChunk {
  Chunk chunk;
  double alone, shared;
};

// Cut front to back, then the costliest first: the last to be taken are the small ones, so that the
// threads end together.
std::vector<CostedChunk> cut(const int32_t* cu_seqlens, int64_t batch, int64_t max_sentences,
                             int64_t chunk_tokens, int num_threads, const CostModel& costs) {
  std::vector<CostedChunk> chunks;
  const auto length = [&](int64_t i) { return double(cu_seqlens[i + 1] - cu_seqlens[i]); };
  int64_t first = 0;
  while (first < batch) {
    int64_t last = first + 1;
    double pairs = length(first) * length(first);
    while (last < batch && last - first < max_sentences &&
           cu_seqlens[last + 1] - cu_seqlens[first] <= chunk_tokens) {
      pairs += length(last) * length(last);
      ++last;
    }
    const double tokens = cu_seqlens[last] - cu_seqlens[first];
    chunks.push_back(
        {{first, last}, costs.alone(tokens, pairs), costs.shared(tokens, pairs, num_threads)});
    first = last;
  }
  std::stable_sort(chunks.begin(), chunks.end(),
                   [](const CostedChunk& a, const CostedChunk& b) { return a.alone > b.alone; });
  return chunks;
}

// When the last of the threads is done that take the chunks from `from` on in order.
double makespan(const std::vector<CostedChunk>& chunks, size_t from, int num_threads) {
  std::vector<double> busy_until(static_cast<size_t>(num_threads), 0.0);
  const auto later = std::greater<double>();  // a heap with the thread that is free first on top
  for (size_t i = from; i < chunks.size(); ++i) {
    std::pop_heap(busy_until.begin(), busy_until.end(), later);
    busy_until.back() += chunks[i].alone;
    std::push_heap(busy_until.begin(), busy_until.end(), later);
  }
  return *std::max_element(busy_until.begin(), busy_until.end());
}

}  // namespace

Schedule plan_schedule(const int32_t* cu_seqlens, int64_t batch, int64_t max_sentences,
                       int64_t chunk_tokens, int num_threads, const CostModel& costs,
                       std::vector<Schedule>* considered) {
  // Chunks of half and a quarter of the size divide a small batch more evenly; below that fetching
  // the weights costs as much as multiplying by them.
  constexpr int kHalvings = 2;
  // A chunk is shared because it outlasts all others together: more than one a thread never do.
  const size_t most_shared = num_threads > 1 ? static_cast<size_t>(num_threads) : 0;

  Schedule best;
  best.chunk_tokens = chunk_tokens;
  for (int halving = 0; halving <= kHalvings; ++halving) {
    const int64_t tokens = chunk_tokens >> halving;
    const std::vector<CostedChunk> chunks =
        cut(cu_seqlens, batch, max_sentences, tokens, num_threads, costs);
    if (chunks.size() == best.chunks.size()) continue;  // as before
    double shared = 0;
    for (size_t num_shared = 0; num_shared <= std::min(most_shared, chunks.size()); ++num_shared) {
      const double cost = shared + makespan(chunks, num_shared, num_threads);
      if (num_shared < chunks.size()) shared += chunks[num_shared].shared;
      Schedule one{
          tokens, static_cast<int64_t>(chunks.size()), static_cast<int64_t>(num_shared), cost, {}};
      if (considered) considered->push_back(one);
      // Between equally good plans the simpler one wins, which comes first.
      if (!best.chunks.empty() && cost >= 0.99 * best.cost) continue;
      for (const CostedChunk& costed : chunks) one.chunks.push_back(costed.chunk);
      best = std::move(one);
    }
  }
  return best;
}

}  // namespace minifuse
