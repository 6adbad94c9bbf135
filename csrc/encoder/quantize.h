// Weights in fewer bits: rounding to bfloat16, and to 8 bits with a scale per output channel.
#pragma once

#include <cstdint>

namespace minifuse {

// The bits of the nearest bfloat16, ties to even; NaN stays NaN.
void to_bfloat16(const float* x, int64_t n, uint16_t* bits);

// SmoothQuant's division of labour between x and W (Xiao et al. 2023, alpha = 0.5), as what x[k] is
// multiplied with: 1 / s, s[k] = sqrt(max_input[k] / max_n |w[n][k]|), and W takes s. Channels that
// are zero on either side keep 1.
void smoothing_scales(const float* weight, int64_t ldw, int64_t N, int64_t K,
                      const float* max_input, float* input_scale);

// Of a weight's code, and of two neighbours' (k even, k + 1) sum: 255 times it fits 16 bits, so
// that vpmaddubsw never saturates (dot_avx2.h).
constexpr int kMaxWeightCode = 127, kMaxPairCode = 128;

// A group of one output channel: w[k] / input_scale[k] ~ scale code[k], and sum = scale sum_k
// code[k]. The scale is the one of several that has the least squared error. input_scale may be
// null: ones.
void quantize_channel(const float* w, const float* input_scale, int64_t K, int8_t* codes,
                      float* scale, float* sum);

}  // namespace minifuse
