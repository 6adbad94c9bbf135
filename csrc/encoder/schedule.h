// Threads: how many, where they wait, and how a batch is dealt out to them. The only part of
// minifuse that starts a thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace minifuse {

// The least of CPU affinity, the cgroup's CPU quota, OMP_NUM_THREADS and physical cores; at least
// 1.
int default_num_threads();

// How many rows share a pass, so that their activations and the weights beside them fit L2.
struct BlockSizes {
  int64_t chunk_tokens;  // tokens that go through all layers together
  int64_t ffn_rows;  // rows that go through W1, GELU and W2 together
};

// Pure: by the size of a core's L2 cache in bytes, 0 where it is not known.
BlockSizes block_sizes(int64_t l2_bytes);

// Of the first core; 0 where the system does not say.
int64_t l2_cache_bytes();

// A range of sentences [first, last) that one thread (or one team) takes through all layers.
struct Chunk {
  int64_t first, last;
};

struct Schedule {
  bool is_latency;  // fewer chunks than threads: every chunk is shared by the whole team
  int64_t chunk_tokens;  // the size that was aimed at
  std::vector<Chunk> chunks;  // in the order in which they are taken
};

// Pure: the same lengths give the same schedule. A chunk holds whole sentences, at most
// max_sentences of them, and at most chunk_tokens tokens unless one sentence has more.
Schedule plan_schedule(const int32_t* cu_seqlens, int64_t batch, int64_t max_sentences,
                       int64_t chunk_tokens, int num_threads);

// All members meet here; spins, and yields where more threads run than cores.
class SpinBarrier {
 public:
  void wait(int num_members);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> generation_{0};
};

// One process-wide set of workers. A call brings its own thread and borrows idle workers, never
// more in all than the budget: eight Python threads that encode at once on two cores run two at a
// time and the rest wait their turn, in order.
class ThreadPool {
 public:
  // The pool of this process: a child made by fork gets its own, since no thread survives a fork.
  static ThreadPool& get();

  using Task = std::function<void(int member, int num_members)>;

  // Runs task on the calling thread (member 0) and on up to num_threads - 1 workers and returns
  // when all are done; rethrows the first exception. should_stop is asked while waiting for a turn;
  // if it says true, returns false without having run.
  bool run(int num_threads, const Task& task, const std::function<bool()>& should_stop = {});

  // Joins every worker. A later run() starts new ones.
  void shutdown();

 private:
  struct Worker;
  struct Job;

  ThreadPool() = default;
  void work(Worker& worker);

  std::mutex mutex_;
  std::condition_variable turn_;
  std::deque<uint64_t> waiting_;  // tickets, first come first served
  uint64_t next_ticket_ = 0;
  int in_use_ = 0;
  int budget_ = default_num_threads();
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> idle_;
};

}  // namespace minifuse
