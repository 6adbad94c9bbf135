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

// Rows of a pass, so many that their activations and the weights beside them fit L2.
struct BlockSizes {
  int64_t chunk_tokens;  // tokens that go through all layers together
  int64_t ffn_rows;  // rows that go through W1, GELU and W2 together
};

// Pure: by the size of a core's L2 cache in bytes, 0 where it is not known.
BlockSizes block_sizes(int64_t l2_bytes);

// Returns the size of the first core's L2 cache; 0 where the system does not say.
int64_t l2_cache_bytes();

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

#if defined(MINIFUSE_CHECKED)
// Called by every member on its way into a barrier: tests delay threads there to reach every order.
extern std::atomic<void (*)()> on_barrier;
#endif

// All members meet here; spins, and yields where more threads run than cores.
class SpinBarrier {
 public:
  void wait(int num_members);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<uint32_t> generation_{0};
};

// One process-wide set of workers. A call brings its own thread and borrows idle workers, never
// more in all than the machine's default or the number that the call asks for: eight Python threads
// that encode at once on two cores run two at a time and the rest wait their turn, in order.
class ThreadPool {
 public:
  // The pool of this process: a child made by fork gets its own, since no thread survives a fork.
  static ThreadPool& get();

  using Task = std::function<void(int member, int num_members)>;

  // More threads than this never work on one call, whatever it asks for: beyond one for each CPU
  // they only take turns. At least eight, so that results can be compared over numbers of threads
  // on any machine.
  static int most_threads();

  class Turn;

  // Waits for a turn and runs task in it; false where should_stop said true meanwhile, and nothing
  // ran.
  bool run(int num_threads, const Task& task, const std::function<bool()>& should_stop = {});

  // Joins every worker. A later run() starts new ones.
  void shutdown();

 private:
  struct Worker;
  struct Job;

  ThreadPool() = default;
  void work(Worker& worker);
  // Waits until fewer threads are in use than the limit; false where should_stop said true.
  bool wait_for_turn(std::unique_lock<std::mutex>& lock, int limit,
                     const std::function<bool()>& should_stop);
  // An idle worker, a new one, or null where no thread can be started. The mutex is held.
  Worker* borrow_worker() noexcept;

  std::mutex mutex_;
  std::condition_variable turn_;
  std::deque<uint64_t> waiting_;  // tickets, first come first served
  uint64_t next_ticket_ = 0;
  int in_use_ = 0;
  const int budget_ = default_num_threads();
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> idle_;
};

// A caller's time with its workers, from when it may begin until the end of the scope. Memory that
// the work needs is best taken within it: callers that still wait for theirs then hold none.
class ThreadPool::Turn {
 public:
  // Waits until up to num_threads threads, the calling one among them, may compute. Fewer do where a
  // thread cannot be started (a limit on processes), and one where the calling thread is within a
  // turn already: a signal's handler that computes while its thread computes must not wait for
  // itself. should_stop is asked while waiting.
  Turn(ThreadPool& pool, int num_threads, const std::function<bool()>& should_stop);
  Turn(const Turn&) = delete;
  ~Turn();

  // False where should_stop said true.
  bool has_come() const { return has_come_; }
  int num_members() const { return 1 + static_cast<int>(borrowed_.size()); }
  // Runs task on the calling thread (member 0) and the workers, and returns when all are done;
  // rethrows the first exception.
  void run(const Task& task);

 private:
  // Marks the calling thread as computing.
  struct Inside {
    const uint64_t process;  // its fork_generation
    const bool is_nested;
    Inside();
    ~Inside();
  };

  ThreadPool& pool_;
  const Inside inside_;
  bool has_come_ = false;
  std::vector<Worker*> borrowed_;
};

}  // namespace minifuse
