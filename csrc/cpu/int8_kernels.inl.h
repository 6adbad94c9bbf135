// The kernels on integers, with their base: those that an instruction set adds which multiplies and
// adds integers in one step. The vec_*.h and dot_*.h headers come before it.

#include "cpu/linear_kernels.inl.h"

#include "cpu/linear/int8.inl.h"
#include "cpu/attention/attention.inl.h"
#include "cpu/attention/attention_pairs.inl.h"
#include "cpu/attention/attention_int16.inl.h"
#include "cpu/search/search.inl.h"
#include "cpu/search/search_int8.inl.h"
