// Every instruction that a CUDA kernel uses beyond plain C++, each in two forms: the device's, and
// one that runs on a CPU (emulator/), where the tests check addresses, races and fragments. Kernels
// are written over these names alone and compiled by nvcc or by any C++20 compiler.
//
// Layouts cite the PTX ISA 8.8 manual, section 9.7.14 ("Warp level matrix instructions").
#pragma once

#include <cstddef>
#include <cstdint>

namespace minifuse::cuda {

struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What one thread moves at a time.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

}  // namespace minifuse::cuda

#if !defined(__CUDACC__)
#include "cuda/emulator/instructions.h"
#else

#define MINIFUSE_DEVICE __device__ __forceinline__
// A kernel of so many threads a block. One block an SM is all that is asked of the compiler: left to
// itself it spills a few registers to make room for another.
#define MINIFUSE_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)

namespace minifuse::cuda::ptx {

// ---- who I am --------------------------------------------------------------------------------

MINIFUSE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MINIFUSE_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
MINIFUSE_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % 32); }
MINIFUSE_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / 32); }

// ---- memory ----------------------------------------------------------------------------------

// The block's dynamic shared memory, 128-byte aligned.
MINIFUSE_DEVICE std::byte* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return reinterpret_cast<std::byte*>(bytes);
}

// Global or shared; p is aligned to sizeof(T) <= 16.
template <typename T>
MINIFUSE_DEVICE T load(const T* p) {
  return *p;
}
template <typename T>
MINIFUSE_DEVICE void store(T* p, const T& value) {
  *p = value;
}

MINIFUSE_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global into shared memory; the bytes past `valid` become zero, and of them the
// source is not read. Visible after copy_wait() to this thread, after a barrier to the others.
MINIFUSE_DEVICE void copy_async16(void* shared, const void* global, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid)
               : "memory");
}
MINIFUSE_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the committed groups are under way.
template <int kPending>
MINIFUSE_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- together --------------------------------------------------------------------------------

MINIFUSE_DEVICE void barrier() { __syncthreads(); }
MINIFUSE_DEVICE void warp_barrier() { __syncwarp(); }

template <typename T>
MINIFUSE_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Four 8 x 8 matrices of 16-bit elements (as well: 8 rows of 16 bytes each); lane l gives the
// address of row l % 8 of matrix l / 8. Lane l receives of each the 4 bytes at row l / 4, byte
// 4 (l % 4) (PTX ISA 9.7.14.5.15).
MINIFUSE_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of the transposed matrices: lane l receives elements [2 (l % 4)] and [2 (l % 4) + 1] of
// column l / 4.
MINIFUSE_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d [16, 8] += a [16, 16] b [16, 8] in pairs of 16 bits, or a [16, 8] b [8, 8] in tf32. Of lane l,
// with g = l / 4 and t = l % 4 (PTX ISA 9.7.14.5.8 and 9.7.14.5.7):
//   d: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   a, 16 bits: (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..)    b: (2t.., g) (2t+8.., g)
//   a, tf32:    (g, t)    (g+8, t)    (g, t+4)    (g+8, t+4)       b: (t, g)    (t+4, g)
MINIFUSE_DEVICE void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
MINIFUSE_DEVICE void mma_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
MINIFUSE_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- numbers ---------------------------------------------------------------------------------

// x rounded to tf32 (10 bits of fraction), ties away from zero.
MINIFUSE_DEVICE uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}
// Two numbers rounded to nearest even, the first in the low half.
MINIFUSE_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
MINIFUSE_DEVICE uint32_t pack_half(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
MINIFUSE_DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }
MINIFUSE_DEVICE uint32_t to_bits(float x) { return __float_as_uint(x); }
MINIFUSE_DEVICE float from_half(uint16_t bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

MINIFUSE_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
MINIFUSE_DEVICE float exp2(float x) { return ::exp2f(x); }
MINIFUSE_DEVICE float log(float x) { return ::logf(x); }
MINIFUSE_DEVICE float erf(float x) { return ::erff(x); }
MINIFUSE_DEVICE float tanh(float x) { return ::tanhf(x); }
// 1 / x of a normal number, to the last place or its neighbour. (An IEEE division has a slow path,
// across which registers spill.)
MINIFUSE_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MINIFUSE_DEVICE float sqrt(float x) { return __fsqrt_rn(x); }

}  // namespace minifuse::cuda::ptx

#endif
