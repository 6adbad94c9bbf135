// The few lines that a native test needs: a check that says where it failed, and random floats.
// Buffers are exactly as long as what they hold, so that AddressSanitizer sees any step past the
// end.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "cpu/dispatch.h"

namespace minifuse::test {

#define EXPECT(condition, ...)                                              \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::fprintf(stderr, "%s:%d: %s  [", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                    \
      std::fprintf(stderr, "]\n");                                          \
      std::exit(1);                                                         \
    }                                                                       \
  } while (false)

// The call throws std::invalid_argument whose text holds `text`.
template <typename F>
void expect_invalid(const char* text, F f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    EXPECT(std::string(error.what()).find(text) != std::string::npos, "%s", error.what());
    return;
  }
  EXPECT(false, "nothing thrown, wanted '%s'", text);
}

inline std::vector<float> random_floats(int64_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline std::vector<const InstructionSet*> runnable_sets() {
  std::vector<const InstructionSet*> sets;
  for (const InstructionSet& isa : instruction_sets()) {
    if (isa.is_supported())
      sets.push_back(&select_isa(isa.name));  // which asks for its registers
    else
      std::printf("this CPU cannot run %s\n", isa.name);
  }
  return sets;
}

// An instruction set `amx` whose tile registers are arrays: its int8 and bfloat16 kernels are compiled
// from the source of isa_amx.cpp and run on every machine; the rest is the scalar set's.
const InstructionSet& emulated_amx();  // emulated_amx.cpp

}  // namespace minifuse::test
