// The table of an element type: every kernel instantiated, and the choice of the instance by the
// shape alone. A shape that no instance takes is refused by name.
#pragma once

#include "common/check.h"
#include "cuda/kernels/attention.cuh"
#include "cuda/kernels/embed.cuh"
#include "cuda/kernels/ffn.cuh"
#include "cuda/launch.cuh"
#include "cuda/kernels/linear.cuh"
#include "cuda/kernels/linear_norm.cuh"
#include "cuda/kernels/pool.cuh"

namespace minifuse::cuda {

inline int64_t blocks_of(int64_t total, int64_t size) { return (total + size - 1) / size; }

template <typename T>
struct Launcher {
  static constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
  // In float32 the accumulators of 512 columns would spill: fragments are split into two parts.
  static constexpr int kMaxFfnHidden = sizeof(T) == 4 ? 384 : 512;
  // In 16 bits LayerNorm sums the rows alike behind one matrix and behind the fused two.
  static constexpr int kMaxSplitHidden = sizeof(T) == 2 ? kMaxFfnHidden : 0;

  static void check_matrix(const char* name, const LinearParams& p) {
    check(p.K > 0 && p.K % kChunk == 0, name, ": K=", p.K, ", wanted a multiple of ", kChunk);
    check(p.N > 0 && p.N % 2 == 0, name, ": N=", p.N, ", wanted an even number");
  }

  static void embed_layer_norm(Stream stream, const EmbedParams& p) {
    launch(stream, {"embed_layer_norm", blocks_of(p.M, kRowNormWarps), 32 * kRowNormWarps, 0},
           embed_layer_norm_kernel<T>, p);
  }

  static void layer_norm(Stream stream, const RowNormParams& p) {
    check(p.H > 0 && p.H % 2 == 0, "layer_norm: H=", p.H, ", wanted an even number");
    launch(stream, {"layer_norm", blocks_of(p.M, kRowNormWarps), 32 * kRowNormWarps, 0},
           layer_norm_kernel<T>, p);
  }

  static void linear(Stream stream, const LinearParams& p) {
    check_matrix("linear", p);
    using Shape = LinearShape;
    launch(stream,
           {"linear", blocks_of(p.M, Shape::kRows) * blocks_of(p.N, Shape::kColumns),
            Shape::kThreads, Shape::kSharedBytes},
           linear_kernel<T>, p);
  }

  template <int kHeadDim>
  static void attention_of(Stream stream, const AttentionParams& p) {
    using Shape = AttentionShape<T, kHeadDim>;
    launch(stream,
           {"attention", p.num_tiles * blocks_of(p.num_heads, kAttentionWarps), Shape::kThreads,
            Shape::kSharedBytes},
           attention_kernel<T, kHeadDim>, p);
  }
  static void attention(Stream stream, const AttentionParams& p) {
    check(p.head_dim == 32 || p.head_dim == 64, "attention: head_dim=", p.head_dim,
          ", wanted 32 or 64");
    p.head_dim == 32 ? attention_of<32>(stream, p) : attention_of<64>(stream, p);
  }

  template <int kN>
  static void linear_norm_of(Stream stream, const LinearNormParams& p) {
    using Shape = LinearNormShape<kN>;
    launch(stream,
           {"linear_residual_layer_norm", blocks_of(p.linear.M, Shape::kRows), Shape::kThreads,
            kLinearNormSharedBytes<Shape>},
           linear_residual_layer_norm_kernel<T, kN>, p);
  }
  static void linear_residual_layer_norm(Stream stream, const LinearNormParams& p) {
    check_matrix("linear_residual_layer_norm", p.linear);
    const int N = p.linear.N;
    check(N <= kMaxHidden, "linear_residual_layer_norm: N=", N, ", wanted at most ", kMaxHidden);
    if (N <= 128) return linear_norm_of<2>(stream, p);
    if (N <= 384) return linear_norm_of<6>(stream, p);
    if (N <= 512) return linear_norm_of<8>(stream, p);
    if (N <= 768) return linear_norm_of<12>(stream, p);
    linear_norm_of<16>(stream, p);
  }

  template <int kN>
  static void ffn_of(Stream stream, const FfnParams& p) {
    using Shape = FfnShape<T, kN>;
    static_assert(kMaxSplitHidden == 0 ||
                  Shape::Second::kWarpColumns == LinearNormShape<kN>::kWarpColumns);
    launch(stream,
           {"ffn_residual_layer_norm", blocks_of(p.M, Shape::kRows), Shape::kThreads,
            Shape::kSharedBytes},
           ffn_residual_layer_norm_kernel<T, kN>, p);
  }
  static void check_ffn(const FfnParams& p) {
    constexpr int kF = 128 / static_cast<int>(sizeof(T));
    check(p.H > 0 && p.H % kChunk == 0, "ffn: H=", p.H, ", wanted a multiple of ", kChunk);
    check(p.F > 0 && p.F % kF == 0, "ffn: F=", p.F, ", wanted a multiple of ", kF);
    check(p.H <= kMaxFfnHidden, "ffn: H=", p.H, ", wanted at most ", kMaxFfnHidden);
  }
  static void ffn_residual_layer_norm(Stream stream, const FfnParams& p) {
    check_ffn(p);
    if (p.H <= 128) return ffn_of<2>(stream, p);
    if (p.H <= 384) return ffn_of<6>(stream, p);
    if constexpr (kMaxFfnHidden > 384) ffn_of<8>(stream, p);
  }

  static void pool(Stream stream, const PoolParams& p) {
    check(p.H > 0 && p.H % 2 == 0, "pool: H=", p.H, ", wanted an even number");
    check(!p.mask || p.pooling == Pooling::kMean, "pool: a mask goes with the mean only");
    launch(stream, {"pool", p.batch, kPoolThreads, 0}, pool_kernel<T>, p);
  }
};

template <typename T>
constexpr Kernels table_of(const char* element) {
  return {.element = element,
          .isa = "sm_80",
          .element_bytes = static_cast<int>(sizeof(T)),
          .max_ffn_hidden = Launcher<T>::kMaxFfnHidden,
          .max_split_hidden = Launcher<T>::kMaxSplitHidden,
          .embed_layer_norm = Launcher<T>::embed_layer_norm,
          .layer_norm = Launcher<T>::layer_norm,
          .linear = Launcher<T>::linear,
          .attention = Launcher<T>::attention,
          .linear_residual_layer_norm = Launcher<T>::linear_residual_layer_norm,
          .ffn_residual_layer_norm = Launcher<T>::ffn_residual_layer_norm,
          .pool = Launcher<T>::pool};
}

}  // namespace minifuse::cuda
