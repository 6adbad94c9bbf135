// A CUDA device on the CPU, slow and strict: it runs a kernel's grid block by block, each thread on
// a stack of its own, and stops at the first access that is out of bounds, misaligned, of shared
// memory never written, or racing with another thread's; and where lanes of a warp part or a
// barrier is not reached by all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace minifuse::cuda::emulator {

// An error of a kernel: a real device would have gone on in silence, or crashed.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Who touched a granule of memory last, and when. Two accesses are ordered if a barrier of the
// block lies between them, or one of the warp and both are the warp's.
struct Shadow {
  struct Access {
    int32_t thread = kNobody;  // of the whole grid; kSeveral: of more than one warp
    int32_t warp = kNobody;
    uint32_t block_epoch = 0, warp_epoch = 0;
  };
  static constexpr int32_t kNobody = -1, kSeveral = -2;
  Access write, read;
  bool is_written = false;
  bool is_arriving = false;  // an asynchronous copy to it is under way
  bool is_of_box = false;  // written by copy_box(), which alone a warpgroup's products may read
  uint16_t num_products = 0;  // under way that read it
};

inline constexpr size_t kGranule = 2;  // bytes that share a Shadow: the smallest element

// A range that kernels may touch.
struct Region {
  const std::byte* begin;
  size_t size;
  std::string name;
  bool is_read_only;
  std::vector<Shadow> shadows;  // empty where it is read only
};

class Device {
 public:
  // Registers memory of the caller's; until forget() or the device's end.
  void allow(const void* begin, size_t size, const std::string& name, bool is_read_only);
  void forget(const void* begin);
  // No kernel may write there from now on.
  void protect(const void* begin);

  // From here on run() and defer() keep what they are given, until finish_recording().
  void start_recording() { recording_ = std::make_unique<Recording>(); }
  using Recording = std::vector<std::function<void()>>;
  std::unique_ptr<Recording> finish_recording() { return std::move(recording_); }
  // Does it now, or keeps it.
  void defer(std::function<void()> action) {
    if (recording_)
      recording_->push_back(std::move(action));
    else
      action();
  }

  // Runs `thread` once for every thread of the grid, blocks one after the other; throws Fault.
  // In odd runs warps take turns from the last to the first. most_shared: what a device has.
  void run(const std::string& kernel, int num_blocks, int num_threads, size_t shared_bytes,
           size_t most_shared, const std::function<void()>& thread);

 private:
  std::map<const std::byte*, Region> regions_;  // by begin
  int64_t num_runs_ = 0;
  std::unique_ptr<Recording> recording_;
  friend struct Execution;
};

// Instructions of warps and uses of graphs by name, since they were last cleared: what tests prove a
// path by.
void count(const std::string& name);
int64_t instruction_count(const std::string& name);
void clear_instruction_counts();

// Every kernel that was ever launched, by address: so that no instance stays untested.
void note_launch(const void* kernel);
std::vector<const void*> launched_kernels();

// ---- for instructions.h: all of the running thread ---------------------------------------------

int thread_index();
int block_index();
std::byte* shared_memory();

void check_read(const void* p, size_t size);
void check_write(const void* p, size_t size);
// A read whose bytes go to other lanes than the one that gave the address.
void check_warp_read(const void* p, size_t size);

void barrier();
void warp_barrier();

void copy_async(void* shared, const void* global, int valid);
void copy_commit();
void copy_wait(int most_pending);

[[noreturn]] void fault(const std::string& text);

// All lanes of the warp meet here with their operands; the last one runs `execute` on the 32 of
// them, by lane. Lanes that meet at instructions of different names are a fault.
void collective(const char* name, void* operands, void (*execute)(void* const* operands));

// ---- the same for sm_90a -----------------------------------------------------------------------

// A matrix of 16-bit elements in global memory, and the box that is cut from it.
struct TensorMap {
  const std::byte* data;
  int64_t num_columns, num_rows, stride_bytes;
  int box_columns, box_rows;
};

void make_arrival(const void* arrival, int count);
void arrive_expecting(const void* arrival, int num_bytes);
void wait_for_arrival(const void* arrival, int parity);
void copy_box(void* shared, const TensorMap& map, int column, int row, const void* arrival);

// Position of the rows of a box, in bytes from the beginning of shared memory.
struct BoxPlace {
  size_t offset;
  int row_bytes;
  bool operator==(const BoxPlace&) const = default;
};

// One thread's part of d [64, 8 num_tiles] = a [64, 16] b [8 num_tiles, 16]^T (+ d).
struct Product {
  float (*d)[4];
  const uint32_t* a_registers;  // or null, and a lies in shared memory, too
  BoxPlace a, b;
  int num_tiles;
  bool adds;
  double (*value_of)(uint16_t bits);
};
void start_product(const Product& mine);
void warpgroup_commit();
void warpgroup_wait(int most_pending);

}  // namespace minifuse::cuda::emulator
