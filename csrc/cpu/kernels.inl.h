// Everything that an instruction set's table holds, on the vectors of its vec_*.h and the integer
// steps of its dot_*.h. No include guards: each isa_*.cpp includes it once, in a namespace of its
// own.

#include "cpu/int8_kernels.inl.h"

#include "cpu/linear/float_formats.inl.h"
#include "cpu/attention/dropout.inl.h"
#include "cpu/attention/attention_training.inl.h"
#include "cpu/rows/embed.inl.h"
#include "cpu/rows/pool.inl.h"
#include "cpu/rows/rotary.inl.h"
#include "cpu/search/search_floats.inl.h"

constexpr Kernels filled_table(const char* isa) {
  return {
      .float32 = linear_kernels<Float32>(isa),
      .bfloat16 = linear_kernels<Bfloat16>(isa),
      .int8 = linear_kernels<Int8>(isa),
      .layer_norm = layer_norm,
      .attention = attention,
      .attention_bfloat16 = attention,
      .attention_int16 = attention_int16,
      .embed_layer_norm = embed_layer_norm,
      .rotate = rotate,
      .gate = gate,
      .pool = pool,
      .l2_normalize = l2_normalize,
      .search_float32 = search_float32,
      .search_bfloat16 = search_bfloat16,
      .search_int8 = search_int8,
      .search_int8_format = linear_kernels<Int8>(isa).format,
      .quantize_vectors = quantize_vectors,
      .attention_forward = attention_forward,
      .attention_backward = attention_backward,
      .dropout = dropout,
      .exp = exp_array,
      .erf = erf_array,
      .activate = activate_array,
  };
}
