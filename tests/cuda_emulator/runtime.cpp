// The emulator as the only device of the machine, for tests of everything above it.

#include "cuda_emulator/runtime.h"

namespace minifuse::cuda {

std::vector<DeviceInfo> list_devices() { return {{"emulator", 8, 0, int64_t{1} << 30}}; }

std::shared_ptr<Runtime> open_device(int index) {
  check(index == 0, "there is no cuda:", index, ", wanted cuda:0..0");
  return std::make_shared<emulator::EmulatedRuntime>(size_t{1} << 30);
}

}  // namespace minifuse::cuda
