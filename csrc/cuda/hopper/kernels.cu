// The tables of sm_90a, compiled for it alone.
#include "cuda/hopper/table.cuh"

namespace minifuse::cuda {

const Kernels& bfloat16_kernels();  // kernels_*.cu
const Kernels& float16_kernels();

const Kernels& hopper_bfloat16_kernels() {
  static const Kernels table = hopper_table_of<Bfloat16, bfloat16_kernels>();
  return table;
}
const Kernels& hopper_float16_kernels() {
  static const Kernels table = hopper_table_of<Half, float16_kernels>();
  return table;
}

}  // namespace minifuse::cuda
