// y[i] = LayerNorm(word[ids[i]] + position[positions[i]]), token type 0 being part of position: a
// warp a row, by row_norm.cuh.
#pragma once

#include "cuda/kernels/row_norm.cuh"

namespace minifuse::cuda {

template <typename T>
MINIFUSE_KERNEL(32 * kRowNormWarps)
embed_layer_norm_kernel(const EmbedParams p) {
  const int row = ptx::block_index() * kRowNormWarps + ptx::warp_index();
  if (row >= p.M) return;
  const T* word = static_cast<const T*>(p.word) + int64_t{ptx::load(p.ids + row)} * p.H;
  const T* position =
      static_cast<const T*>(p.position) + int64_t{ptx::load(p.positions + row)} * p.H;
  normalize_row(word, position, p.gamma, p.beta, p.eps, p.H, static_cast<T*>(p.y) + row * p.ldy);
}

}  // namespace minifuse::cuda
