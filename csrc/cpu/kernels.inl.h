// Everything that an instruction set's table holds, on the vectors of its vec_*.h and the integer
// steps of its dot_*.h. No include guards: each isa_*.cpp includes it once, in a namespace of its
// own.

#include "cpu/int8_kernels.inl.h"

#include "cpu/float_formats.inl.h"
#include "cpu/attention.inl.h"
#include "cpu/embed.inl.h"
#include "cpu/pool.inl.h"

constexpr Kernels filled_table(const char* isa) {
  return {
      .float32 = linear_kernels<Float32>(isa),
      .bfloat16 = linear_kernels<Bfloat16>(isa),
      .int8 = linear_kernels<Int8>(isa),
      .layer_norm = layer_norm,
      .attention = attention,
      .embed_layer_norm = embed_layer_norm,
      .pool = pool,
      .l2_normalize = l2_normalize,
      .exp = exp_array,
      .erf = erf_array,
      .activate = activate_array,
  };
}

constexpr bool is_complete(const Kernels& t) {
  return t.layer_norm && t.attention && t.embed_layer_norm && t.pool && t.l2_normalize && t.exp &&
         t.erf && t.activate;
}
