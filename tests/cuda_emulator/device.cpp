// Threads are fibres: a kernel's thread runs until it has to wait for others, then the scheduler
// goes on with the next. Where a warp's lanes meet, the last to come does the work for all.

#include <sys/mman.h>

#include <cstring>
#include <set>

#include "cuda_emulator/execution.h"

#if defined(__x86_64__)
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
#endif

namespace minifuse::cuda::emulator {

constinit thread_local Execution* running = nullptr;

namespace {

std::set<const void*> launched;
std::map<std::string, int64_t> counts;

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

}  // namespace minifuse::cuda::emulator
