// The table of sm_90a: the three GEMM-shaped ops by wgmma and TMA where their shapes fit, everything
// else as in table.cuh. Of float32 there is none: wgmma reads TF32 from shared memory, where nobody
// has split it.
#pragma once

#include "cuda/hopper/ffn.cuh"
#include "cuda/hopper/linear.cuh"
#include "cuda/hopper/linear_norm.cuh"
#include "cuda/hopper/tensor_map.cuh"
#include "cuda/table.cuh"

namespace minifuse::cuda {

inline constexpr int kHopperSharedBytes = 227 * 1024;
inline constexpr int kHopperMaxHidden = 384;  // of what LayerNorm follows

// base(): the table of table.cuh, whose kernels are compiled elsewhere.
template <typename T, const Kernels& (*base)()>
struct HopperLauncher {
  static ptx::TensorMap map_of_x(const void* x, int64_t ldx, int M, int K) {
    // The stride of a single row means nothing, and may be one that a map cannot have.
    return make_tensor_map(T{}, x, M, K, M == 1 ? K : ldx, 128);
  }
  template <typename Shape>
  static ptx::TensorMap map_of_weight(const void* weight, int N, int K) {
    return make_tensor_map(T{}, weight, N, K, K, Shape::kPartRows);
  }

  static void linear(Stream stream, const LinearParams& p) {
    using Shape = HopperLinearShape;
    Launcher<T>::check_matrix("linear", p);
    if (p.M == 0) return;
    launch(stream,
           {"linear, sm_90a", blocks_of(p.M, Shape::kRows) * blocks_of(p.N, Shape::kColumns),
            Shape::kThreads, Shape::kSharedBytes, kHopperSharedBytes},
           hopper_linear_kernel<T>,
           HopperLinearParams{map_of_x(p.x, p.ldx, p.M, p.K),
                              map_of_weight<Shape>(p.weight, p.N, p.K), p});
  }

  template <int kPartTiles>
  static void linear_norm_of(Stream stream, const LinearNormParams& p) {
    using Shape = HopperLinearNormShape<kPartTiles>;
    const LinearParams& linear = p.linear;
    launch(stream,
           {"linear_residual_layer_norm, sm_90a", blocks_of(linear.M, Shape::kRows),
            Shape::kThreads, Shape::kSharedBytes, kHopperSharedBytes},
           hopper_linear_residual_layer_norm_kernel<T, kPartTiles>,
           HopperLinearNormParams{map_of_x(linear.x, linear.ldx, linear.M, linear.K),
                                  map_of_weight<Shape>(linear.weight, linear.N, linear.K),
                                  map_of_x(p.norm.residual, p.norm.ldr, linear.M, linear.N), p});
  }
  static void linear_residual_layer_norm(Stream stream, const LinearNormParams& p) {
    Launcher<T>::check_matrix("linear_residual_layer_norm", p.linear);
    // Rows of the residual and of y, too, are moved in pieces of 16 bytes.
    if (p.linear.N > kHopperMaxHidden || p.linear.N % 8 != 0)
      return base().linear_residual_layer_norm(stream, p);
    if (p.linear.M == 0) return;
    p.linear.N <= 128 ? linear_norm_of<8>(stream, p) : linear_norm_of<24>(stream, p);
  }

  template <int kPartTiles>
  static void ffn_of(Stream stream, const FfnParams& p) {
    using Shape = HopperFfnShape<kPartTiles>;
    launch(stream,
           {"ffn_residual_layer_norm, sm_90a", blocks_of(p.M, Shape::kRows), Shape::kThreads,
            Shape::kSharedBytes, kHopperSharedBytes},
           hopper_ffn_residual_layer_norm_kernel<T, kPartTiles>,
           HopperFfnParams{
               map_of_x(p.x, p.ldx, p.M, p.H), make_tensor_map(T{}, p.w1, p.F, p.H, p.H, Shape::kF),
               make_tensor_map(T{}, p.w2, p.H, p.F, p.F, Shape::kPartRows, Shape::kF), p});
  }
  static void ffn_residual_layer_norm(Stream stream, const FfnParams& p) {
    Launcher<T>::check_ffn(p);
    if (p.H > kHopperMaxHidden) return base().ffn_residual_layer_norm(stream, p);
    if (p.M == 0) return;
    p.H <= 128 ? ffn_of<8>(stream, p) : ffn_of<24>(stream, p);
  }
};

template <typename T, const Kernels& (*base)()>
Kernels hopper_table_of() {
  using Launches = HopperLauncher<T, base>;
  Kernels table = base();
  table.isa = "sm_90a";
  // For a wider one W1 would be multiplied by wgmma here and by mma.sync in the fused kernel.
  table.max_split_hidden = kHopperMaxHidden;
  table.linear = Launches::linear;
  table.linear_residual_layer_norm = Launches::linear_residual_layer_norm;
  table.ffn_residual_layer_norm = Launches::ffn_residual_layer_norm;
  return table;
}

}  // namespace minifuse::cuda
