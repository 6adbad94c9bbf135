// Interface of a device, besides its kernels: memory, copies, streams. The device implements it
// (device_runtime.cu), and so does the emulator (tests/cuda_emulator).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/check.h"
#include "cuda/kernels.h"

namespace minifuse::cuda {

using Graph = void*;

// Rules about memory that kernels must keep, for whoever checks them (the emulator).
class MemoryRules {
 public:
  virtual ~MemoryRules() = default;
  // No kernel writes there from now on.
  virtual void protect(void* memory) = 0;
  // Memory of others that kernels and copies may use until it is taken back.
  virtual void lend(const void* memory, size_t size_bytes, const std::string& name,
                    bool is_read_only) = 0;
  virtual void take_back(const void* memory) noexcept = 0;
};

class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual std::string device_name() const = 0;
  // The table of an element type, "float32", "bfloat16" or "float16", as wanted_isa() says.
  virtual const Kernels& kernels(const std::string& element) const = 0;

  // Zeroed; null where there is no room. The name serves reports of errors.
  virtual void* allocate(size_t size_bytes, const std::string& name) = 0;
  virtual void release(void* memory) noexcept = 0;
  // Pinned memory of the host: copies from and to it need no other buffer.
  virtual void* allocate_pinned(size_t size_bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;

  virtual Stream create_stream() = 0;
  virtual void destroy_stream(Stream stream) noexcept = 0;
  virtual void upload(void* to, const void* from, size_t size_bytes, Stream stream) = 0;
  virtual void download(void* to, const void* from, size_t size_bytes, Stream stream) = 0;
  // From memory of the device to memory of the device.
  virtual void copy(void* to, const void* from, size_t size_bytes, Stream stream) = 0;
  // Waits until all that was put onto the stream is done; errors of kernels surface here.
  virtual void synchronize(Stream stream) = 0;
  // After begin_capture() the work that is put onto the stream is recorded instead of done; the
  // graph can be launched any number of times.
  virtual void begin_capture(Stream stream) = 0;
  virtual Graph end_capture(Stream stream) = 0;
  virtual void launch(Graph graph, Stream stream) = 0;
  virtual void destroy_graph(Graph graph) noexcept = 0;

  // Null where nobody checks: a device does not.
  virtual MemoryRules* memory_rules() { return nullptr; }

  // Calls work; the calling thread's current device is afterwards what it was before.
  virtual void keep_device(const std::function<void()>& work) = 0;

  // ---- for work on what others own ----
  // Calls launch with somebody else's stream, by its handle; the calling thread's current device is
  // afterwards what it was.
  virtual void on_stream(uintptr_t handle, const std::function<void(Stream)>& launch) = 0;
};

// Returns the value of MINIFUSE_CUDA_ISA, "sm_80" or "sm_90a"; the device's best if it is not set.
inline std::string wanted_isa(const char* best) {
  const char* value = std::getenv("MINIFUSE_CUDA_ISA");
  const std::string isa = value && *value ? value : best;
  check(isa == "sm_80" || isa == "sm_90a", "MINIFUSE_CUDA_ISA is '", isa,
        "', wanted sm_80 or sm_90a");
  return isa;
}

struct DeviceInfo {
  std::string name;
  int major, minor;  // compute capability
  int64_t memory_bytes;
};

// The devices of this machine, none where there is no driver; and the runtime of one of them, or
// std::invalid_argument where there is no such device or it is older than compute capability 8.0.
std::vector<DeviceInfo> list_devices();
std::shared_ptr<Runtime> open_device(int index);

struct ReleaseMemory {
  Runtime* runtime;
  void operator()(void* memory) const { runtime->release(memory); }
};

// Memory of a runtime, owned.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Runtime& runtime, void* memory, size_t size_bytes)
      : memory_(memory, ReleaseMemory{&runtime}), size_bytes_(size_bytes) {}

  void* data() const { return memory_.get(); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  std::unique_ptr<void, ReleaseMemory> memory_{nullptr, ReleaseMemory{nullptr}};
  size_t size_bytes_ = 0;
};

}  // namespace minifuse::cuda
