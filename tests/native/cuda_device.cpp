// cuda_interface.cpp on the first device of the machine.

#include "cuda/runtime.h"

namespace minifuse::cuda {

std::shared_ptr<Runtime> open_test_device(size_t) { return open_device(0); }

}  // namespace minifuse::cuda
