// An instruction set `amx` whose tile registers are arrays: its int8 and bfloat16 kernels are compiled
// from the source of isa_amx.cpp and run on every machine; the rest is the scalar set's.
#pragma once

#include "cpu/dispatch.h"

namespace minifuse::test {

const InstructionSet& emulated_amx();

}  // namespace minifuse::test
