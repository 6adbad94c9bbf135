// A kernel that is being run by the emulator: its threads as fibres, where they wait, and what each
// byte of memory has seen. For the files beside it.
#pragma once

#include <algorithm>
#include <array>
#include <deque>

#include "cuda_emulator/device.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace minifuse::cuda::emulator {

inline constexpr size_t kStackBytes = 128 * 1024;

#if defined(__x86_64__)
// Saves the registers that a call preserves and the stack pointer, and takes up another stack.
// (swapcontext would ask the kernel for the signal mask at every switch, ten times the cost.)
extern "C" void minifuse_switch_stack(void** save, void* load);

struct Context {
  void* sp = nullptr;
  void start(std::byte* stack, void (*entry)()) {
    auto** top = reinterpret_cast<void**>(stack + kStackBytes);
    *--top = nullptr;  // where entry would return to: it never does; and its stack is 16-aligned
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    sp = top;
  }
  void switch_to(Context& other) { minifuse_switch_stack(&sp, other.sp); }
};
#else
struct Context {
  ucontext_t context;
  void start(std::byte* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

struct Copy {
  void* to;
  const void* from;
  int valid;
};

struct Warp {
  int num_lanes = 32;
  const char* instruction = nullptr;  // where lanes wait
  int num_waiting = 0;
  uint64_t generation = 0;  // how often they met
  uint32_t epoch = 0;  // how often they met at a barrier
  void* operands[32] = {};
};

// Four warps, and the products that they have started together.
struct Warpgroup {
  const char* instruction = nullptr;
  int num_waiting = 0;
  uint64_t generation = 0;
  void* operands[128] = {};
  int64_t num_committed = 0;  // groups
  struct Started {
    std::array<Product, 128> parts;
    int64_t group;
  };
  std::deque<Started> started;
};

// A barrier in shared memory that bytes arrive at, too.
struct Arrival {
  int count, num_missing;
  int64_t bytes_missing = 0;
  int phase = 0;
  int32_t maker;
  uint32_t epoch;  // of the block, when it was made
};

struct BoxCopy {
  std::byte* to;
  TensorMap map;
  int column, row;
  const void* arrival;
};

struct Thread {
  Context context;
  std::byte* stack = nullptr;
  bool is_done = false, waits_for_warp = false, waits_for_block = false;
  bool waits_for_warpgroup = false;
  const void* arrival = nullptr;  // that it waits for, and in which phase
  int parity = 0;
  uint64_t generation = 0;  // of what it waits for
  std::deque<std::vector<Copy>> committed;
  std::vector<Copy> uncommitted;
};

struct Execution {
  Execution(Device& device, const std::function<void()>& body, int num_threads)
      : device(device), body(body), num_threads(num_threads) {}

  Device& device;
  const std::function<void()>& body;
  int num_threads, block = 0, current = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::map<const void*, Arrival> arrivals;
  std::vector<BoxCopy> boxes;  // under way
  Context scheduler;
  Region shared{};
  std::vector<std::byte> shared_storage;
  uint64_t block_generation = 0;
  uint32_t block_epoch = 0;  // counts on from block to block
  int num_at_barrier = 0;
  std::string fault_text;

  Thread& thread() { return threads[static_cast<size_t>(current)]; }
  Warp& warp() { return warps[static_cast<size_t>(current / 32)]; }
  Warpgroup& warpgroup() { return warpgroups[static_cast<size_t>(current / 128)]; }

  void suspend() { thread().context.switch_to(scheduler); }

  bool is_ready(const Thread& t, const Warp& w, const Warpgroup& g) {
    if (t.is_done) return false;
    if (t.arrival) return can_end(t.arrival, t.parity);
    if (t.waits_for_warpgroup) return t.generation != g.generation;
    if (t.waits_for_block) return t.generation != block_generation;
    if (t.waits_for_warp) return t.generation != w.generation;
    return true;
  }

  void run_block(bool is_reversed);
  bool can_end(const void* at, int parity) const;
  void end(const void* at);
  void deliver(const BoxCopy& box);
  void run_product(const Warpgroup::Started& product);
  template <typename F>
  void each_piece(const Product& product, F f);

  // The region that holds all of p's bytes.
  Region& region_of(const void* p, size_t size, const char* what) {
    const auto* byte = static_cast<const std::byte*>(p);
    if (reinterpret_cast<uintptr_t>(p) % std::min<size_t>(size, 16) != 0)
      fault(std::string(what) + " of " + std::to_string(size) + " bytes is misaligned");
    const auto holds = [&](const Region& r) {
      return byte >= r.begin && byte + size <= r.begin + r.size;
    };
    if (holds(shared)) return shared;
    auto next = device.regions_.upper_bound(byte);
    if (next != device.regions_.begin()) {
      Region& region = std::prev(next)->second;
      if (holds(region)) return region;
      if (byte < region.begin + region.size + 4096)
        fault(std::string(what) + " " + std::to_string(byte - region.begin) + " bytes into " +
              region.name + ", which has " + std::to_string(region.size));
    }
    if (byte >= shared.begin && byte < shared.begin + shared.size + (1 << 20))
      fault(std::string(what) + " " + std::to_string(byte - shared.begin) +
            " bytes into shared memory, which has " + std::to_string(shared.size));
    fault(std::string(what) + " outside of all memory");
  }

  template <typename F>
  static void each_shadow(Region& region, const void* p, size_t size, F f) {
    if (region.shadows.empty()) return;
    const size_t offset = static_cast<size_t>(static_cast<const std::byte*>(p) - region.begin);
    for (size_t i = offset / kGranule; i < (offset + size + kGranule - 1) / kGranule; ++i)
      f(region.shadows[i], i * kGranule);
  }

  // Returns whether no barrier separates an earlier access of another thread from now.
  bool races(const Shadow::Access& earlier, bool is_warps) {
    if (earlier.thread == Shadow::kNobody || earlier.block_epoch != block_epoch_of(earlier))
      return false;
    if (earlier.thread == global_thread() && !is_warps) return false;
    return !(earlier.warp == global_warp() && earlier.warp_epoch != warp().epoch);
  }
  // An access of another block is never ordered; one of this block by its barriers.
  uint32_t block_epoch_of(const Shadow::Access& earlier) {
    const int warps_per_block = static_cast<int>(warps.size());
    const bool is_here =
        earlier.warp == Shadow::kSeveral || earlier.warp / warps_per_block == block;
    return is_here ? block_epoch : earlier.block_epoch;
  }
  int32_t global_thread() const { return block * num_threads + current; }
  int32_t global_warp() const { return block * static_cast<int>(warps.size()) + current / 32; }

  void note(Shadow::Access& access, bool joins, bool is_warps) {
    const int32_t thread_id = is_warps ? Shadow::kSeveral : global_thread();
    if (joins && access.thread != Shadow::kNobody && access.block_epoch == block_epoch &&
        access.thread != thread_id) {
      access.thread = Shadow::kSeveral;
      if (access.warp != global_warp()) access.warp = Shadow::kSeveral;
    } else {
      access.thread = thread_id;
      access.warp = global_warp();
    }
    access.block_epoch = block_epoch;
    access.warp_epoch = warp().epoch;
  }

  std::string where(const Region& region, size_t offset) {
    return " at byte " + std::to_string(offset) + " of " + region.name;
  }

  void read(const void* p, size_t size, bool is_warps) {
    Region& region = region_of(p, size, "a read");
    each_shadow(region, p, size, [&](Shadow& s, size_t offset) {
      if (s.is_arriving) fault("a read of what is still being copied" + where(region, offset));
      if (!s.is_written) fault("a read of what was never written" + where(region, offset));
      if (races(s.write, is_warps)) fault("a read races with a write" + where(region, offset));
      note(s.read, true, is_warps);
    });
  }

  void write(const void* p, size_t size) {
    Region& region = region_of(p, size, "a write");
    if (region.is_read_only) fault("a write to " + region.name + ", which is read only");
    each_shadow(region, p, size, [&](Shadow& s, size_t offset) {
      if (s.is_arriving) fault("a write to what is still being copied" + where(region, offset));
      if (s.num_products > 0)
        fault("a write to what a product still reads" + where(region, offset));
      if (races(s.write, false)) fault("two writes race" + where(region, offset));
      if (races(s.read, false)) fault("a write races with a read" + where(region, offset));
      note(s.write, false, false);
      s.is_written = true;
      s.is_of_box = false;
    });
  }
};

// The one of this thread.
extern constinit thread_local Execution* running;

}  // namespace minifuse::cuda::emulator
