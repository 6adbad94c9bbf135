// The table of float32, in a file of its own: the three compile side by side.
#include "cuda/table.cuh"

namespace minifuse::cuda {

const Kernels& float32_kernels() {
  static constexpr Kernels table = table_of<float>("float32");
  return table;
}

}  // namespace minifuse::cuda
