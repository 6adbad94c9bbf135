// Everything an instruction set's file is made of, in order; the vec header comes before it.

#define MINIFUSE_INLINE __attribute__((always_inline))

constexpr int64_t kPanelColumns = 16 * kTileVectors;
static_assert(kTileRows <= kMaxTileRows && kPanelColumns <= kMaxPanelColumns);

#include "cpu/math.inl.h"
#include "cpu/pack.inl.h"
#include "cpu/layernorm.inl.h"
#include "cpu/linear.inl.h"
#include "cpu/attention.inl.h"
#include "cpu/embed.inl.h"
#include "cpu/pool.inl.h"

constexpr Kernels filled_table(const char* name) {
  return {
      .name = name,
      .tile_rows = kTileRows,
      .panel_columns = kPanelColumns,
      .pack_weight = pack_weight,
      .linear = linear,
      .linear_residual_layer_norm = linear_residual_layer_norm,
      .layer_norm = layer_norm,
      .attention = attention,
      .embed_layer_norm = embed_layer_norm,
      .pool = pool,
      .l2_normalize = l2_normalize,
      .exp = exp_array,
      .erf = erf_array,
      .activate = activate_array,
      .fma_loop = fma_loop,
  };
}

constexpr bool is_complete(const Kernels& t) {
  return t.pack_weight && t.linear && t.linear_residual_layer_norm && t.layer_norm && t.attention &&
         t.embed_layer_norm && t.pool && t.l2_normalize && t.exp && t.erf && t.activate &&
         t.fma_loop;
}
