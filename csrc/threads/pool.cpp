#include "threads/pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include "common/fork_safe.h"
#include "threads/barrier.h"

namespace minifuse {
namespace {

// Linux likes to wake a thread on the CPU of whoever wakes it, and a worker that shares the
// caller's core makes both take turns: 0.6 ms instead of 0.23 for a linear layer of 128 rows, in
// every burst that followed a pause of 20 ms (two cores). So a sleeping worker may not run where
// the caller is now. kept_off is the CPU that it was told before: callers seldom move, and then no
// system call is made.
void keep_off_this_cpu([[maybe_unused]] std::thread& thread, [[maybe_unused]] int& kept_off) {
#if defined(__linux__)
  cpu_set_t allowed;
  const int here = sched_getcpu();
  if (here < 0 || here == kept_off || sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  CPU_CLR(here, &allowed);
  kept_off = here;
  if (CPU_COUNT(&allowed) > 0)
    pthread_setaffinity_np(thread.native_handle(), sizeof(allowed), &allowed);
#endif
}

// Ends the call where this is a child of the process that began it.
void throw_in_a_child_of(uint64_t process) {
  if (fork_generation() == process) return;
  throw std::runtime_error(
      "this process was forked by a signal handler while its parent computed, and the other "
      "threads of that computation are the parent's: end the child in the handler (os._exit), or "
      "fork elsewhere");
}

}  // namespace

// The process (its fork_generation) in which this thread is computing within run(), as its caller or
// as a worker; 0: it is not. In the child of a fork nothing computes yet.
static thread_local uint64_t inside_process = 0;

struct ThreadPool::Job {
  const Task* task;
  int num_members;
  std::atomic<int> remaining;  // workers that have not finished
  std::mutex error_mutex;
  std::exception_ptr error;

  void run_member(int member) {
    try {
      (*task)(member, num_members);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
};

struct ThreadPool::Worker {
  enum State : uint32_t { kIdle, kHasJob, kStop };
  std::atomic<uint32_t> state{kIdle};
  std::atomic<bool> sleeps{false};
  int kept_off = -1;  // a CPU
  Job* job = nullptr;
  int member = 0;
  std::thread thread;
};

ThreadPool& ThreadPool::get() {
  // Leaked on purpose: after a fork the parent's pool may hold a locked mutex and threads that do
  // not exist here, and at exit its workers must not outlive its destructor.
  static std::atomic<ThreadPool*> pool{nullptr};
  static std::atomic<uint64_t> owner{0};
  const uint64_t process = fork_generation();
  if (owner.load(std::memory_order_acquire) == process) return *pool.load();
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (owner.load(std::memory_order_acquire) != process) {
    pool.store(new ThreadPool());
    owner.store(process, std::memory_order_release);
  }
  return *pool.load();
}

int ThreadPool::most_threads() {
  static const int most = std::max(8, num_usable_cpus());
  return most;
}

void ThreadPool::work(Worker& worker) {
  inside_process = fork_generation();
  for (;;) {
    // Spin for the time between two queries of a burst, in which the caller tokenises the next,
    // then sleep: with 2,000 pauses an int8 query took 1.14 ms instead of 0.98 (Zen 3, two threads).
    constexpr std::chrono::microseconds kSpinTime{200};
    constexpr int kSpinsPerLook = 32;
    const auto is_idle = [&] {
      return worker.state.load(std::memory_order_acquire) == Worker::kIdle;
    };
    const auto until = std::chrono::steady_clock::now() + kSpinTime;
    while (is_idle() && std::chrono::steady_clock::now() < until)
      for (int spins = 0; spins < kSpinsPerLook && is_idle(); ++spins) pause_briefly();
    worker.sleeps.store(true, std::memory_order_release);
    worker.state.wait(Worker::kIdle, std::memory_order_acquire);
    worker.sleeps.store(false, std::memory_order_release);
    if (worker.state.load(std::memory_order_acquire) == Worker::kStop) return;
    Job* job = worker.job;
    job->run_member(worker.member);
    worker.state.store(Worker::kIdle, std::memory_order_release);
    // The last touch: once `remaining` is zero the job may be gone.
    if (job->remaining.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      // The caller looks at `remaining` with the mutex and goes to sleep in one step: it cannot miss
      // this.
      {
        const std::lock_guard<std::mutex> lock(finished_mutex_);
      }
      finished_.notify_all();
    }
  }
}

bool ThreadPool::wait_for_turn(std::unique_lock<std::mutex>& lock, int limit,
                               const ShouldStop& should_stop) {
  const uint64_t ticket = next_ticket_++, process = fork_generation();
  waiting_.push_back(ticket);
  // Whoever leaves lets the next one look: also where should_stop throws.
  struct Place {
    ThreadPool& pool;
    std::unique_lock<std::mutex>& lock;
    uint64_t ticket, process;
    ~Place() {
      if (fork_generation() != process) return;  // the pool and its mutex are the parent's
      if (!lock.owns_lock()) lock.lock();
      std::erase(pool.waiting_, ticket);
      pool.turn_.notify_all();
    }
  } const place{*this, lock, ticket, process};
  const auto is_my_turn = [&] { return waiting_.front() == ticket && in_use_ < limit; };
  while (!is_my_turn()) {
    turn_.wait_for(lock, std::chrono::milliseconds(50));
    if (is_my_turn() || !should_stop) continue;
    lock.unlock();
    const bool stop = should_stop();
    throw_in_a_child_of(process);
    lock.lock();
    if (stop) return false;
  }
  return true;
}

ThreadPool::Worker* ThreadPool::borrow_worker() noexcept {
  try {
    if (idle_.empty()) {
      // Room first: nothing may fail once the thread runs.
      workers_.reserve(workers_.size() + 1);
      idle_.reserve(workers_.size() + 1);
      auto worker = std::make_unique<Worker>();
      worker->thread = std::thread([this, &w = *worker] { work(w); });
#if defined(__linux__)
      pthread_setname_np(worker->thread.native_handle(), "minifuse");
#endif
      idle_.push_back(worker.get());
      workers_.push_back(std::move(worker));
    }
  } catch (const std::exception&) {  // no more threads or memory: fewer members do the work
    return nullptr;
  }
  Worker* worker = idle_.back();
  idle_.pop_back();
  return worker;
}

ThreadPool::Turn::Inside::Inside()
    : process(fork_generation()), is_nested(inside_process == process) {
  inside_process = process;
}

ThreadPool::Turn::Inside::~Inside() {
  if (!is_nested) inside_process = 0;
}

ThreadPool::Turn::Turn(ThreadPool& pool, int num_threads, const ShouldStop& should_stop)
    : pool_(pool) {
  if (inside_.is_nested) {
    has_come_ = true;
    return;
  }
  num_threads = std::clamp(num_threads, 1, most_threads());
  borrowed_.reserve(static_cast<size_t>(num_threads));
  std::unique_lock<std::mutex> lock(pool_.mutex_);
  const int limit = std::max(pool_.budget_, num_threads);
  if (!pool_.wait_for_turn(lock, limit, should_stop)) return;
  has_come_ = true;
  const int extra = std::min(num_threads, limit - pool_.in_use_) - 1;
  while (static_cast<int>(borrowed_.size()) < extra) {
    Worker* worker = pool_.borrow_worker();
    if (worker == nullptr) break;
    borrowed_.push_back(worker);
  }
  pool_.in_use_ += num_members();
}

ThreadPool::Turn::~Turn() {
  // In the child of a fork within a turn, the pool and its mutex are the parent's.
  if (!has_come_ || inside_.is_nested || fork_generation() != inside_.process) return;
  {
    const std::lock_guard<std::mutex> lock(pool_.mutex_);
    pool_.in_use_ -= num_members();
    // There is room: they were here.
    pool_.idle_.insert(pool_.idle_.end(), borrowed_.begin(), borrowed_.end());
  }
  pool_.turn_.notify_all();
}

void ThreadPool::Turn::wait_for_workers(const std::atomic<int>& remaining,
                                        const std::function<void()>& while_waiting) {
  const auto are_done = [&] { return remaining.load(std::memory_order_acquire) == 0; };
  for (int spins = 0; spins < 4000; ++spins) {
    if (are_done()) return;
    pause_briefly();
  }
  std::unique_lock<std::mutex> lock(pool_.finished_mutex_);
  while (!pool_.finished_.wait_for(lock, std::chrono::milliseconds(50), are_done)) {
    if (!while_waiting) continue;
    lock.unlock();
    while_waiting();
    throw_in_a_child();
    lock.lock();
  }
}

void ThreadPool::Turn::throw_in_a_child() const { throw_in_a_child_of(inside_.process); }

void ThreadPool::Turn::run(const Task& task, const std::function<void()>& while_waiting) {
  Job job{&task, num_members(), num_members() - 1, {}, {}};
  for (size_t i = 0; i < borrowed_.size(); ++i) {
    Worker& worker = *borrowed_[i];
    worker.job = &job;
    worker.member = static_cast<int>(i) + 1;
    if (worker.sleeps.load(std::memory_order_acquire))
      keep_off_this_cpu(worker.thread, worker.kept_off);
    // Sequentially consistent: notify_one looks whether anybody waits, and must not look before
    // the worker can see the job.
    worker.state.store(Worker::kHasJob, std::memory_order_seq_cst);
    worker.state.notify_one();
  }
  job.run_member(0);
  throw_in_a_child();
  wait_for_workers(job.remaining, while_waiting);
  if (job.error) std::rethrow_exception(job.error);
}

bool ThreadPool::run(int num_threads, const Task& task, const ShouldStop& should_stop,
                     const std::function<void()>& while_waiting) {
  Turn turn(*this, num_threads, should_stop);
  if (turn.has_come()) turn.run(task, while_waiting);
  return turn.has_come();
}

void ThreadPool::shutdown() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.size() != workers_.size()) return;  // an encode still runs: the process's exit ends it
  for (auto& worker : workers_) {
    worker->state.store(Worker::kStop, std::memory_order_seq_cst);
    worker->state.notify_one();
  }
  for (auto& worker : workers_) worker->thread.join();
  workers_.clear();
  idle_.clear();
}

}  // namespace minifuse
