// The tile registers of AMX as arrays, and an instruction set that computes with them.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "expect.h"
#include "linear/quantize.h"

#if defined(__SSE2__)
#include <emmintrin.h>  // of vec_scalar.h
#endif

namespace emulated {
using namespace minifuse;
namespace {

#include "emulate_bfloat16.h"
#include "cpu/vectors/dot_scalar.h"

// ---- tiles_amx.h, as Intel's manual (volume 2) describes the instructions ----------------------

constexpr int kMostRows = 16, kMostBytes = 64, kNumTiles = 8;  // palette 1

struct Tiles {
  bool is_configured = false;
  uint8_t bytes[kNumTiles][kMostRows][kMostBytes];
};
thread_local Tiles tiles;

// Ends the test: what is wanted would be an invalid instruction.
void expect_valid(bool condition, const char* instruction) {
  if (condition) return;
  std::fprintf(stderr, "%s: not configured, or no such register\n", instruction);
  std::abort();
}

void configure_tiles() {
  expect_valid(!tiles.is_configured, "ldtilecfg within another's time");
  tiles.is_configured = true;
  std::memset(tiles.bytes, 0, sizeof(tiles.bytes));
}
void release_tiles() {
  expect_valid(tiles.is_configured, "tilerelease");
  tiles.is_configured = false;
}

template <int kTile>
void zero_tile() {
  static_assert(kTile >= 0 && kTile < kNumTiles);
  expect_valid(tiles.is_configured, "tilezero");
  std::memset(tiles.bytes[kTile], 0, sizeof(tiles.bytes[kTile]));
}
template <int kTile>
void load_tile(const void* rows, int64_t stride) {
  static_assert(kTile >= 0 && kTile < kNumTiles);
  expect_valid(tiles.is_configured, "tileloadd");
  for (int row = 0; row < kMostRows; ++row)
    std::memcpy(tiles.bytes[kTile][row], static_cast<const char*>(rows) + row * stride, kMostBytes);
}
template <int kTile>
void store_tile(void* rows, int64_t stride) {
  static_assert(kTile >= 0 && kTile < kNumTiles);
  expect_valid(tiles.is_configured, "tilestored");
  for (int row = 0; row < kMostRows; ++row)
    std::memcpy(static_cast<char*>(rows) + row * stride, tiles.bytes[kTile][row], kMostBytes);
}
i32x16 load_sums(const int32_t* p) {
  i32x16 sums;
  std::memcpy(sums.lane, p, sizeof(sums.lane));
  return sums;
}

// sums[m][n] = add(sums[m][n], row m, k, n) for k = 0..15: four bytes of the row and of column n, which
// lie in line k of the columns.
template <int kSums, int kRows, int kColumns, typename Sum, typename F>
void for_each_product(const char* instruction, F add) {
  static_assert(kSums != kRows && kSums != kColumns && kRows != kColumns);  // or it is invalid
  static_assert(kSums >= 0 && kRows >= 0 && kColumns >= 0);
  static_assert(kSums < kNumTiles && kRows < kNumTiles && kColumns < kNumTiles);
  expect_valid(tiles.is_configured, instruction);
  Tiles& all = tiles;
  for (int m = 0; m < kMostRows; ++m) {
    Sum sums[16];
    std::memcpy(sums, all.bytes[kSums][m], sizeof(sums));
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 16; ++n)
        add(sums[n], k, n, all.bytes[kRows][m] + 4 * k, all.bytes[kColumns][k] + 4 * n);
    std::memcpy(all.bytes[kSums][m], sums, sizeof(sums));
  }
}

template <int kSums, int kCodes, int kWeights>
void dot_codes() {
  for_each_product<kSums, kCodes, kWeights, int32_t>(
      "tdpbusd", [](int32_t& sum, int, int, const uint8_t* codes, const uint8_t* weights) {
        for (int i = 0; i < 4; ++i) sum += codes[i] * static_cast<int8_t>(weights[i]);
      });
}
// The even values and the odd ones are summed apart, then joined with what there was. The processor
// rounds once for each product; here it may be twice.
template <int kSums, int kValues, int kWeights>
void dot_pairs() {
  float even[16], odd[16];
  for_each_product<kSums, kValues, kWeights, float>(
      "tdpbf16ps", [&](float& sum, int k, int n, const uint8_t* values, const uint8_t* weights) {
        uint16_t x[2], w[2];
        std::memcpy(x, values, sizeof(x));
        std::memcpy(w, weights, sizeof(w));
        if (k == 0) even[n] = odd[n] = 0;
        const auto add = [](float& chain, uint16_t a, uint16_t b) {
          chain = static_cast<float>(static_cast<double>(widened(a)) * widened(b) + chain);
        };
        add(even[n], x[0], w[0]);
        add(odd[n], x[1], w[1]);
        if (k == 15) sum += even[n] + odd[n];
      });
}

#include "cpu/linear_kernels.inl.h"

#include "cpu/linear/int8.inl.h"
#include "cpu/linear/bfloat16_dot.inl.h"
#include "cpu/linear/tiles.inl.h"

}  // namespace
}  // namespace emulated

namespace minifuse::test {

const InstructionSet& emulated_amx() {
  static const InstructionSet amx = [] {
    InstructionSet set = select_isa("scalar");
    set.name = "amx, emulated";
    set.multiplies_pairs = true;
    set.kernels.int8 = emulated::linear_kernels<emulated::Int8Tiles>(set.name);
    set.kernels.bfloat16 = emulated::linear_kernels<emulated::Bfloat16Tiles>(set.name);
    return set;
  }();
  return amx;
}

}  // namespace minifuse::test
