#include "threads/barrier.h"

#include <thread>

namespace minifuse {

#if defined(MINIFUSE_CHECKED)
std::atomic<void (*)()> on_barrier{nullptr};
#endif

void SpinBarrier::wait(int num_members) {
#if defined(MINIFUSE_CHECKED)
  if (void (*hook)() = on_barrier.load()) hook();
#endif
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_members) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  // A few microseconds of spinning cover the usual skew; past them another thread may need the
  // core.
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
    if (spins < 4000)
      pause_briefly();
    else
      std::this_thread::yield();
  }
}

}  // namespace minifuse
