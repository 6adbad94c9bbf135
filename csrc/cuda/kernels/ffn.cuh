// y [M, H] = LayerNorm(activation(x W1^T + b1) W2^T + b2 + residual), H <= 512: the intermediate
// [M, F] never leaves the SM. A block owns kRows rows; for kF columns of F at a time
//
//   h [kRows, kF] = activation(x W1[f]^T + b1[f])        registers, then shared memory
//   acc [kRows, H] += h W2[:, f]^T                       registers to the end
//
// while W2[:, f] arrives during the first product and W1[f + 1] during the second. Fusing moves a
// layer from 210 to 355 FLOP a byte of memory traffic (H = 384, bfloat16).
//
//   shared: x [kRows, kH]  W1[f] [kF, kH]  W2[:, f] [kH, kF]  h [kRows, kF], rows 16 bytes longer:
//   at H = 384 50 + 50 + 55 + 9 KB, at 512 67 + 33 + 41 + 5 KB of half as many columns of F: a block
//   an SM, whose shared memory has 163 KB on sm_80 and 227 KB on sm_90.
#pragma once

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/kernels/layernorm.cuh"
#include "cuda/kernels/tile.cuh"

namespace minifuse::cuda {

// For hidden sizes up to 64 kN. 16 bits: eight warps, 64 rows; float32, of which half as many fit:
// four warps, 32 rows.
template <typename T, int kN>
struct FfnShape {
  static constexpr bool kIsWide = sizeof(T) == 4;
  static constexpr int kSize = static_cast<int>(sizeof(T));
  static constexpr int kFBytes = kN <= 6 ? 128 : 64;
  static constexpr int kH = 64 * kN, kF = kFBytes / kSize;
  using First =
      std::conditional_t<kIsWide, TileShape<2, 2, 1, kF / 16>, TileShape<4, 2, 1, kF / 16>>;
  using Second = std::conditional_t<kIsWide, TileShape<1, 4, 2, 2 * kN>, TileShape<1, 8, 4, kN>>;
  static constexpr int kRows = Second::kRows, kThreads = Second::kThreads;
  static_assert(First::kRows == kRows && First::kThreads == kThreads);
  static_assert(First::kColumns == kF && Second::kColumns == kH);

  static constexpr int kWideStride = kH * kSize + kRowPadding;  // rows of x and W1[f]
  static constexpr int kNarrowStride = kF * kSize + kRowPadding;  // rows of W2[:, f] and h
  static constexpr int kW1 = kRows * kWideStride, kW2 = kW1 + kF * kWideStride;
  static constexpr int kHidden = kW2 + kH * kNarrowStride;
  static constexpr int kSharedBytes = kHidden + kRows * kNarrowStride;
  static_assert(kNormSharedBytes<Second> <= kSharedBytes);
};

template <typename T, int kN>
MINIFUSE_KERNEL((FfnShape<T, kN>::kThreads))
ffn_residual_layer_norm_kernel(const FfnParams p) {
  using Shape = FfnShape<T, kN>;
  using First = typename Shape::First;
  using Second = typename Shape::Second;
  constexpr int kThreads = Shape::kThreads, kF = Shape::kF;
  constexpr int kWide = Shape::kWideStride, kNarrow = Shape::kNarrowStride;
  std::byte* x_tile = ptx::shared_memory();
  std::byte* w1_tile = x_tile + Shape::kW1;
  std::byte* w2_tile = x_tile + Shape::kW2;
  std::byte* hidden = x_tile + Shape::kHidden;
  const int thread = ptx::thread_index(), warp = ptx::warp_index();
  const int first_row = ptx::block_index() * Shape::kRows;
  const int row_bytes = p.H * Shape::kSize;
  const T* x = static_cast<const T*>(p.x);
  const T* w1 = static_cast<const T*>(p.w1);
  const T* w2 = static_cast<const T*>(p.w2);

  const auto fetch_w1 = [&](int f) {
    if (f < p.F)
      copy_rows<kThreads, kF>(w1_tile, kWide, Rows<T>{w1 + int64_t{f} * p.H, p.H, kF}, 0, row_bytes,
                              thread);
    ptx::copy_commit();
  };

  float acc[Second::kM][Second::kN][4];
#pragma unroll
  for (int m = 0; m < Second::kM; ++m)
#pragma unroll
    for (int n = 0; n < Second::kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[m][n][i] = 0.0f;

  copy_rows<kThreads, Shape::kRows>(
      x_tile, kWide, Rows<T>{x + first_row * p.ldx, p.ldx, p.M - first_row}, 0, row_bytes, thread);
  fetch_w1(0);
  for (int f = 0; f < p.F; f += kF) {
    ptx::copy_wait<0>();
    ptx::barrier();  // W1[f] is there; W2 and h have been used up
    copy_rows<kThreads, Shape::kH>(w2_tile, kNarrow, Rows<T>{w2, p.F, p.H}, f, Shape::kFBytes,
                                   thread);
    ptx::copy_commit();

    float h[First::kM][First::kN][4] = {};
    const std::byte* x_rows = x_tile + warp / First::kWarpColumns * First::kM * 16 * kWide;
    const std::byte* w1_rows = w1_tile + warp % First::kWarpColumns * First::kN * 8 * kWide;
    for (int byte = 0; byte < row_bytes; byte += kStepBytes)
      multiply_step<T>(h, x_rows + byte, kWide, w1_rows + byte, kWide);
    with_activation(p.activation, [&](auto activate) {
      for_each_pair<First>([&](int m, int n, int i, int row, int column) {
        const auto bias = ptx::load(reinterpret_cast<const Pair<float>*>(p.b1 + f + column));
        ptx::store(reinterpret_cast<Pair<T>*>(hidden + row * kNarrow + column * Shape::kSize),
                   to_pair<T>(activate(h[m][n][i] + bias.values[0]),
                              activate(h[m][n][i + 1] + bias.values[1])));
      });
    });

    ptx::copy_wait<0>();
    ptx::barrier();  // W2[:, f] and h are there; W1[f] has been used up
    fetch_w1(f + kF);
    const std::byte* hidden_rows = hidden + warp / Second::kWarpColumns * Second::kM * 16 * kNarrow;
    const std::byte* w2_rows = w2_tile + warp % Second::kWarpColumns * Second::kN * 8 * kNarrow;
#pragma unroll
    for (int byte = 0; byte < Shape::kFBytes; byte += kStepBytes)
      multiply_step<T>(acc, hidden_rows + byte, kNarrow, w2_rows + byte, kNarrow);
  }
  ptx::copy_wait<0>();
  ptx::barrier();  // shared memory may be used again
  residual_layer_norm<Second>(acc, p.b2, p.norm, p.H,
                              GlobalRows<T>(p.norm, p.y, p.ldy, first_row, p.M),
                              ptx::shared_memory());
}

}  // namespace minifuse::cuda
