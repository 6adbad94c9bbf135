// The kernels as nvcc compiles them.
#include "cuda/table.cuh"

namespace minifuse::cuda {

const Kernels* device_kernels(int index) { return &kTables[index]; }

}  // namespace minifuse::cuda
