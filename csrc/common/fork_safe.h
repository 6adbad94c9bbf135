// Keeps the child of a fork able to compute, whichever thread forks and whatever the others do.
//
// One mutex of the process serves the short lists that outlive a call (idle workspaces, the thread
// pool's pointer): pthread_atfork takes it around the fork, so that the child finds it free and the
// lists whole. A mutex of its own in each object could be left locked in the child for ever.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <mutex>

namespace minifuse {

struct ForkState {
  std::mutex mutex;
  std::atomic<uint64_t> generation{1};  // how often this process was forked off another, plus one

  // Leaked: threads may still run while the process exits.
  static ForkState& get() {
    static ForkState& state = []() -> ForkState& {
      static ForkState& leaked = *new ForkState;
      pthread_atfork([] { leaked.mutex.lock(); }, [] { leaked.mutex.unlock(); },
                     [] {
                       ++leaked.generation;
                       leaked.mutex.unlock();
                     });
      return leaked;
    }();
    return state;
  }
};

inline std::mutex& fork_safe_mutex() { return ForkState::get().mutex; }

// Differs in a process and in the child that is forked off it.
inline uint64_t fork_generation() { return ForkState::get().generation.load(); }

}  // namespace minifuse
