// The kernels that an instruction set adds which multiplies bfloat16 in pairs, with their base. The
// vec_*.h and dot_*_bf16.h headers come before it.

#include "cpu/linear_kernels.inl.h"

#include "cpu/attention/attention.inl.h"
#include "cpu/linear/bfloat16_dot.inl.h"
#include "cpu/attention/attention_pairs.inl.h"
#include "cpu/attention/attention_bfloat16.inl.h"
