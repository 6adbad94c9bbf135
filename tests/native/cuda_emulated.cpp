// cuda_interface.cpp on the emulator, and what only it can tell: the instructions that ran and the
// instances of kernels that were launched.

#include <dlfcn.h>

#include "cuda_emulator/runtime.h"

namespace minifuse::cuda {

std::shared_ptr<Runtime> open_test_device(size_t most_bytes) {
  emulator::clear_instruction_counts();
  return std::make_shared<emulator::EmulatedRuntime>(most_bytes);
}

extern "C" {

// Since the last launch's device was opened.
int64_t cuda_instruction_count(const char* name) { return emulator::instruction_count(name); }

// The mangled names of the kernels that have been launched, a line each.
const char* cuda_launched() {
  static std::string lines;
  lines.clear();
  for (const void* kernel : emulator::launched_kernels()) {
    Dl_info info;
    if (dladdr(kernel, &info) && info.dli_sname) lines += std::string(info.dli_sname) + "\n";
  }
  return lines.c_str();
}

}  // extern "C"

}  // namespace minifuse::cuda
