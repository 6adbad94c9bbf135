// What an instruction set adds that multiplies bfloat16 in pairs, and what it stands on. The
// vec_*.h and dot_*_bf16.h headers come before it.

#include "cpu/linear_kernels.inl.h"

#include "cpu/attention.inl.h"
#include "cpu/bfloat16_dot.inl.h"
#include "cpu/attention_bfloat16.inl.h"

constexpr Bfloat16Kernels bfloat16_kernels(const char* isa) {
  return {.linear = linear_kernels<Bfloat16Dot>(isa), .attention = attention_bfloat16};
}
