// A barrier at which the members of a team meet after every step of a layer.
#pragma once

#include <atomic>
#include <cstdint>

namespace minifuse {

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

// Tells the processor that this thread spins.
inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace minifuse
