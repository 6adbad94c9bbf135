// activation(x), element by element: as csrc/cpu/math.inl.h, with the device's erf and tanh.
#pragma once

#include "common/types.h"
#include "cuda/ptx.cuh"

namespace minifuse::cuda {

MINIFUSE_DEVICE float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:  // x/2 (1 + erf(x / sqrt 2))
      return 0.5f * x * (1.0f + ptx::erf(x * 0.70710678118654752f));
    case Activation::kGeluNew:  // x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
      return 0.5f * x *
             (1.0f + ptx::tanh(0.79788456080286536f * ptx::fma(0.044715f * x * x, x, x)));
    case Activation::kRelu:
      return x > 0.0f ? x : 0.0f;
    case Activation::kNone:
      break;
  }
  return x;
}

}  // namespace minifuse::cuda
