// Threads are fibres: a kernel's thread runs until it has to wait for others, then the scheduler
// goes on with the next. Where a warp's lanes meet, the last to come does the work for all.

#include "cuda/emulator/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <set>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace minifuse::cuda::emulator {

namespace {

std::set<const void*> launched;
std::map<std::string, int64_t> counts;

constexpr size_t kStackBytes = 128 * 1024;

#if defined(__x86_64__)
// Saves the registers that a call preserves and the stack pointer, and takes up another stack.
// (swapcontext would ask the kernel for the signal mask at every switch, ten times the cost.)
extern "C" void minifuse_switch_stack(void** save, void* load);
__asm__(
    ".text\n"
    ".globl minifuse_switch_stack\n"
    ".type minifuse_switch_stack, @function\n"
    "minifuse_switch_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size minifuse_switch_stack, .-minifuse_switch_stack\n");

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

struct Thread {
  Context context;
  std::byte* stack = nullptr;
  bool is_done = false, waits_for_warp = false, waits_for_block = false;
  uint64_t generation = 0;  // of what it waits for
  std::deque<std::vector<Copy>> committed;
  std::vector<Copy> uncommitted;
};

// Stacks outlive a launch: mapping them anew would cost more than small kernels do.
std::byte* stack_of(size_t index) {
  thread_local std::vector<std::byte*> stacks;
  while (stacks.size() <= index) {
    void* p =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    stacks.push_back(static_cast<std::byte*>(p));
  }
  return stacks[index];
}

}  // namespace

struct Execution {
  Execution(Device& device, const std::function<void()>& body, int num_threads)
      : device(device), body(body), num_threads(num_threads) {}

  Device& device;
  const std::function<void()>& body;
  int num_threads, block = 0, current = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Context scheduler;
  Region shared{};
  std::vector<std::byte> shared_storage;
  uint64_t block_generation = 0;
  uint32_t block_epoch = 0;  // counts on from block to block
  int num_at_barrier = 0;
  std::string fault_text;

  Thread& thread() { return threads[static_cast<size_t>(current)]; }
  Warp& warp() { return warps[static_cast<size_t>(current / 32)]; }

  void suspend() { thread().context.switch_to(scheduler); }

  bool is_ready(const Thread& t, const Warp& w) const {
    if (t.is_done) return false;
    if (t.waits_for_block) return t.generation != block_generation;
    if (t.waits_for_warp) return t.generation != w.generation;
    return true;
  }

  void run_block(bool is_reversed);

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

  // Whether an earlier access of another thread has nothing between it and now.
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
      if (races(s.write, false)) fault("two writes race" + where(region, offset));
      if (races(s.read, false)) fault("a write races with a read" + where(region, offset));
      note(s.write, false, false);
      s.is_written = true;
    });
  }
};

namespace {

thread_local Execution* running = nullptr;

void thread_entry() {
  running->body();
  Thread& thread = running->thread();
  if (!thread.committed.empty() || !thread.uncommitted.empty())
    fault("the thread ended with copies under way");
  thread.is_done = true;
  running->suspend();
  __builtin_unreachable();
}

}  // namespace

void Execution::run_block(bool is_reversed) {
  ++block_epoch;
  std::fill(shared.shadows.begin(), shared.shadows.end(), Shadow{});
  threads.assign(static_cast<size_t>(num_threads), Thread{});
  warps.assign(static_cast<size_t>((num_threads + 31) / 32), Warp{});
  num_at_barrier = 0;
  for (size_t i = 0; i < threads.size(); ++i)
    threads[i].context.start(threads[i].stack = stack_of(i), thread_entry);
  for (int num_done = 0; num_done < num_threads;) {
    bool has_moved = false;
    for (int step = 0; step < num_threads; ++step) {
      current = is_reversed ? num_threads - 1 - step : step;
      if (!is_ready(thread(), warp())) continue;
      thread().waits_for_warp = thread().waits_for_block = false;
      has_moved = true;
      scheduler.switch_to(thread().context);
      if (!fault_text.empty()) return;
      if (thread().is_done) ++num_done;
    }
    if (!has_moved) {
      std::string text = "threads wait for others that never come:";
      for (const Warp& w : warps)
        if (w.num_waiting > 0)
          text += " " + std::to_string(w.num_waiting) + " lanes at " + w.instruction;
      if (num_at_barrier > 0)
        text += " " + std::to_string(num_at_barrier) + " threads at a barrier";
      fault_text = text;
      return;
    }
  }
}

void Device::allow(const void* begin, size_t size, const std::string& name, bool is_read_only) {
  const auto* byte = static_cast<const std::byte*>(begin);
  Region region{byte, size, name, is_read_only, {}};
  if (!is_read_only) {
    region.shadows.resize((size + kGranule - 1) / kGranule);
    for (Shadow& s : region.shadows) s.is_written = true;  // the caller filled it
  }
  regions_[byte] = std::move(region);
}

void Device::forget(const void* begin) { regions_.erase(static_cast<const std::byte*>(begin)); }

void Device::protect(const void* begin) {
  Region& region = regions_.at(static_cast<const std::byte*>(begin));
  region.is_read_only = true;
  region.shadows.clear();
}

void Device::run(const std::string& kernel, int num_blocks, int num_threads, size_t shared_bytes,
                 const std::function<void()>& thread) {
  if (num_threads < 32 || num_threads > 1024 || num_threads % 32 != 0)
    throw Fault(kernel + ": " + std::to_string(num_threads) + " threads a block");
  constexpr size_t kMostShared = 163 * 1024;  // of sm_80: later devices have more
  if (shared_bytes > kMostShared)
    throw Fault(kernel + ": " + std::to_string(shared_bytes) + " bytes of shared memory");
  for (auto& [begin, region] : regions_)  // launches follow one another: nothing races across
    for (Shadow& s : region.shadows) s.write = s.read = {};
  Execution execution(*this, thread, num_threads);
  execution.shared_storage.resize(shared_bytes + 256);
  auto* base = execution.shared_storage.data();
  base += 128 - reinterpret_cast<uintptr_t>(base) % 128;
  execution.shared = {base, shared_bytes, "shared memory", false,
                      std::vector<Shadow>((shared_bytes + kGranule - 1) / kGranule)};
  Execution* const outer = running;
  running = &execution;
  const bool is_reversed = num_runs_++ % 2 == 1;
  for (execution.block = 0; execution.block < num_blocks; ++execution.block) {
    execution.run_block(is_reversed);
    if (!execution.fault_text.empty()) break;
  }
  running = outer;
  if (!execution.fault_text.empty())
    throw Fault(kernel + ", block " + std::to_string(execution.block) + ", thread " +
                std::to_string(execution.current) + ": " + execution.fault_text);
}

void count(const std::string& name) { ++counts[name]; }
int64_t instruction_count(const std::string& name) { return counts[name]; }
void clear_instruction_counts() { counts.clear(); }

void note_launch(const void* kernel) { launched.insert(kernel); }
std::vector<const void*> launched_kernels() { return {launched.begin(), launched.end()}; }

int thread_index() { return running->current; }
int block_index() { return running->block; }
std::byte* shared_memory() { return const_cast<std::byte*>(running->shared.begin); }

void fault(const std::string& text) {
  running->fault_text = text;
  running->suspend();  // the scheduler gives the block up
  __builtin_unreachable();
}

void check_read(const void* p, size_t size) { running->read(p, size, false); }
void check_write(const void* p, size_t size) { running->write(p, size); }
void check_warp_read(const void* p, size_t size) { running->read(p, size, true); }

void barrier() {
  Execution& e = *running;
  if (e.warp().num_waiting > 0) fault("a barrier while other lanes of the warp wait elsewhere");
  if (++e.num_at_barrier == e.num_threads) {
    e.num_at_barrier = 0;
    ++e.block_generation;
    ++e.block_epoch;
    return;
  }
  e.thread().waits_for_block = true;
  e.thread().generation = e.block_generation;
  e.suspend();
}

void collective(const char* name, void* operands, void (*execute)(void* const* operands)) {
  Execution& e = *running;
  Warp& warp = e.warp();
  if (warp.num_waiting == 0) warp.instruction = name;
  if (std::strcmp(warp.instruction, name) != 0)
    fault(std::string("lanes of a warp part: ") + name + " here, others at " + warp.instruction);
  warp.operands[e.current % 32] = operands;
  if (++warp.num_waiting < warp.num_lanes) {
    e.thread().waits_for_warp = true;
    e.thread().generation = warp.generation;
    e.suspend();
    return;
  }
  execute(warp.operands);
  count(name);
  warp.num_waiting = 0;
  ++warp.generation;
}

void warp_barrier() {
  collective("warp_barrier", nullptr, [](void* const*) { ++running->warp().epoch; });
}

void copy_async(void* shared, const void* global, int valid) {
  Execution& e = *running;
  if (valid < 0 || valid > 16) fault("an asynchronous copy of " + std::to_string(valid) + " bytes");
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(shared) % 16 != 0)
    fault("an asynchronous copy is misaligned");
  if (valid > 0) {
    // cp.async reads the bytes that are valid; their granules are checked one by one.
    for (int byte = 0; byte < valid; byte += 2)
      e.read(static_cast<const std::byte*>(global) + byte, 2, false);
  }
  e.write(shared, 16);
  Execution::each_shadow(e.shared, shared, 16, [](Shadow& s, size_t) { s.is_arriving = true; });
  e.thread().uncommitted.push_back({shared, global, valid});
}

void copy_commit() {
  Thread& thread = running->thread();
  thread.committed.push_back(std::move(thread.uncommitted));
  thread.uncommitted.clear();
}

void copy_wait(int most_pending) {
  Execution& e = *running;
  Thread& thread = e.thread();
  while (static_cast<int>(thread.committed.size()) > most_pending) {
    for (const Copy& copy : thread.committed.front()) {
      Execution::each_shadow(e.shared, copy.to, 16,
                             [](Shadow& s, size_t) { s.is_arriving = false; });
      e.write(copy.to, 16);
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid));
    }
    thread.committed.pop_front();
  }
}

}  // namespace minifuse::cuda::emulator
