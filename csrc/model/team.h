// The threads that take a chunk of sentences through the layers together, how they meet after every
// step, and how all of them stop at the same step.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>

#include "common/fork_safe.h"
#include "threads/barrier.h"
#include "threads/should_stop.h"

namespace minifuse {

// A call's question whether it should stop. The thread that called asks it between steps; every
// thread of the call hears the answer.
class StopRequest {
 public:
  explicit StopRequest(const ShouldStop& should_stop) : should_stop_(should_stop) {}

  // Asks, on the thread that called, until there was a yes: then a team leaves behind its meeting of
  // this number.
  void ask(int64_t meeting) {
    if (should_stop_ && !is_made() && should_stop_()) meeting_ = meeting;
  }
  // False until should_stop has said true.
  bool is_made() const { return meeting_ != kNever; }
  bool ends(int64_t meeting) const { return meeting_ <= meeting; }
  // True in a child that should_stop's own code (a signal's handler) forked: its team is the parent's.
  bool is_in_a_child() const { return fork_generation() != process_; }

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  const ShouldStop& should_stop_;
  const uint64_t process_ = fork_generation();
  std::atomic<int64_t> meeting_{kNever};
};

// A thread within its team. The members call meet() equally often, which is what numbers the meetings.
class Team {
 public:
  // is_caller: the thread that called encode(), which alone may ask should_stop. barrier: the team's,
  // null for a thread alone.
  Team(int member, int size, bool is_caller, StopRequest& stop, SpinBarrier* barrier)
      : member(member), size(size), is_caller_(is_caller), stop_(stop), barrier_(barrier) {}

  const int member, size;

  bool is_alone() const { return size == 1; }
  // This member's part of n items.
  int64_t begin(int64_t n) const { return n * member / size; }
  int64_t end(int64_t n) const { return n * (member + 1) / size; }

  // Ends a step: what each member wrote before it, all may read behind it. All members leave behind
  // the same meeting: the caller writes its number before it arrives there, and a member that reads it
  // late, behind the meeting before, goes on to that one.
  void meet() {
    ++meeting_;
    if (is_caller_) {
      stop_.ask(is_alone() ? 0 : meeting_);
      if (stop_.is_in_a_child()) {
        has_left_ = true;
        return;
      }
    }
    if (!is_alone()) barrier_->wait(size);
    has_left_ = stop_.ends(meeting_);
  }
  // Asked within a long step: true where the rest of the step is not wanted, since every member leaves
  // behind the meeting that ends it.
  bool leaves_after_this_step() {
    if (is_caller_) stop_.ask(is_alone() ? 0 : meeting_ + 1);
    return stop_.ends(meeting_ + 1) || (is_caller_ && stop_.is_in_a_child());
  }
  // True after the meeting behind which the call stops: nothing more is to be computed, and this
  // member meets nobody any more.
  bool has_left() const { return has_left_; }

 private:
  const bool is_caller_;
  StopRequest& stop_;
  SpinBarrier* const barrier_;
  int64_t meeting_ = 0;
  bool has_left_ = false;
};

}  // namespace minifuse
