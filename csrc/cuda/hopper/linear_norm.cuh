// y [M, H] = LayerNorm(x W^T + bias + residual) on sm_90a, H <= 384: a block owns 128 whole rows. The
// residual arrives while the product is computed.
//
//   shared: residual [128, H] in boxes; the ring of boxes.cuh; an arrival. At H = 384 96 + 128 KB.
#pragma once

#include "cuda/hopper/box_rows.cuh"
#include "cuda/kernels/layernorm.cuh"

namespace minifuse::cuda {

// For hidden sizes up to 16 kPartTiles.
template <int kPartTilesValue>
struct HopperLinearNormShape : BoxShape<kPartTilesValue, 2, 2> {
  using Ring = BoxShape<kPartTilesValue, 2, 2>;
  static constexpr int kRing = Ring::kColumns / kBoxColumns * kRowsBoxBytes;
  static constexpr int kArrival = kRing + Ring::kSharedBytes;
  static constexpr int kSharedBytes = kArrival + 8;
};

template <typename T, int kPartTiles>
MINIFUSE_KERNEL(HopperLinearNormShape<kPartTiles>::kThreads)
hopper_linear_residual_layer_norm_kernel(const MINIFUSE_GRID_CONSTANT HopperLinearNormParams p) {
  using Shape = HopperLinearNormShape<kPartTiles>;
  static_assert(kNormSharedBytes<Shape> <= Shape::Ring::kSharedBytes);
  const LinearParams& linear = p.op.linear;
  const int first_row = ptx::block_index() * Shape::kRows;
  const BoxRows<T> rows{ptx::shared_memory()};
  std::byte* ring = ptx::shared_memory() + Shape::kRing;
  auto* arrival = reinterpret_cast<uint64_t*>(ptx::shared_memory() + Shape::kArrival);

  if (ptx::thread_index() == 0) ptx::make_arrival(arrival, 1);
  const auto fetch_residual = [&] {  // by one thread, behind the first boxes of the product
    const int num_boxes = (linear.N + kBoxColumns - 1) / kBoxColumns;
    ptx::arrive_expecting(arrival, num_boxes * kRowsBoxBytes);
    for (int box = 0; box < num_boxes; ++box)
      ptx::copy_box(rows.boxes + box * kRowsBoxBytes, p.residual, box * kBoxColumns, first_row,
                    arrival);
  };
  float acc[1][Shape::kN][4];
  multiply_boxes<typename Shape::Ring>(T{}, acc, p.x, first_row, p.weight, 0, linear.K, ring,
                                       fetch_residual);
  ptx::wait_for_arrival(arrival, 0);
  residual_layer_norm<Shape>(acc, linear.bias, p.op.norm, linear.N, rows, ring);
  ptx::barrier();  // y is there
  rows.template copy_out<Shape::kThreads>(linear.y, linear.ldy, first_row, linear.M, linear.N);
}

}  // namespace minifuse::cuda
