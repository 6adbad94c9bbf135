// AVX-VNNI (256 bits): int8 only, the rest as AVX2.
//
// Code compiled for an instruction set must not run on a lower machine, so nothing leaves this file
// but one constant table: all else is in an anonymous namespace, no standard header but <cstddef>
// and <cstdint> (through types.h) is included, and nothing is initialised at load.
// tests/kernels/test_symbols.py reads the object.

#include <immintrin.h>

#include "common/kernels.h"

namespace minifuse::isa_avx2_vnni {
namespace {
#include "cpu/vectors/vec_avx2.h"
#include "cpu/vectors/dot_avx2_vnni.h"

#include "cpu/int8_kernels.inl.h"

constexpr LinearKernels kLinear = linear_kernels<Int8>("avx2_vnni");
}  // namespace

extern constinit const Extension kTable = {.int8 = &kLinear,
                                           .attention_int16 = attention_int16,
                                           .search_int8 = search_int8,
                                           .search_int8_format = &kLinear.format};

}  // namespace minifuse::isa_avx2_vnni
