// Threads are fibres: a kernel's thread runs until it has to wait for others, then the scheduler
// goes on with the next. Where a warp's lanes meet, the last to come does the work for all.

#include "cuda/emulator/device.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
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

namespace {

thread_local Execution* running = nullptr;

void thread_entry() {
  running->body();
  Thread& thread = running->thread();
  if (!thread.committed.empty() || !thread.uncommitted.empty())
    fault("the thread ended with copies under way");
  if (!running->boxes.empty()) fault("the thread ended with boxes under way");
  if (!running->warpgroups.empty() && !running->warpgroup().started.empty())
    fault("the thread ended with products under way");
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
  warpgroups.assign(static_cast<size_t>(num_threads / 128), Warpgroup{});
  arrivals.clear();
  boxes.clear();
  num_at_barrier = 0;
  Warpgroup none;  // of threads that are fewer than four warps
  for (size_t i = 0; i < threads.size(); ++i)
    threads[i].context.start(threads[i].stack = stack_of(i), thread_entry);
  for (int num_done = 0; num_done < num_threads;) {
    bool has_moved = false;
    for (int step = 0; step < num_threads; ++step) {
      current = is_reversed ? num_threads - 1 - step : step;
      const bool has_group = current / 128 < static_cast<int>(warpgroups.size());
      if (!is_ready(thread(), warp(), has_group ? warpgroup() : none)) continue;
      thread().waits_for_warp = thread().waits_for_block = thread().waits_for_warpgroup = false;
      thread().arrival = nullptr;
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
      for (const Warpgroup& g : warpgroups)
        if (g.num_waiting > 0)
          text += " " + std::to_string(g.num_waiting) + " threads at " + g.instruction;
      for (const Thread& t : threads)
        if (t.arrival) {
          text += " threads for an arrival";
          break;
        }
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
                 size_t most_shared, const std::function<void()>& thread) {
  if (num_threads < 32 || num_threads > 1024 || num_threads % 32 != 0)
    throw Fault(kernel + ": " + std::to_string(num_threads) + " threads a block");
  if (shared_bytes > most_shared)
    throw Fault(kernel + ": " + std::to_string(shared_bytes) + " bytes of shared memory");
  for (auto& [begin, region] : regions_)  // launches follow one another: nothing races across
    for (Shadow& s : region.shadows) s.write = s.read = {};
  Execution execution(*this, thread, num_threads);
  execution.shared_storage.resize(shared_bytes + 2048);
  auto* base = execution.shared_storage.data();
  base += 1024 - reinterpret_cast<uintptr_t>(base) % 1024;
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

// ---- sm_90a ------------------------------------------------------------------------------------

namespace {

// The 16-byte piece at an address within boxes is elsewhere: bits of its row are added to its place.
size_t swizzled(size_t address, int row_bytes) {
  return address ^ ((address >> 7 & (row_bytes == 128 ? 7 : 3)) << 4);
}

// All threads of the warpgroup meet here, as the lanes of a warp do in collective().
void warpgroup_collective(const char* name, void* operands, void (*execute)(Warpgroup& group)) {
  Execution& e = *running;
  if (e.num_threads % 128 != 0) fault(std::string(name) + " in a block that ends within a group");
  Warpgroup& group = e.warpgroup();
  if (group.num_waiting == 0) group.instruction = name;
  if (std::strcmp(group.instruction, name) != 0)
    fault(std::string("warps of a group part: ") + name + " here, others at " + group.instruction);
  group.operands[e.current % 128] = operands;
  if (++group.num_waiting < 128) {
    e.thread().waits_for_warpgroup = true;
    e.thread().generation = group.generation;
    e.suspend();
    return;
  }
  execute(group);
  count(name);
  group.num_waiting = 0;
  ++group.generation;
}

Arrival& arrival_at(const void* at) {
  const auto found = running->arrivals.find(at);
  if (found == running->arrivals.end()) fault("an arrival that was never made");
  Arrival& arrival = found->second;
  if (arrival.epoch == running->block_epoch && arrival.maker != running->current)
    fault("an arrival that no barrier has shown to this thread");
  return arrival;
}

}  // namespace

void make_arrival(const void* at, int count) {
  running->write(at, 8);
  running->arrivals[at] = {count, count, 0, 0, running->current, running->block_epoch};
}

void arrive_expecting(const void* at, int num_bytes) {
  Arrival& arrival = arrival_at(at);
  if (arrival.num_missing == 0) fault("more threads arrive than were announced");
  --arrival.num_missing;
  arrival.bytes_missing += num_bytes;
}

// Whether the phase of this parity has ended, or may now.
bool Execution::can_end(const void* at, int parity) const {
  const Arrival& arrival = arrivals.at(at);
  if (arrival.phase % 2 != parity) return true;
  if (arrival.num_missing > 0) return false;
  int64_t num_bytes = 0;
  for (const BoxCopy& box : boxes)
    if (box.arrival == at) num_bytes += int64_t{2} * box.map.box_columns * box.map.box_rows;
  return num_bytes == arrival.bytes_missing;
}

// Boxes land as late as they may: when the last thread has arrived and somebody asks.
void Execution::end(const void* at) {
  Arrival& arrival = arrivals.at(at);
  for (const BoxCopy& box : boxes)
    if (box.arrival == at) deliver(box);
  std::erase_if(boxes, [&](const BoxCopy& box) { return box.arrival == at; });
  arrival.bytes_missing = 0;
  arrival.num_missing = arrival.count;
  ++arrival.phase;
}

void wait_for_arrival(const void* at, int parity) {
  Execution& e = *running;
  arrival_at(at);
  if (!e.can_end(at, parity)) {
    e.thread().arrival = at;
    e.thread().parity = parity;
    e.suspend();
  }
  if (e.arrivals.at(at).phase % 2 == parity) e.end(at);
}

void copy_box(void* shared, const TensorMap& map, int column, int row, const void* at) {
  Execution& e = *running;
  arrival_at(at);
  const size_t offset = static_cast<size_t>(static_cast<const std::byte*>(shared) - e.shared.begin);
  if (offset % 1024 != 0) fault("a box is not at a multiple of 1,024 bytes");
  if ((map.box_columns != 64 && map.box_columns != 32) || map.box_rows > 256)
    fault("a box of another shape");
  const size_t size = static_cast<size_t>(2 * map.box_columns * map.box_rows);
  for (size_t byte = 0; byte < size; byte += 16)
    e.write(static_cast<std::byte*>(shared) + byte, 16);
  Execution::each_shadow(e.shared, shared, size, [](Shadow& s, size_t) { s.is_arriving = true; });
  e.boxes.push_back({static_cast<std::byte*>(shared), map, column, row, at});
  count("box");
}

void Execution::deliver(const BoxCopy& box) {
  const size_t base = static_cast<size_t>(box.to - shared.begin);
  auto* memory = const_cast<std::byte*>(shared.begin);
  const int row_bytes = 2 * box.map.box_columns;
  for (int r = 0; r < box.map.box_rows; ++r) {
    std::byte values[128] = {};
    const int64_t columns =
        std::clamp<int64_t>(box.map.num_columns - box.column, 0, box.map.box_columns);
    if (box.row + r >= 0 && box.row + r < box.map.num_rows && columns > 0) {
      const std::byte* from =
          box.map.data + (box.row + r) * box.map.stride_bytes + 2 * int64_t{box.column};
      const auto size = static_cast<size_t>(2 * columns);
      read(from, size, true);
      std::memcpy(values, from, size);
    }
    for (int piece = 0; piece < row_bytes; piece += 16)
      std::memcpy(memory + swizzled(base + static_cast<size_t>(r * row_bytes + piece), row_bytes),
                  values + piece, 16);
  }
  each_shadow(shared, box.to, static_cast<size_t>(box.map.box_rows * row_bytes),
              [](Shadow& s, size_t) {
                s.is_arriving = false;
                s.is_of_box = true;
                s.write = {};  // the arrival orders it
              });
}

// Calls f(address) with the 16-byte pieces of shared memory that a product reads.
template <typename F>
void Execution::each_piece(const Product& product, F f) {
  const auto rows = [&](const BoxPlace& place, int num_rows) {
    for (int row = 0; row < num_rows; ++row)
      for (int piece = 0; piece < 2; ++piece)
        f(const_cast<std::byte*>(shared.begin) +
          swizzled(place.offset + static_cast<size_t>(row * place.row_bytes + 16 * piece),
                   place.row_bytes));
  };
  if (!product.a_registers) rows(product.a, 64);
  rows(product.b, 8 * product.num_tiles);
}

void start_product(const Product& mine) {
  Product part = mine;
  warpgroup_collective("wgmma", &part, [](Warpgroup& group) {
    Execution& e = *running;
    Warpgroup::Started started{{}, group.num_committed};
    for (size_t i = 0; i < 128; ++i) {
      started.parts[i] = *static_cast<const Product*>(group.operands[i]);
      const Product &one = started.parts[i], &first = started.parts[0];
      if (one.a != first.a || one.b != first.b || one.num_tiles != first.num_tiles ||
          one.adds != first.adds)
        fault("threads of a warpgroup give different operands to a product");
    }
    e.each_piece(started.parts[0], [&](std::byte* p) {
      e.read(p, 16, true);
      Execution::each_shadow(e.shared, p, 16, [&](Shadow& s, size_t offset) {
        if (!s.is_of_box) fault("a product reads what no box wrote" + e.where(e.shared, offset));
        ++s.num_products;
      });
    });
    group.started.push_back(std::move(started));
  });
}

void warpgroup_commit() {
  warpgroup_collective("wgmma.commit", nullptr, [](Warpgroup& group) { ++group.num_committed; });
}

// A product is done as late as it may be: what a thread reads or changes before comes out wrong.
void warpgroup_wait(int most_pending) {
  Execution& e = *running;
  Warpgroup& group = e.warpgroup();
  while (!group.started.empty() &&
         group.started.front().group < group.num_committed - most_pending) {
    e.run_product(group.started.front());
    group.started.pop_front();
  }
}

// The fragment maps of ptx.cuh: warp w has rows 16 w.., as an mma's.
void Execution::run_product(const Warpgroup::Started& product) {
  const Product& first = product.parts[0];
  const auto value_at = [&](const BoxPlace& place, int row, int k) {
    uint16_t bits;
    const size_t at = place.offset + static_cast<size_t>(row * place.row_bytes + 2 * k);
    std::memcpy(&bits, shared.begin + swizzled(at, place.row_bytes), 2);
    return first.value_of(bits);
  };
  double a[64][16];
  for (size_t i = 0; i < 128 && first.a_registers; ++i) {
    const int row = static_cast<int>(i / 32 * 16 + i % 32 / 4), k = static_cast<int>(2 * (i % 4));
    for (int r = 0; r < 4; ++r)
      for (int e = 0; e < 2; ++e)
        a[row + 8 * (r % 2)][k + e + 8 * (r / 2)] = first.value_of(
            static_cast<uint16_t>(product.parts[i].a_registers[r] >> (16 * e) & 0xffff));
  }
  for (int row = 0; row < 64 && !first.a_registers; ++row)
    for (int k = 0; k < 16; ++k) a[row][k] = value_at(first.a, row, k);
  std::vector<std::array<double, 16>> b(static_cast<size_t>(8 * first.num_tiles));
  for (size_t column = 0; column < b.size(); ++column)
    for (size_t k = 0; k < 16; ++k)
      b[column][k] = value_at(first.b, static_cast<int>(column), static_cast<int>(k));
  for (size_t i = 0; i < 128; ++i) {
    const size_t row = i / 32 * 16 + i % 32 / 4, column = 2 * (i % 4);
    for (int n = 0; n < first.num_tiles; ++n)
      for (size_t r = 0; r < 4; ++r) {
        float& d = product.parts[i].d[n][r];
        double sum = first.adds ? d : 0.0;
        for (size_t k = 0; k < 16; ++k)
          sum += a[row + 8 * (r / 2)][k] * b[8 * static_cast<size_t>(n) + column + r % 2][k];
        d = static_cast<float>(sum);
      }
  }
  each_piece(first, [&](std::byte* p) {
    each_shadow(shared, p, 16, [&](Shadow& s, size_t) {
      --s.num_products;
      note(s.read, true, true);
      s.read.warp = Shadow::kSeveral;  // of four warps: a barrier of one does not order it
    });
  });
}

}  // namespace minifuse::cuda::emulator
