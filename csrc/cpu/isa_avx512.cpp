// AVX-512 F, VL, BW, DQ (x86-64-v4).
//
// Code compiled for an instruction set must not run on a lower machine, so nothing leaves this file
// but one constant table: all else is in an anonymous namespace, no standard header but <cstddef>
// and <cstdint> (through types.h) is included, and nothing is initialised at load.
// tests/kernels/test_symbols.py reads the object.

#include <immintrin.h>

#include "common/kernels.h"

namespace minifuse::isa_avx512 {
namespace {
#include "cpu/vectors/vec_avx512.h"
#include "cpu/vectors/dot_avx512.h"

#include "cpu/kernels.inl.h"
}  // namespace

extern constinit const Kernels kTable = filled_table("avx512");

}  // namespace minifuse::isa_avx512
