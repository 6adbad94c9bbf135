// y [M, H] = LayerNorm(activation(x W1^T + b1) W2^T + b2 + residual) on sm_90a, H <= 384: the plan of
// ffn.cuh with 128 rows a block. Each of two warpgroups has 64 of them; for 32 columns of F at a time
//
//   h [64, 32] = activation(x W1[f]^T + b1[f])     registers, packed into the next operand
//   acc [64, H] += h W2[:, f]^T                    registers to the end
//
// while the weights of the next columns arrive. (64 columns would not fit the registers beside acc.)
//
//   shared: x [128, H] in boxes; a ring of two stages: W1[f] [32, H] in boxes, W2[:, f] two boxes
//   [H / 2, 32]; arrivals. At H = 384 96 + 2 (24 + 24) KB.
#pragma once

#include "cuda/kernels/activation.cuh"
#include "cuda/hopper/box_rows.cuh"
#include "cuda/kernels/layernorm.cuh"

namespace minifuse::cuda {

// For hidden sizes up to 16 kPartTiles.
template <int kPartTilesValue>
struct HopperFfnShape : TileShape<8, 1, 1, 2 * kPartTilesValue> {
  static constexpr int kStages = 2, kRows = 128, kF = 32, kFTiles = kF / 8, kFBytes = 2 * kF;
  static constexpr int kPartTiles = kPartTilesValue, kH = 16 * kPartTiles;
  static constexpr int kXBoxBytes = kRowsBoxBytes, kW1BoxBytes = kF * kBoxRowBytes;
  static constexpr int kPartRows = kH / 2, kPartBytes = kPartRows * kFBytes;
  static constexpr int kMostBoxes = kH / kBoxColumns;
  static constexpr int kW2 = kMostBoxes * kW1BoxBytes;  // within a stage
  static constexpr int kStageBytes = kW2 + 2 * kPartBytes;
  static constexpr int kRing = kMostBoxes * kXBoxBytes;
  static constexpr int kArrivals = kRing + kStages * kStageBytes;
  static constexpr int kSharedBytes = kArrivals + (1 + kStages) * 8;
};

template <typename T, int kPartTiles>
MINIFUSE_KERNEL(HopperFfnShape<kPartTiles>::kThreads)
hopper_ffn_residual_layer_norm_kernel(const MINIFUSE_GRID_CONSTANT HopperFfnParams p) {
  using Shape = HopperFfnShape<kPartTiles>;
  static_assert(kNormSharedBytes<Shape> <= Shape::kStageBytes);
  constexpr int kSteps = Shape::kF / 16;
  const FfnParams& op = p.op;
  std::byte* x_boxes = ptx::shared_memory();
  std::byte* ring = x_boxes + Shape::kRing;
  auto* x_arrival = reinterpret_cast<uint64_t*>(x_boxes + Shape::kArrivals);
  uint64_t* arrivals = x_arrival + 1;  // of the ring
  const int first_row = ptx::block_index() * Shape::kRows;
  const int num_boxes = (op.H + kBoxColumns - 1) / kBoxColumns, num_chunks = op.F / Shape::kF;
  const bool is_leader = ptx::thread_index() == 0;

  const auto fetch = [&](int chunk) {  // by the leader
    if (chunk >= num_chunks) return;
    std::byte* stage = ring + chunk % Shape::kStages * Shape::kStageBytes;
    uint64_t* arrival = arrivals + chunk % Shape::kStages;
    ptx::arrive_expecting(arrival, num_boxes * Shape::kW1BoxBytes + 2 * Shape::kPartBytes);
    for (int box = 0; box < num_boxes; ++box)
      ptx::copy_box(stage + box * Shape::kW1BoxBytes, p.w1, box * kBoxColumns, chunk * Shape::kF,
                    arrival);
    for (int part = 0; part < 2; ++part)
      ptx::copy_box(stage + Shape::kW2 + part * Shape::kPartBytes, p.w2, chunk * Shape::kF,
                    part * Shape::kPartRows, arrival);
  };

  if (is_leader)
    for (int i = 0; i < 1 + Shape::kStages; ++i) ptx::make_arrival(x_arrival + i, 1);
  ptx::barrier();  // the arrivals are there
  if (is_leader) {
    ptx::arrive_expecting(x_arrival, num_boxes * Shape::kXBoxBytes);
    for (int box = 0; box < num_boxes; ++box)
      ptx::copy_box(x_boxes + box * Shape::kXBoxBytes, p.x, box * kBoxColumns, first_row,
                    x_arrival);
    for (int chunk = 0; chunk < Shape::kStages; ++chunk) fetch(chunk);
  }
  ptx::wait_for_arrival(x_arrival, 0);

  const std::byte* x_rows = x_boxes + ptx::warp_index() / 4 * 64 * kBoxRowBytes;
  float acc[1][Shape::kN][4];
  for (int chunk = 0; chunk < num_chunks; ++chunk) {
    const std::byte* w1_boxes = ring + chunk % Shape::kStages * Shape::kStageBytes;
    const std::byte* w2_boxes = w1_boxes + Shape::kW2;
    ptx::wait_for_arrival(arrivals + chunk % Shape::kStages, chunk / Shape::kStages % 2);
    float h[Shape::kFTiles][4];
    ptx::warpgroup_fence();
    for (int box = 0; box < num_boxes; ++box)
#pragma unroll
      for (int step = 0; step < kStepsPerBox; ++step) {
        const ptx::BoxAddress at = step * ptx::kBoxStep;
        multiply_step_of<0, Shape::kFTiles>(
            T{}, h, ptx::box_address<kBoxRowBytes>(x_rows + box * Shape::kXBoxBytes) + at,
            ptx::box_address<kBoxRowBytes>(w1_boxes + box * Shape::kW1BoxBytes) + at,
            box > 0 || step > 0);
      }
    ptx::warpgroup_commit();
    ptx::warpgroup_wait<0>();
    ptx::hold(h);

    // Two tiles of h, packed, are an operand of the next product.
    uint32_t a[kSteps][4];
    const float* b1 = op.b1 + chunk * Shape::kF + 2 * (ptx::lane_index() % 4);
    with_activation(op.activation, [&](auto activate) {
#pragma unroll
      for (int n = 0; n < Shape::kFTiles; ++n) {
        const auto bias = ptx::load(reinterpret_cast<const Pair<float>*>(b1 + 8 * n));
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[n / 2][2 * (n % 2) + half] = pack(T{}, activate(h[n][2 * half] + bias.values[0]),
                                              activate(h[n][2 * half + 1] + bias.values[1]));
      }
    });

    ptx::hold(a);
    ptx::warpgroup_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const ptx::BoxAddress at = step * ptx::kBoxStep;
      const bool adds = chunk > 0 || step > 0;
      multiply_step_of<0, kPartTiles>(T{}, acc[0], a[step],
                                      ptx::box_address<Shape::kFBytes>(w2_boxes) + at, adds);
      multiply_step_of<kPartTiles, kPartTiles>(
          T{}, acc[0], a[step], ptx::box_address<Shape::kFBytes>(w2_boxes + Shape::kPartBytes) + at,
          adds);
    }
    ptx::warpgroup_commit();
    ptx::warpgroup_wait<0>();
    ptx::hold(acc[0]);
    ptx::barrier();  // both warpgroups have used the stage up
    if (is_leader) fetch(chunk + Shape::kStages);  // into its place
  }
  const BoxRows<T> rows{x_boxes};  // the residual is x
  residual_layer_norm<Shape>(acc, op.b2, op.norm, op.H, rows, ring);
  ptx::barrier();  // y is there
  rows.template copy_out<Shape::kThreads>(op.y, op.ldy, first_row, op.M, op.H);
}

}  // namespace minifuse::cuda
