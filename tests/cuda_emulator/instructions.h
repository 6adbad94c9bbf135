// The instructions of ptx.cuh on the CPU: memory through the checks of device.h, warps' by lane
// over the 32 sets of registers, matrices in double and rounded once to float32.
#pragma once

#include <cmath>
#include <cstring>

#include "common/float_bits.h"
#include "cuda_emulator/device.h"

#define MINIFUSE_DEVICE inline
#define MINIFUSE_KERNEL(threads) void
#define MINIFUSE_GRID_CONSTANT

namespace minifuse::cuda::ptx {

inline int thread_index() { return emulator::thread_index(); }
inline int block_index() { return emulator::block_index(); }
inline int lane_index() { return emulator::thread_index() % 32; }
inline int warp_index() { return emulator::thread_index() / 32; }

inline std::byte* shared_memory() { return emulator::shared_memory(); }

template <typename T>
T load(const T* p) {
  emulator::check_read(p, sizeof(T));
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
void store(T* p, const T& value) {
  emulator::check_write(p, sizeof(T));
  std::memcpy(p, &value, sizeof(T));
}

inline void copy_async16(void* shared, const void* global, int valid) {
  emulator::copy_async(shared, global, valid);
}
inline void copy_commit() { emulator::copy_commit(); }
template <int kPending>
void copy_wait() {
  emulator::copy_wait(kPending);
}

inline void barrier() { emulator::barrier(); }
inline void warp_barrier() { emulator::warp_barrier(); }

template <typename T>
T shuffle_xor(T value, int mask) {
  struct Operands {
    T value, result;
    int mask;
  } mine{value, value, mask};
  emulator::collective("shuffle", &mine, [](void* const* operands) {
    for (int lane = 0; lane < 32; ++lane) {
      auto& to = *static_cast<Operands*>(operands[lane]);
      to.result = static_cast<Operands*>(operands[lane ^ to.mask])->value;
    }
  });
  return mine.result;
}

namespace detail {

struct LoadOperands {
  uint32_t* r;
  const void* row;
};

template <bool kTransposed>
void load_matrices(void* const* operands) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t element[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(element[row], static_cast<const LoadOperands*>(operands[8 * matrix + row])->row,
                  16);
    for (int lane = 0; lane < 32; ++lane) {
      const int i = lane / 4, j = 2 * (lane % 4);
      const uint16_t low = kTransposed ? element[j][i] : element[i][j];
      const uint16_t high = kTransposed ? element[j + 1][i] : element[i][j + 1];
      static_cast<LoadOperands*>(operands[lane])->r[matrix] = low | uint32_t{high} << 16;
    }
  }
}

struct MmaOperands {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

enum class Type { kBfloat16, kHalf, kTf32 };

template <Type kType>
double element_of(uint32_t reg, int which) {
  if constexpr (kType == Type::kTf32) {
    if (reg & 0x1fff) emulator::fault("an operand of mma is not rounded to tf32");
    return float_of_bits(reg);
  } else {
    const auto bits = static_cast<uint16_t>(which ? reg >> 16 : reg);
    return kType == Type::kBfloat16 ? from_bfloat16_bits(bits) : from_float16_bits(bits);
  }
}

// The fragment maps of ptx.cuh, the other way round: row and column of every register.
template <Type kType>
void mma(void* const* operands) {
  constexpr int kPer = kType == Type::kTf32 ? 1 : 2;  // elements in a register
  double a[16][8 * kPer], b[8 * kPer][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const MmaOperands*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r)
      for (int e = 0; e < kPer; ++e)
        a[g + 8 * (r % 2)][kPer * t + e + 4 * kPer * (r / 2)] = element_of<kType>(mine.a[r], e);
    for (int r = 0; r < 2; ++r)
      for (int e = 0; e < kPer; ++e)
        b[kPer * t + e + 4 * kPer * r][g] = element_of<kType>(mine.b[r], e);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const MmaOperands*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) {
      const int row = g + 8 * (r / 2), column = 2 * t + r % 2;
      double sum = mine.d[r];
      for (int k = 0; k < 8 * kPer; ++k) sum += a[row][k] * b[k][column];
      mine.d[r] = static_cast<float>(sum);
    }
  }
}

}  // namespace detail

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  emulator::check_warp_read(row, 16);
  detail::LoadOperands mine{r, row};
  emulator::collective("ldmatrix", &mine, detail::load_matrices<false>);
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  emulator::check_warp_read(row, 16);
  detail::LoadOperands mine{r, row};
  emulator::collective("ldmatrix.trans", &mine, detail::load_matrices<true>);
}

inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  detail::MmaOperands mine{d, a, {b0, b1}};
  emulator::collective("mma.bf16", &mine, detail::mma<detail::Type::kBfloat16>);
}
inline void mma_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  detail::MmaOperands mine{d, a, {b0, b1}};
  emulator::collective("mma.f16", &mine, detail::mma<detail::Type::kHalf>);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  detail::MmaOperands mine{d, a, {b0, b1}};
  emulator::collective("mma.tf32", &mine, detail::mma<detail::Type::kTf32>);
}

// ---- sm_90a ----

using TensorMap = emulator::TensorMap;

inline void make_arrival(uint64_t* arrival, int count) { emulator::make_arrival(arrival, count); }
inline void arrive_expecting(uint64_t* arrival, int num_bytes) {
  emulator::arrive_expecting(arrival, num_bytes);
}
inline void wait_for_arrival(uint64_t* arrival, int parity) {
  emulator::wait_for_arrival(arrival, parity);
}
inline void copy_box(void* shared, const TensorMap& map, int column, int row, uint64_t* arrival) {
  emulator::copy_box(shared, map, column, row, arrival);
}

using BoxAddress =
    uint64_t;  // bytes from the beginning of shared memory; above them the row's bytes
inline constexpr BoxAddress kBoxStep = 32;
template <int kRowBytes>
BoxAddress box_address(const void* shared) {
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(shared) - shared_memory());
  if (offset % 1024 != 0) emulator::fault("a product's box is not at a multiple of 1,024 bytes");
  return offset | uint64_t{kRowBytes} << 32;
}

inline void warpgroup_fence() {}
inline void warpgroup_commit() { emulator::warpgroup_commit(); }
template <int kPending>
void warpgroup_wait() {
  emulator::warpgroup_wait(kPending);
}

template <typename T, int kCount>
void hold(T (&)[kCount][4]) {}

namespace detail {

inline double value_of(Bfloat16, uint16_t bits) { return from_bfloat16_bits(bits); }
inline double value_of(Half, uint16_t bits) { return from_float16_bits(bits); }

template <int kFirst, int kCount, typename T, int kTiles>
void start_product(float (&d)[kTiles][4], const uint32_t* a_registers, BoxAddress a, BoxAddress b,
                   bool adds) {
  static_assert(kFirst + kCount <= kTiles);
  const auto place = [](BoxAddress box) {
    return emulator::BoxPlace{box & 0xffffffff, static_cast<int>(box >> 32)};
  };
  emulator::start_product({d + kFirst, a_registers, place(a), place(b), kCount, adds,
                           [](uint16_t bits) { return value_of(T{}, bits); }});
}

}  // namespace detail

#define MINIFUSE_WGMMA(columns)                                                           \
  template <int kFirst, typename T, int kTiles>                                           \
  void multiply_warpgroup_##columns(T, float (&d)[kTiles][4], BoxAddress a, BoxAddress b, \
                                    bool adds) {                                          \
    detail::start_product<kFirst, columns / 8, T>(d, nullptr, a, b, adds);                \
  }                                                                                       \
  template <int kFirst, typename T, int kTiles>                                           \
  void multiply_warpgroup_##columns(T, float (&d)[kTiles][4], const uint32_t (&a)[4],     \
                                    BoxAddress b, bool adds) {                            \
    detail::start_product<kFirst, columns / 8, T>(d, a, 0, b, adds);                      \
  }
MINIFUSE_WGMMA(32)
MINIFUSE_WGMMA(64)
MINIFUSE_WGMMA(192)
#undef MINIFUSE_WGMMA

inline uint32_t to_bits(float x) { return bits_of(x); }
inline float from_bits(uint32_t bits) { return float_of_bits(bits); }
inline uint32_t to_tf32(float x) { return (to_bits(x) + 0x1000) & ~uint32_t{0x1fff}; }
inline uint32_t pack_bfloat16(float low, float high) {
  return to_bfloat16_bits(low) | uint32_t{to_bfloat16_bits(high)} << 16;
}
inline uint32_t pack_half(float low, float high) {
  return to_float16_bits(low) | uint32_t{to_float16_bits(high)} << 16;
}
inline float from_half(uint16_t bits) { return from_float16_bits(bits); }

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float exp2(float x) { return std::exp2(x); }
inline float log(float x) { return std::log(x); }
inline float tanh(float x) { return std::tanh(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float sqrt(float x) { return std::sqrt(x); }

}  // namespace minifuse::cuda::ptx
