// The runtime of a real device: memory, copies and streams by the CUDA runtime library, its errors
// as exceptions that name what was tried.

#include <cuda_runtime.h>

#include <stdexcept>

#include "common/check.h"
#include "cuda/runtime.h"

namespace minifuse::cuda {

// One for each element type (kernels_*.cu), so that they compile side by side.
const Kernels& float32_kernels();
const Kernels& bfloat16_kernels();
const Kernels& float16_kernels();
const Kernels& hopper_bfloat16_kernels();  // hopper/kernels.cu
const Kernels& hopper_float16_kernels();

namespace {

void expect(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) throw std::runtime_error(what + ": " + cudaGetErrorString(error));
}

class DeviceRuntime final : public Runtime {
 public:
  explicit DeviceRuntime(int index) : index_(index) {
    cudaDeviceProp properties;
    expect(cudaGetDeviceProperties(&properties, index), "cuda:" + std::to_string(index));
    name_ = properties.name;
    is_hopper_ = properties.major == 9 && properties.minor == 0;
    check(properties.major >= 8, name_, " has compute capability ", properties.major, ".",
          properties.minor, ", wanted 8.0 or later");
  }

  std::string device_name() const override { return name_; }

  const Kernels& kernels(const std::string& element) const override {
    if (wanted_isa(is_hopper_ ? "sm_90a" : "sm_80") == "sm_90a") {
      check(is_hopper_, name_, " does not have sm_90a, which MINIFUSE_CUDA_ISA asks for");
      if (element == "bfloat16") return hopper_bfloat16_kernels();
      if (element == "float16") return hopper_float16_kernels();
    }
    if (element == "float32") return float32_kernels();
    if (element == "bfloat16") return bfloat16_kernels();
    if (element == "float16") return float16_kernels();
    fail("dtype is '", element, "', wanted float32, bfloat16 or float16 on this device");
  }

  void* allocate(size_t size_bytes, const std::string& name) override {
    use();
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, size_bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // it has been dealt with
      return nullptr;
    }
    expect(error, "allocating " + name);
    expect(cudaMemset(memory, 0, size_bytes), "clearing " + name);
    expect(cudaDeviceSynchronize(), "clearing " + name);  // our streams do not wait for that one
    return memory;
  }
  void release(void* memory) noexcept override { cudaFree(memory); }

  void* allocate_pinned(size_t size_bytes) override {
    use();
    void* memory = nullptr;
    expect(cudaMallocHost(&memory, size_bytes), "allocating pinned memory");
    return memory;
  }
  void release_pinned(void* memory) noexcept override { cudaFreeHost(memory); }

  Stream create_stream() override {
    use();
    cudaStream_t stream;
    expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
    return stream;
  }
  void destroy_stream(Stream stream) noexcept override {
    cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  }
  void upload(void* to, const void* from, size_t size_bytes, Stream stream) override {
    use();
    expect(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyHostToDevice,
                           static_cast<cudaStream_t>(stream)),
           "copying to " + name_);
  }
  void download(void* to, const void* from, size_t size_bytes, Stream stream) override {
    use();
    expect(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToHost,
                           static_cast<cudaStream_t>(stream)),
           "copying from " + name_);
  }
  void copy(void* to, const void* from, size_t size_bytes, Stream stream) override {
    use();
    expect(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice,
                           static_cast<cudaStream_t>(stream)),
           "copying within " + name_);
  }
  void synchronize(Stream stream) override {
    use();
    expect(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "computing on " + name_);
  }
  void begin_capture(Stream stream) override {
    use();
    expect(
        cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeThreadLocal),
        "capturing a graph");
  }
  Graph end_capture(Stream stream) override {
    cudaGraph_t graph;
    expect(cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph), "capturing a graph");
    cudaGraphExec_t executable;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    expect(error, "instantiating a graph");
    return executable;
  }
  void launch(Graph graph, Stream stream) override {
    use();
    expect(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)),
           "launching a graph");
  }
  void destroy_graph(Graph graph) noexcept override {
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
  }

  void keep_device(const std::function<void()>& work) override {
    int before = index_;
    expect(cudaGetDevice(&before), "asking for the current device");
    struct Restore {
      int device, own;
      // Not where nothing has changed: to set a device starts to use it.
      ~Restore() {
        if (device != own) cudaSetDevice(device);
      }
    } const restore{before, index_};
    work();
  }
  void on_stream(uintptr_t handle, const std::function<void(Stream)>& launch) override {
    keep_device([&] {
      use();
      launch(reinterpret_cast<cudaStream_t>(handle));
    });
  }

 private:
  // The device of a thread is a setting of that thread.
  void use() const { expect(cudaSetDevice(index_), "cuda:" + std::to_string(index_)); }

  int index_;
  std::string name_;
  bool is_hopper_ = false;
};

}  // namespace

std::vector<DeviceInfo> list_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) return {};
  expect(error, "looking for CUDA devices");
  std::vector<DeviceInfo> devices;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    expect(cudaGetDeviceProperties(&properties, index), "cuda:" + std::to_string(index));
    devices.push_back({properties.name, properties.major, properties.minor,
                       static_cast<int64_t>(properties.totalGlobalMem)});
  }
  return devices;
}

std::shared_ptr<Runtime> open_device(int index) {
  const auto count = static_cast<int>(list_devices().size());
  check(count > 0, "device cuda:", index,
        ": this machine has no NVIDIA GPU, or no driver that is new enough for CUDA ",
        CUDART_VERSION / 1000, "; use device='cpu'");
  check(index >= 0 && index < count, "there is no cuda:", index, ", wanted cuda:0..", count - 1);
  return std::make_shared<DeviceRuntime>(index);
}

}  // namespace minifuse::cuda
