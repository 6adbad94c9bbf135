// activation(x), element by element, as csrc/cpu/rows/math.inl.h. The choice is made once for a tile, not
// for each of its elements: an unrolled tile would hold every function as often as it has elements.
#pragma once

#include "common/types.h"
#include "cuda/ptx.cuh"

namespace minifuse::cuda {

// x/2 (1 + erf(x / sqrt 2)) = max(x, 0) - |x| Q(|x|), with Q(t) = 2^(-1 - t q(t)) the normal
// distribution's tail. q, of degree 7, was fitted so that the result errs by at most 4e-8; beyond
// t = 5.5 the exponent goes on falling.
struct Gelu {
  MINIFUSE_DEVICE float operator()(float x) const {
    const float t = x < 0.0f ? -x : x;
    float q = 1.9015893e-6f;
    q = ptx::fma(q, t, -2.8051229e-5f);
    q = ptx::fma(q, t, 1.3144578e-4f);
    q = ptx::fma(q, t, 2.7214237e-4f);
    q = ptx::fma(q, t, -7.2455136e-3f);
    q = ptx::fma(q, t, 5.2627679e-2f);
    q = ptx::fma(q, t, 4.5916212e-1f);
    q = ptx::fma(q, t, 1.1511110f);
    const float tail = ptx::exp2(ptx::fma(-t, q, -1.0f));
    return ptx::fma(-t, tail, x > 0.0f ? x : 0.0f);
  }
};

// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
struct GeluNew {
  MINIFUSE_DEVICE float operator()(float x) const {
    return 0.5f * x * (1.0f + ptx::tanh(0.79788456080286536f * ptx::fma(0.044715f * x * x, x, x)));
  }
};

struct Relu {
  MINIFUSE_DEVICE float operator()(float x) const { return x > 0.0f ? x : 0.0f; }
};

struct Identity {
  MINIFUSE_DEVICE float operator()(float x) const { return x; }
};

// Calls f with the function of that name.
template <typename F>
MINIFUSE_DEVICE void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::kGelu:
      return f(Gelu{});
    case Activation::kGeluNew:
      return f(GeluNew{});
    case Activation::kRelu:
      return f(Relu{});
    default:  // the others are of models that this device does not run
      return f(Identity{});
  }
}

}  // namespace minifuse::cuda
