// A thread within the team that takes a chunk of sentences through the layers together.
#pragma once

#include <cstdint>

#include "threads/barrier.h"

namespace minifuse {

// Identifies a thread within its team, and holds the barrier that the team shares.
struct Team {
  int member, size;
  bool is_caller;  // the thread that called encode(): the one that may ask should_stop
  SpinBarrier* barrier;

  bool is_alone() const { return size == 1; }
  void meet() const {
    if (!is_alone()) barrier->wait(size);
  }
  // This member's part of n items.
  int64_t begin(int64_t n) const { return n * member / size; }
  int64_t end(int64_t n) const { return n * (member + 1) / size; }
};

}  // namespace minifuse
