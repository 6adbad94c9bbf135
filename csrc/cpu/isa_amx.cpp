// AMX: int8's and bfloat16's linear layers on tile registers, the rest as AVX-512 VNNI.
//
// Code compiled for an instruction set must not run on a lower machine, so nothing leaves this file
// but one constant table: all else is in an anonymous namespace, no standard header but <cstddef>
// and <cstdint> (through types.h) is included, and nothing is initialised at load.
// tests/kernels/test_symbols.py reads the object.

#include <immintrin.h>

#include "common/kernels.h"

namespace minifuse::isa_amx {
namespace {
#include "cpu/vectors/vec_avx512.h"
#include "cpu/vectors/dot_avx512_vnni.h"
#include "cpu/vectors/dot_avx512_bf16.h"
#include "cpu/vectors/tiles_amx.h"

#include "cpu/linear_kernels.inl.h"

#include "cpu/linear/int8.inl.h"
#include "cpu/linear/bfloat16_dot.inl.h"
#include "cpu/linear/tiles.inl.h"

constexpr LinearKernels kInt8 = linear_kernels<Int8Tiles>("amx");
constexpr LinearKernels kBfloat16 = linear_kernels<Bfloat16Tiles>("amx");
}  // namespace

extern constinit const Extension kTable = {.bfloat16 = &kBfloat16, .int8 = &kInt8};

}  // namespace minifuse::isa_amx
