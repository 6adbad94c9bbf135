// The thread pool of a process: the only part of minifuse that starts a thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "threads/machine.h"
#include "threads/should_stop.h"

namespace minifuse {

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

  // Waits for a turn and runs task in it, see Turn; false where should_stop said true before its turn
  // came, and nothing ran.
  bool run(int num_threads, const Task& task, const ShouldStop& should_stop = {},
           const std::function<void()>& while_waiting = {});

  // Joins every worker. A later run() starts new ones.
  void shutdown();

 private:
  struct Worker;
  struct Job;

  ThreadPool() = default;
  void work(Worker& worker);
  // Waits until fewer threads are in use than the limit; false where should_stop said true.
  bool wait_for_turn(std::unique_lock<std::mutex>& lock, int limit, const ShouldStop& should_stop);
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

  // For callers that wait until their workers are done. Not the mutex above, which shutdown() holds
  // while it joins a worker that may just be telling its caller.
  std::mutex finished_mutex_;
  std::condition_variable finished_;
};

// A caller's time with its workers, from when it may begin until the end of the scope. Memory that
// the work needs is best taken within it: callers that still wait for theirs then hold none.
class ThreadPool::Turn {
 public:
  // Waits until up to num_threads threads, the calling one among them, may compute. Fewer do where a
  // thread cannot be started (a limit on processes), and one where the calling thread is within a
  // turn already: a signal's handler that computes while its thread computes must not wait for
  // itself. should_stop is asked while waiting.
  Turn(ThreadPool& pool, int num_threads, const ShouldStop& should_stop);
  Turn(const Turn&) = delete;
  ~Turn();

  // False where should_stop said true.
  bool has_come() const { return has_come_; }
  int num_members() const { return 1 + static_cast<int>(borrowed_.size()); }
  // Runs task on the calling thread (member 0) and the workers, and returns when all are done;
  // rethrows the first exception. Calls while_waiting now and then while the calling thread has done
  // its part and workers have not.
  void run(const Task& task, const std::function<void()>& while_waiting = {});

 private:
  // Marks the calling thread as computing.
  struct Inside {
    const uint64_t process;  // its fork_generation
    const bool is_nested;
    Inside();
    ~Inside();
  };

  void wait_for_workers(const std::atomic<int>& remaining,
                        const std::function<void()>& while_waiting);
  // The child of a fork within a turn has none of the workers.
  void throw_in_a_child() const;

  ThreadPool& pool_;
  const Inside inside_;
  bool has_come_ = false;
  std::vector<Worker*> borrowed_;
};

}  // namespace minifuse
