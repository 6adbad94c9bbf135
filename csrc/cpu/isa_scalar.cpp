// Any CPU: plain floats, the compiler's baseline (SSE2 on x86-64). The referee of the others.
//
// Code compiled for an instruction set must not run on a lower machine, so nothing leaves this file
// but one constant table: all else is in an anonymous namespace, no standard header but <cstddef>
// and <cstdint> (through types.h) is included, and nothing is initialised at load.
// tests/kernels/test_symbols.py reads the object.

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "common/kernels.h"

namespace minifuse::isa_scalar {
namespace {
#include "cpu/vectors/vec_scalar.h"
#include "cpu/vectors/dot_scalar.h"

#include "cpu/kernels.inl.h"
}  // namespace

extern constinit const Kernels kTable = filled_table("scalar");

}  // namespace minifuse::isa_scalar
