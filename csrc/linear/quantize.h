// Weights in fewer bits: rounding to bfloat16, and to 8 bits with a scale per output channel.
#pragma once

#include <cstdint>

#include "common/buffer.h"

namespace minifuse {

// The bits of the nearest bfloat16, ties to even; NaN stays NaN.
void to_bfloat16(const float* x, int64_t n, uint16_t* bits);

// SmoothQuant's division of labour between x and W (Xiao et al. 2023, alpha = 0.5), as what x[k] is
// multiplied with: 1 / s, s[k] = sqrt(max_input[k] / max_n |w[n][k]|), and W takes s. Channels that
// are zero on either side keep 1.
void smoothing_scales(const float* weight, int64_t ldw, int64_t N, int64_t K,
                      const float* max_input, float* input_scale);

// Limits of a weight's code, and of the sum of two neighbours (k even, k + 1): 255 times the sum
// fits 16 bits, so that vpmaddubsw never saturates (dot_avx2.h).
constexpr int kMaxWeightCode = 127, kMaxPairCode = 128;

// Later codes compensate for the error of earlier ones (GPTQ, Frantar et al. 2023). The error to
// minimise is that of y = x w: with r = w - scale codes and H the second moments of x, it is
// r^T H r = |L^T r|^2 in squared mean, H = L L^T. The codes of a group are found from its last to
// its first, each one making its entry of L^T r as small as it can: with the errors r[j], j > k,
// known, code k stands for
//
//   w[k] + sum_{j > k} r[j] feedback[j][k],   feedback[j][k] = L[j][k] / L[k][k].
//
// moments and feedback are [groups, kInt8Group, kInt8Group], zeros past K; moments[g][i][j] is the
// mean of x[i] x[j] over sample text, before x takes input_scale. A diagonal as large as the mean
// of H's is added: a sample knows H only roughly. Zeros where moments say nothing of x.
void rounding_feedback(const float* moments, const float* input_scale, int64_t K, int64_t group,
                       float* feedback);

// Rows of a weight [num_rows, K], ldw apart, in 8 bits: w[n][k] / input_scale[k] ~ scale[g][n]
// codes[n][k] for k in group g; each scale is the one of several with which the nearest codes have
// the least squared error. input_scale may be null: ones; and feedback: each code is the nearest.
// codes lie K apart, scales ldscale.
void quantize_rows(const float* weight, int64_t ldw, int64_t num_rows, int64_t K,
                   const float* input_scale, const float* feedback, int8_t* codes, float* scale,
                   int64_t ldscale);

// Returns whether every code is within the two limits above, as those of quantize_rows are.
bool are_weight_codes(const int8_t* codes, int64_t num_rows, int64_t K);

}  // namespace minifuse
