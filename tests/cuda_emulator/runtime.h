// The emulator as a runtime: memory is the host's, each buffer registered under its name, and a
// stream does everything at once.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>

#include "cuda_emulator/device.h"
#include "cuda/hopper/table.cuh"
#include "cuda/runtime.h"

namespace minifuse::cuda::emulator {

inline constexpr Kernels kTables[] = {table_of<float>("float32"), table_of<Bfloat16>("bfloat16"),
                                      table_of<Half>("float16")};

inline const Kernels& bfloat16_kernels() { return kTables[1]; }
inline const Kernels& float16_kernels() { return kTables[2]; }
inline const Kernels kHopperTables[] = {hopper_table_of<Bfloat16, bfloat16_kernels>(),
                                        hopper_table_of<Half, float16_kernels>()};

inline const Kernels& table_named(const std::string& element) {
  if (wanted_isa("sm_80") == "sm_90a")
    for (const Kernels& table : kHopperTables)
      if (element == table.element) return table;
  for (const Kernels& table : kTables)
    if (element == table.element) return table;
  fail("dtype is '", element, "', wanted float32, bfloat16 or float16 on this device");
}

class EmulatedRuntime final : public Runtime, private MemoryRules {
 public:
  // most_bytes: where allocate() says that there is no room.
  explicit EmulatedRuntime(size_t most_bytes) : bytes_left_(most_bytes) {}

  std::string device_name() const override { return "emulator"; }
  const Kernels& kernels(const std::string& element) const override { return table_named(element); }

  void* allocate(size_t size_bytes, const std::string& name) override {
    if (size_bytes > bytes_left_) return nullptr;
    void* memory = allocate_pinned(size_bytes);
    std::memset(memory, 0, size_bytes);
    device_.allow(memory, size_bytes, name, false);
    sizes_[memory] = size_bytes;
    bytes_left_ -= size_bytes;
    return memory;
  }
  void release(void* memory) noexcept override {
    bytes_left_ += sizes_[memory];
    sizes_.erase(memory);
    device_.forget(memory);
    release_pinned(memory);
  }
  void* allocate_pinned(size_t size_bytes) override {
    void* memory = std::aligned_alloc(256, (size_bytes + 256) / 256 * 256);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }
  void release_pinned(void* memory) noexcept override { std::free(memory); }

  Stream create_stream() override { return &device_; }
  void destroy_stream(Stream) noexcept override {}
  void upload(void* to, const void* from, size_t size_bytes, Stream) override {
    device_.defer([=] { std::memcpy(to, from, size_bytes); });
  }
  void download(void* to, const void* from, size_t size_bytes, Stream) override {
    device_.defer([=] { std::memcpy(to, from, size_bytes); });
  }
  void copy(void* to, const void* from, size_t size_bytes, Stream) override {
    device_.defer([=] { std::memcpy(to, from, size_bytes); });
  }
  void begin_capture(Stream) override {
    count("graph");
    device_.start_recording();
  }
  Graph end_capture(Stream) override { return device_.finish_recording().release(); }
  void launch(Graph graph, Stream) override {
    count("graph launch");
    for (const auto& action : *static_cast<Device::Recording*>(graph)) action();
  }
  void destroy_graph(Graph graph) noexcept override {
    delete static_cast<Device::Recording*>(graph);
  }
  void synchronize(Stream) override {}
  MemoryRules* memory_rules() override { return this; }

  void keep_device(const std::function<void()>& work) override { work(); }
  void on_stream(uintptr_t, const std::function<void(Stream)>& launch) override {
    launch(&device_);
  }

 private:
  void protect(void* memory) override { device_.protect(memory); }
  void lend(const void* memory, size_t size_bytes, const std::string& name,
            bool is_read_only) override {
    device_.allow(memory, size_bytes, name, is_read_only);
  }
  void take_back(const void* memory) noexcept override { device_.forget(memory); }

  Device device_;
  size_t bytes_left_;
  std::map<void*, size_t> sizes_;
};

}  // namespace minifuse::cuda::emulator
