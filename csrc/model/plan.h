// The plan of a batch: how its sentences are divided into chunks, and the chunks among threads.
#pragma once

#include <cstdint>
#include <vector>

namespace minifuse {

// Rows of a pass, so many that their activations and the weights beside them fit L2.
struct BlockSizes {
  int64_t chunk_tokens;  // tokens that go through all layers together
  int64_t ffn_rows;  // rows that go through W1, GELU and W2 together
};

// Pure: by the size of a core's L2 cache in bytes, 0 where it is not known.
BlockSizes block_sizes(int64_t l2_bytes);

// A range of sentences [first, last) that one thread (or one team) takes through all layers.
struct Chunk {
  int64_t first, last;
};

// Estimates the time of a chunk, in floating-point operations of one thread.
struct CostModel {
  double per_token;  // of the matrices
  double per_pair;  // a query and a key of one sentence
  double per_chunk;  // fetching the weights, which goes on beside the arithmetic
  double per_shared_chunk;  // a team's meetings

  // Two threads take 24 tokens through the layers 1.84 times as fast as one, 192 tokens 1.67 times
  // (Zen 3, float32; int8 1.5 to 1.9): a member reads what others have just written.
  static constexpr double kSharedEfficiency = 0.85;

  double alone(double tokens, double pairs) const {
    const double arithmetic = tokens * per_token + pairs * per_pair;
    return arithmetic > per_chunk ? arithmetic : per_chunk;
  }
  double shared(double tokens, double pairs, int num_threads) const {
    return alone(tokens, pairs) / (kSharedEfficiency * num_threads) + per_shared_chunk;
  }
};

// The chunks of a batch, in the order in which they are taken. The first num_shared_chunks go
// through the layers one after the other, each split among all threads (the latency schedule);
// every other one is taken by the next thread that is free and goes through alone (the throughput
// schedule).
struct Schedule {
  int64_t chunk_tokens = 0;  // the size that was aimed at
  int64_t num_chunks = 0, num_shared_chunks = 0;
  double cost = 0;  // until the last thread is done, as CostModel counts
  std::vector<Chunk> chunks;  // of one that was considered only: none
};

// Pure: the same lengths give the same schedule, the cheapest of those considered. A chunk holds
// whole sentences, at most max_sentences of them, and at most chunk_tokens tokens unless one
// sentence has more. Every schedule considered, for people to read, where they are asked for.
Schedule plan_schedule(const int32_t* cu_seqlens, int64_t batch, int64_t max_sentences,
                       int64_t chunk_tokens, int num_threads, const CostModel& costs,
                       std::vector<Schedule>* considered = nullptr);

}  // namespace minifuse
