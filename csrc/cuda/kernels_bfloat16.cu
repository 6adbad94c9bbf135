// The table of bfloat16, in a file of its own: the three compile side by side.
#include "cuda/table.cuh"

namespace minifuse::cuda {

const Kernels& bfloat16_kernels() {
  static constexpr Kernels table = table_of<Bfloat16>("bfloat16");
  return table;
}

}  // namespace minifuse::cuda
