// Parts and items of a call's work: its threads take one after the other, each as it becomes free, and
// the call is stopped between two of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "common/fork_safe.h"
#include "threads/pool.h"
#include "threads/should_stop.h"

namespace minifuse {

// After so many floating-point operations a thread looks whether its call is to stop: hundredths of a
// second, or a second without vector instructions.
constexpr double kFlopsPerPart = 1e9;

// The range [0, n) in `count` parts of about equal size, or fewer, which begin at multiples of `unit`.
class Parts {
 public:
  Parts(int64_t n, int64_t unit, int64_t count)
      : n_(n), unit_(std::max<int64_t>(1, unit)), units_((n + unit_ - 1) / unit_) {
    count_ = std::clamp<int64_t>(count, 1, std::max<int64_t>(1, units_));
  }

  int64_t count() const { return count_; }
  int64_t begin(int64_t part) const { return std::min(n_, units_ * part / count_ * unit_); }
  int64_t end(int64_t part) const { return begin(part + 1); }

 private:
  int64_t n_, unit_, units_, count_;
};

class Items {
 public:
  // should_stop is asked before each item of the calling thread but the first, and while that thread
  // waits for others.
  Items(int64_t count, const ShouldStop& should_stop) : count_(count), should_stop_(should_stop) {}
  Items(int64_t count, ShouldStop&& should_stop) = delete;  // it is borrowed
  Items(const Items&) = delete;

  // work(member) on up to num_threads threads, each of which takes items until next() has none for it.
  // False where should_stop said true: items may be left, or nothing ran at all.
  bool run(int num_threads, const std::function<void(int member)>& work) {
    process_ = fork_generation();
    const bool ran = ThreadPool::get().run(
        num_threads, [&](int member, int) { work(member); }, should_stop_, [this] { ask(); });
    return ran && !is_stopped_;
  }

  // The next item for a member; none where it is to end.
  std::optional<int64_t> next(int member) {
    const int64_t item = next_++;
    if (item > 0 && is_stopped(member)) return std::nullopt;
    return item < count_ ? std::make_optional(item) : std::nullopt;
  }

  // True where the rest of a member's item is not wanted any more. A long item asks now and then.
  bool is_stopped(int member) {
    if (member == 0) ask();
    return is_stopped_;
  }

 private:
  void ask() {
    if (!should_stop_ || is_stopped_) return;
    if (should_stop_()) is_stopped_ = true;
    // A signal's handler may have forked: the other threads are the parent's, and run() throws in the
    // child as soon as this thread is done.
    if (process_ && fork_generation() != *process_) is_stopped_ = true;
  }

  const int64_t count_;
  const ShouldStop& should_stop_;
  std::optional<uint64_t> process_;  // in which run() began
  std::atomic<int64_t> next_{0};
  std::atomic<bool> is_stopped_{false};
};

}  // namespace minifuse
