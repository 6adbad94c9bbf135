// The parameters of a linear layer, copied once into the order of its kernels. Weights are [out, in]
// as PyTorch stores them; a packed one is panels of NR outputs each.
#pragma once

#include <cstddef>

#include "common/buffer.h"
#include "common/kernels.h"

namespace minifuse {

// A linear layer's parameters as its kernels read them.
struct PackedLinear {
  const MatrixFormat* format = nullptr;
  int64_t N = 0, K = 0;
  int64_t num_panels = 0;
  BufferOf<std::byte> weight;  // [num_panels, format->panel_bytes(K)]
  Buffer bias;  // [N]; empty: none
  // int8 only (types.h); input_scale is empty where x is quantised as it is.
  Buffer weight_scale, weight_sum, input_scale;

  PackedLinear() = default;
  // Room for weight [N, K].
  PackedLinear(const MatrixFormat& format, int64_t N, int64_t K);

  // Copies weight [N, K], rows ldw apart, into the panels [begin, end), rounded to the format's
  // type.
  void pack(const float* weight, int64_t ldw, int64_t begin, int64_t end);

  // The same of a matrix that is in 8 bits already (quantize.h): codes [N, K], scale [groups, N],
  // input_scale [K] or null.
  void pack_codes(const int8_t* codes, const float* scale, const float* input_scale);

  // y [M, N] = activation(x W^T + b), all panels; without scratch memory, see with_scratch().
  LinearParams params(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t M,
                      Activation activation) const;

 private:
  void pack_panel_codes(int64_t panel, const int8_t* codes, const float* scale, int64_t ldscale);
};

// The same parameters with memory that the kernel may write to.
inline LinearParams with_scratch(LinearParams params, BufferOf<std::byte>& scratch) {
  params.scratch = scratch.data();
  params.scratch_bytes = scratch.size();
  return params;
}

}  // namespace minifuse
