// Parameters of a kernel of sm_90a: the op's own, and the maps of its matrices for TMA.
#pragma once

#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace minifuse::cuda {

struct HopperLinearParams {
  ptx::TensorMap x, weight;
  LinearParams op;
};

struct HopperLinearNormParams {
  ptx::TensorMap x, weight, residual;
  LinearNormParams op;
};

struct HopperFfnParams {
  ptx::TensorMap x, w1, w2;
  FfnParams op;
};

}  // namespace minifuse::cuda
