// acc [128, 8 kTiles] = A B^T for a block of two warpgroups, each 64 rows: boxes of 64 columns of A
// and B flow by TMA through a ring of shared memory into wgmma. Every element is one chain of matrix
// instructions over K, ascending, as in tile.cuh.
//
//   shared, a ring of kStages:  A box [128, 64]  B boxes [kPartRows, 64] x kParts;  kStages arrivals
#pragma once

#include "cuda/elements.cuh"
#include "cuda/hopper/params.h"
#include "cuda/kernels/tile.cuh"

namespace minifuse::cuda {

inline constexpr int kBoxColumns = 64, kBoxRowBytes = 128;  // of 16 bits each
inline constexpr int kStepsPerBox = 4;  // of 16 elements

// d += a b^T of one step, tiles kFirst.. of d, kCount of them.
template <int kFirst, int kCount, typename T, typename A, int kTiles>
MINIFUSE_DEVICE void multiply_step_of(T type, float (&d)[kTiles][4], const A& a, ptx::BoxAddress b,
                                      bool adds) {
  static_assert(kCount == 4 || kCount == 8 || kCount == 24);
  if constexpr (kCount == 4)
    ptx::multiply_warpgroup_32<kFirst>(type, d, a, b, adds);
  else if constexpr (kCount == 8)
    ptx::multiply_warpgroup_64<kFirst>(type, d, a, b, adds);
  else
    ptx::multiply_warpgroup_192<kFirst>(type, d, a, b, adds);
}

// The two warpgroups of a block own 64 rows each, and all columns: kParts wgmma of kPartTiles tiles.
template <int kPartTilesValue, int kPartsValue, int kStagesValue>
struct BoxShape : TileShape<8, 1, 1, kPartTilesValue * kPartsValue> {
  static constexpr int kPartTiles = kPartTilesValue, kParts = kPartsValue;
  static constexpr int kStages = kStagesValue;
  static constexpr int kRows = 128, kPartRows = 8 * kPartTiles;
  static constexpr int kABytes = kRows * kBoxRowBytes, kPartBytes = kPartRows * kBoxRowBytes;
  static constexpr int kStageBytes = kABytes + kParts * kPartBytes;
  static constexpr int kArrivals = kStages * kStageBytes;  // where they are
  static constexpr int kSharedBytes = kArrivals + kStages * 8;
};

// d (+)= a b^T over one box of K: 64 rows of A from `a` on, kParts boxes of B from `b` on.
template <typename Shape, typename T>
MINIFUSE_DEVICE void multiply_box(T type, float (&d)[Shape::kN][4], const std::byte* a,
                                  const std::byte* b, bool adds) {
#pragma unroll
  for (int step = 0; step < kStepsPerBox; ++step) {
    const ptx::BoxAddress at = step * ptx::kBoxStep;
    multiply_step_of<0, Shape::kPartTiles>(type, d, ptx::box_address<kBoxRowBytes>(a) + at,
                                           ptx::box_address<kBoxRowBytes>(b) + at,
                                           adds || step > 0);
    if constexpr (Shape::kParts == 2)
      multiply_step_of<Shape::kPartTiles, Shape::kPartTiles>(
          type, d, ptx::box_address<kBoxRowBytes>(a) + at,
          ptx::box_address<kBoxRowBytes>(b + Shape::kPartBytes) + at, adds || step > 0);
  }
}

// acc = A B^T over all of K: rows first_row.. of A, first_column.. of B. One thread calls
// fetch_more() when the first boxes are on their way.
template <typename Shape, typename T, typename F>
MINIFUSE_DEVICE void multiply_boxes(T type, float (&acc)[1][Shape::kN][4], const ptx::TensorMap& a,
                                    int first_row, const ptx::TensorMap& b, int first_column, int K,
                                    std::byte* shared, F fetch_more) {
  auto* arrivals = reinterpret_cast<uint64_t*>(shared + Shape::kArrivals);
  const int warpgroup = ptx::warp_index() / 4;
  const int num_boxes = (K + kBoxColumns - 1) / kBoxColumns;
  const bool is_leader = ptx::thread_index() == 0;

  const auto fetch = [&](int box) {  // by the leader
    std::byte* stage = shared + box % Shape::kStages * Shape::kStageBytes;
    uint64_t* arrival = arrivals + box % Shape::kStages;
    ptx::arrive_expecting(arrival, Shape::kStageBytes);
    ptx::copy_box(stage, a, box * kBoxColumns, first_row, arrival);
#pragma unroll
    for (int part = 0; part < Shape::kParts; ++part)
      ptx::copy_box(stage + Shape::kABytes + part * Shape::kPartBytes, b, box * kBoxColumns,
                    first_column + part * Shape::kPartRows, arrival);
  };

  if (is_leader)
    for (int stage = 0; stage < Shape::kStages; ++stage) ptx::make_arrival(arrivals + stage, 1);
  ptx::barrier();  // the arrivals are there
  if (is_leader) {
    for (int box = 0; box < Shape::kStages && box < num_boxes; ++box) fetch(box);
    fetch_more();
  }
  for (int box = 0; box < num_boxes; ++box) {
    const std::byte* stage = shared + box % Shape::kStages * Shape::kStageBytes;
    ptx::wait_for_arrival(arrivals + box % Shape::kStages, box / Shape::kStages % 2);
    ptx::warpgroup_fence();
    multiply_box<Shape>(type, acc[0], stage + warpgroup * 64 * kBoxRowBytes, stage + Shape::kABytes,
                        box > 0);
    ptx::warpgroup_commit();
    ptx::warpgroup_wait<1>();  // the box before has been used up by this warpgroup
    ptx::barrier();  // by both
    if (is_leader && box > 0 && box - 1 + Shape::kStages < num_boxes)
      fetch(box - 1 + Shape::kStages);  // into its place
  }
  ptx::warpgroup_wait<0>();
  ptx::hold(acc[0]);
  ptx::barrier();  // the ring may be used again
}

}  // namespace minifuse::cuda
