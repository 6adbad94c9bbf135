// Starting a kernel: on a stream of the device, or in the emulator, which a Stream then points to.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace minifuse::cuda {

// A kernel's name, how it is divided, and what it needs.
struct Launch {
  const char* kernel;
  int64_t num_blocks;
  int num_threads;
  int shared_bytes;
  int most_shared_bytes = 163 * 1024;  // of sm_80; the emulator holds kernels to it
};

template <typename Params>
void launch(Stream stream, const Launch& shape, void (*kernel)(Params), const Params& params) {
  if (shape.num_blocks == 0) return;
#if defined(__CUDACC__)
  cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (error == cudaSuccess) {
    kernel<<<static_cast<unsigned>(shape.num_blocks), static_cast<unsigned>(shape.num_threads),
             static_cast<size_t>(shape.shared_bytes), static_cast<cudaStream_t>(stream)>>>(params);
    error = cudaGetLastError();
  }
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(shape.kernel) + ": " + cudaGetErrorString(error));
#else
  emulator::note_launch(reinterpret_cast<const void*>(kernel));
  auto* device = static_cast<emulator::Device*>(stream);
  device->defer([=] {
    device->run(shape.kernel, static_cast<int>(shape.num_blocks), shape.num_threads,
                static_cast<size_t>(shape.shared_bytes),
                static_cast<size_t>(shape.most_shared_bytes), [&] { kernel(params); });
  });
#endif
}

}  // namespace minifuse::cuda
