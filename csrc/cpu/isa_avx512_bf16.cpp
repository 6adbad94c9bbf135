// AVX-512 BF16: bfloat16's linear layers and attention only, the rest as AVX-512 VNNI.
//
// Code compiled for an instruction set must not run on a lower machine, so nothing leaves this file
// but one constant table: all else is in an anonymous namespace, no standard header but <cstddef>
// and <cstdint> (through types.h) is included, and nothing is initialised at load.
// tests/kernels/test_symbols.py reads the object.

#include <immintrin.h>

#include "common/kernels.h"

namespace minifuse::isa_avx512_bf16 {
namespace {
#include "cpu/vectors/vec_avx512.h"
#include "cpu/vectors/dot_avx512_bf16.h"

#include "cpu/bfloat16_kernels.inl.h"

constexpr LinearKernels kLinear = linear_kernels<Bfloat16Dot>("avx512_bf16");
}  // namespace

extern constinit const Extension kTable = {.bfloat16 = &kLinear,
                                           .attention_bfloat16 = attention_bfloat16};

}  // namespace minifuse::isa_avx512_bf16
