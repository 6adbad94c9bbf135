// Every instruction that a CUDA kernel uses beyond plain C++, each in two forms: the device's, and
// one that runs on a CPU (tests/cuda_emulator), where the tests check addresses, races and fragments. Kernels
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

// Elements that one thread loads or stores at a time.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

}  // namespace minifuse::cuda

#if !defined(__CUDACC__)
#include "cuda_emulator/instructions.h"
#else

#include <cuda.h>

#define MINIFUSE_DEVICE __device__ __forceinline__
// A kernel of so many threads a block. One block an SM is all that is asked of the compiler: left to
// itself it spills a few registers to make room for another.
#define MINIFUSE_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
// A parameter whose address a kernel takes: left where the launch put it.
#define MINIFUSE_GRID_CONSTANT __grid_constant__

namespace minifuse::cuda::ptx {

// ---- who I am --------------------------------------------------------------------------------

MINIFUSE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MINIFUSE_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
MINIFUSE_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % 32); }
MINIFUSE_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / 32); }

// ---- memory ----------------------------------------------------------------------------------

// The block's dynamic shared memory, at a multiple of 1,024 bytes.
MINIFUSE_DEVICE std::byte* shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes[];
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

// ---- sm_90a: the warpgroup, the tensor memory accelerator and their barriers ------------------
//
// A box of 64 or 32 elements of 16 bits lies in shared memory in rows of 128 or 64 bytes, eight of which
// are an atom; of 128 bytes the 16-byte piece c of row r is at place c ^ (r % 8), of 64 at
// c ^ (r / 2 % 4) (PTX ISA, "Strides" of wgmma: 128-byte and 64-byte swizzle). copy_box() writes boxes
// so, multiply_warpgroup_*() read them so.

// Description of the matrix that boxes are copied from, made by the host (hopper/tensor_map.cuh).
using TensorMap = CUtensorMap;

// A barrier in shared memory whose phases end when `count` threads have arrived and all bytes that
// they announced have landed (PTX ISA, mbarrier). Made by one thread; the others after a barrier().
MINIFUSE_DEVICE void make_arrival(uint64_t* arrival, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrival)), "r"(count)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
MINIFUSE_DEVICE void arrive_expecting(uint64_t* arrival, int num_bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)),
      "r"(num_bytes)
      : "memory");
}
// Waits for the end of the phase of this parity, the first being 0.
MINIFUSE_DEVICE void wait_for_arrival(uint64_t* arrival, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(arrival)),
      "r"(parity)
      : "memory");
}
// Starts the copy of the map's box that begins at a column and row of the matrix; what lies outside
// becomes zeros. The arrival is told of all the box's bytes (PTX ISA, cp.async.bulk.tensor).
MINIFUSE_DEVICE void copy_box(void* shared, const TensorMap& map, int column, int row,
                              uint64_t* arrival) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(arrival)), "r"(column), "r"(row)
      : "memory");
}

// Descriptor of a box in shared memory, K-major with the swizzle above (PTX ISA, "Matrix Descriptor
// Format"): the address, the bytes from atom to atom and the kind of swizzle. Adding kBoxStep goes on
// by 16 elements of K.
using BoxAddress = uint64_t;
inline constexpr BoxAddress kBoxStep = 32 >> 4;
template <int kRowBytes>
MINIFUSE_DEVICE BoxAddress box_address(const void* shared) {
  static_assert(kRowBytes == 128 || kRowBytes == 64);
  constexpr uint64_t kAtomBytes = 8 * kRowBytes, kSwizzle = kRowBytes == 128 ? 1 : 2;
  return (shared_address(shared) & 0x3ffff) >> 4 | (kAtomBytes >> 4) << 32 | kSwizzle << 62;
}

// Before the first multiplication, and where registers of one were touched since.
MINIFUSE_DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
MINIFUSE_DEVICE void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending of the committed groups are under way.
template <int kPending>
MINIFUSE_DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to the operands of a product across this point: it does
// not know of asynchronous products.
template <int kTiles>
MINIFUSE_DEVICE void hold(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}
template <int kSteps>
MINIFUSE_DEVICE void hold(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int n = 0; n < kSteps; ++n)
    asm volatile("" : "+r"(a[n][0]), "+r"(a[n][1]), "+r"(a[n][2]), "+r"(a[n][3])::"memory");
}

// Starts d [64, 8 kCount] = a [64, 16] b [8 kCount, 16]^T (+ d), tiles kFirst.. of d, by the four warps
// of a warpgroup: warp w has rows 16 w.., laid out as an mma's d, and of `a`, where it comes from
// registers, as an mma's a (PTX ISA, "Register Fragments" of wgmma). d and a must not be touched before the wait.
// clang-format off
#define MINIFUSE_FOUR(d, n) "+f"((d)[n][0]), "+f"((d)[n][1]), "+f"((d)[n][2]), "+f"((d)[n][3])
#define MINIFUSE_TILES_4(d) \
  MINIFUSE_FOUR(d, kFirst + 0), MINIFUSE_FOUR(d, kFirst + 1), MINIFUSE_FOUR(d, kFirst + 2), \
  MINIFUSE_FOUR(d, kFirst + 3)
#define MINIFUSE_TILES_8(d) \
  MINIFUSE_FOUR(d, kFirst + 0), MINIFUSE_FOUR(d, kFirst + 1), MINIFUSE_FOUR(d, kFirst + 2), MINIFUSE_FOUR(d, kFirst + 3), \
  MINIFUSE_FOUR(d, kFirst + 4), MINIFUSE_FOUR(d, kFirst + 5), MINIFUSE_FOUR(d, kFirst + 6), MINIFUSE_FOUR(d, kFirst + 7)
#define MINIFUSE_TILES_24(d) \
  MINIFUSE_TILES_8(d), \
  MINIFUSE_FOUR(d, kFirst + 8), MINIFUSE_FOUR(d, kFirst + 9), MINIFUSE_FOUR(d, kFirst + 10), MINIFUSE_FOUR(d, kFirst + 11), \
  MINIFUSE_FOUR(d, kFirst + 12), MINIFUSE_FOUR(d, kFirst + 13), MINIFUSE_FOUR(d, kFirst + 14), MINIFUSE_FOUR(d, kFirst + 15), \
  MINIFUSE_FOUR(d, kFirst + 16), MINIFUSE_FOUR(d, kFirst + 17), MINIFUSE_FOUR(d, kFirst + 18), MINIFUSE_FOUR(d, kFirst + 19), \
  MINIFUSE_FOUR(d, kFirst + 20), MINIFUSE_FOUR(d, kFirst + 21), MINIFUSE_FOUR(d, kFirst + 22), MINIFUSE_FOUR(d, kFirst + 23)
#define MINIFUSE_REGISTERS_16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define MINIFUSE_REGISTERS_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MINIFUSE_REGISTERS_96 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, " \
  "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, " \
  "%87, %88, %89, %90, %91, %92, %93, %94, %95"
// kCount tiles of 8 columns; the operands after them: a, b, and whether d is added to.
#define MINIFUSE_WGMMA(type, columns, registers, tiles, a0, b0, add) \
  template <int kFirst, int kTiles> \
  MINIFUSE_DEVICE void multiply_warpgroup_##columns(type, float (&d)[kTiles][4], BoxAddress a, \
                                                    BoxAddress b, bool adds) { \
    asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" add ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." MINIFUSE_NAME_##type "." \
        MINIFUSE_NAME_##type " {" registers "}, %" a0 ", %" b0 ", p, 1, 1, 0, 0;\n}" \
        : tiles(d) : "l"(a), "l"(b), "r"(static_cast<int>(adds))); \
  }
#define MINIFUSE_WGMMA_REGISTERS(type, columns, registers, tiles, a0, a1, a2, a3, b0, add) \
  template <int kFirst, int kTiles> \
  MINIFUSE_DEVICE void multiply_warpgroup_##columns(type, float (&d)[kTiles][4], \
                                                    const uint32_t (&a)[4], BoxAddress b, \
                                                    bool adds) { \
    asm volatile( \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %" add ", 0;\n" \
        "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." MINIFUSE_NAME_##type "." \
        MINIFUSE_NAME_##type " {" registers "}, {%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b0 \
        ", p, 1, 1, 0;\n}" \
        : tiles(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), \
                     "r"(static_cast<int>(adds))); \
  }
#define MINIFUSE_NAME_Bfloat16 "bf16"
#define MINIFUSE_NAME_Half "f16"
#define MINIFUSE_WGMMA_OF(type) \
  MINIFUSE_WGMMA(type, 32, MINIFUSE_REGISTERS_16, MINIFUSE_TILES_4, "16", "17", "18") \
  MINIFUSE_WGMMA(type, 64, MINIFUSE_REGISTERS_32, MINIFUSE_TILES_8, "32", "33", "34") \
  MINIFUSE_WGMMA(type, 192, MINIFUSE_REGISTERS_96, MINIFUSE_TILES_24, "96", "97", "98") \
  MINIFUSE_WGMMA_REGISTERS(type, 64, MINIFUSE_REGISTERS_32, MINIFUSE_TILES_8, "32", "33", "34", \
                           "35", "36", "37") \
  MINIFUSE_WGMMA_REGISTERS(type, 192, MINIFUSE_REGISTERS_96, MINIFUSE_TILES_24, "96", "97", "98", \
                           "99", "100", "101")
MINIFUSE_WGMMA_OF(Bfloat16)
MINIFUSE_WGMMA_OF(Half)
// clang-format on

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
// 2^x to two units in the last place; results below the normal range are zero.
MINIFUSE_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MINIFUSE_DEVICE float log(float x) { return ::logf(x); }
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
