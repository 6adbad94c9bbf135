// The table of float16, in a file of its own: the three compile side by side.
#include "cuda/table.cuh"

namespace minifuse::cuda {

const Kernels& float16_kernels() {
  static constexpr Kernels table = table_of<Half>("float16");
  return table;
}

}  // namespace minifuse::cuda
