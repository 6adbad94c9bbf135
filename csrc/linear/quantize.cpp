#include "linear/quantize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/float_bits.h"
#include "common/types.h"

namespace minifuse {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22; compilers vectorise it where rint is a
// call.
inline float round_to_integer(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  return (x + kRound) - kRound;
}

inline float nearest_code(float x) {
  constexpr float kMost = kMaxWeightCode;
  return std::min(std::max(round_to_integer(x), -kMost), kMost);
}

// Reduces both values of a pair by half of what their sum exceeds kMaxPairCode by.
inline void limit_pair(float& a, float& b) {
  constexpr float kMost = kMaxPairCode;
  const float sum = a + b;
  // Signed; zero for a pair of two signs, which one code alone cannot bring beyond the limit.
  const float excess = sum - std::min(std::max(sum, -kMost), kMost);
  const float half = round_to_integer(0.5f * excess);
  a -= half;
  b -= excess - half;
}

// The codes that stand for w[k] / scale, as floats. K is even.
void round_codes(const float* w, int64_t K, float scale, float* codes) {
  const float inverse = 1.0f / scale;
  for (int64_t k = 0; k < K; k += 2) {
    float a = nearest_code(w[k] * inverse), b = nearest_code(w[k + 1] * inverse);
    limit_pair(a, b);
    codes[k] = a;
    codes[k + 1] = b;
  }
}

// The same with the errors fed back, pair by pair from the last; `target` is K floats of scratch.
void round_codes_with_feedback(const float* w, int64_t K, float scale, const float* feedback,
                               float* target, float* codes) {
  const float inverse = 1.0f / scale;
  std::copy(w, w + K, target);
  for (int64_t k = K - 2; k >= 0; k -= 2) {
    const float *of_a = feedback + k * kInt8Group, *of_b = of_a + kInt8Group;
    float b = nearest_code(target[k + 1] * inverse);
    float a = nearest_code((target[k] + (w[k + 1] - scale * b) * of_b[k]) * inverse);
    limit_pair(a, b);
    const float error_a = w[k] - scale * a, error_b = w[k + 1] - scale * b;
    for (int64_t i = 0; i < k; ++i) target[i] += error_a * of_a[i] + error_b * of_b[i];
    codes[k] = a;
    codes[k + 1] = b;
  }
}

// Eight sums, so that the compiler may add in vectors.
float squared_error(const float* w, const float* codes, int64_t K, float scale) {
  float sum[8] = {};
  int64_t k = 0;
  for (; k + 8 <= K; k += 8)
    for (int i = 0; i < 8; ++i) {
      const float error = w[k + i] - scale * codes[k + i];
      sum[i] += error * error;
    }
  float total = 0.0f;
  for (; k < K; ++k) total += (w[k] - scale * codes[k]) * (w[k] - scale * codes[k]);
  for (const float one : sum) total += one;
  return total;
}

// One group of one row.
void quantize_group(const float* w, const float* input_scale, const float* feedback, int64_t K,
                    int8_t* codes, float* scale) {
  const int64_t even = (K + 1) / 2 * 2;
  std::vector<float> smoothed(static_cast<size_t>(even), 0.0f), rounded(smoothed), best(smoothed);
  float highest = 0.0f, poison = 0.0f;
  for (int64_t k = 0; k < K; ++k) {
    const float one = input_scale ? w[k] / input_scale[k] : w[k];
    smoothed[static_cast<size_t>(k)] = one;
    highest = std::max(highest, std::fabs(one));
    poison += one * 0.0f;
  }
  *scale = highest / kMaxWeightCode + poison;
  if (!std::isnormal(*scale)) {  // zeros; or not finite, and then the scale carries it on
    std::fill(codes, codes + K, int8_t{0});
    return;
  }
  // The largest magnitude becomes the code `most`: above 127 it is clipped, below, fewer pairs are,
  // and at 64 none is.
  float least = INFINITY;
  for (const float most : {132.0f, 120.0f, 108.0f, 98.0f, 90.0f, 83.0f, 77.0f, 70.0f, 64.0f}) {
    const float candidate = highest / most;
    round_codes(smoothed.data(), even, candidate, rounded.data());
    const float error = squared_error(smoothed.data(), rounded.data(), even, candidate);
    if (error < least) {
      least = error;
      *scale = candidate;
      rounded.swap(best);
    }
  }
  if (feedback)
    round_codes_with_feedback(smoothed.data(), even, *scale, feedback, rounded.data(), best.data());
  for (int64_t k = 0; k < K; ++k) codes[k] = static_cast<int8_t>(best[static_cast<size_t>(k)]);
}

// a [n, n] = L L^T: L in place of the lower triangle. False where a is not positive definite.
bool cholesky(double* a, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      const double *row = a + i * n, *other = a + j * n;
      double sum[4] = {};  // four, so that an addition need not wait for the last
      int64_t k = 0;
      for (; k + 4 <= j; k += 4)
        for (int u = 0; u < 4; ++u) sum[u] += row[k + u] * other[k + u];
      for (; k < j; ++k) sum[0] += row[k] * other[k];
      const double rest = row[j] - ((sum[0] + sum[1]) + (sum[2] + sum[3]));
      if (i == j && !(rest > 0.0)) return false;
      a[i * n + j] = i == j ? std::sqrt(rest) : rest / other[j];
    }
  return true;
}

}  // namespace

void to_bfloat16(const float* x, int64_t n, uint16_t* bits) {
  for (int64_t i = 0; i < n; ++i) bits[i] = to_bfloat16_bits(x[i]);
}

void smoothing_scales(const float* weight, int64_t ldw, int64_t N, int64_t K,
                      const float* max_input, float* input_scale) {
  std::vector<float> max_weight(static_cast<size_t>(K), 0.0f);
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k)
      max_weight[static_cast<size_t>(k)] =
          std::max(max_weight[static_cast<size_t>(k)], std::fabs(weight[n * ldw + k]));
  for (int64_t k = 0; k < K; ++k) {
    const float inverse = std::sqrt(max_weight[static_cast<size_t>(k)] / max_input[k]);
    input_scale[k] = std::isnormal(inverse) ? inverse : 1.0f;
  }
}

void rounding_feedback(const float* moments, const float* input_scale, int64_t K, int64_t group,
                       float* feedback) {
  constexpr int64_t kSize = kInt8Group * kInt8Group;
  const int64_t first = group * kInt8Group, n = std::min(kInt8Group, K - first);
  moments += group * kSize;
  feedback += group * kSize;
  input_scale += first;
  std::fill(feedback, feedback + kSize, 0.0f);
  std::vector<double> h(static_cast<size_t>(n * n));
  double trace = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j)
      h[static_cast<size_t>(i * n + j)] =
          static_cast<double>(moments[i * kInt8Group + j]) * input_scale[i] * input_scale[j];
    trace += h[static_cast<size_t>(i * n + i)];
  }
  if (!(trace > 0.0 && std::isfinite(trace))) return;  // nothing is known of x
  for (int64_t i = 0; i < n; ++i)
    h[static_cast<size_t>(i * n + i)] += trace / static_cast<double>(n);
  if (!cholesky(h.data(), n)) return;
  for (int64_t j = 0; j < n; ++j)
    for (int64_t k = 0; k < j; ++k)
      feedback[j * kInt8Group + k] =
          static_cast<float>(h[static_cast<size_t>(j * n + k)] / h[static_cast<size_t>(k * n + k)]);
}

void quantize_rows(const float* weight, int64_t ldw, int64_t num_rows, int64_t K,
                   const float* input_scale, const float* feedback, int8_t* codes, float* scale,
                   int64_t ldscale) {
  for (int64_t group = 0; group < int8_groups(K); ++group) {
    const int64_t k = group * kInt8Group, width = std::min(kInt8Group, K - k);
    for (int64_t n = 0; n < num_rows; ++n)
      quantize_group(weight + n * ldw + k, input_scale ? input_scale + k : nullptr,
                     feedback ? feedback + k * kInt8Group : nullptr, width, codes + n * K + k,
                     scale + group * ldscale + n);
  }
}

bool are_weight_codes(const int8_t* codes, int64_t num_rows, int64_t K) {
  int beyond = 0;
  for (int64_t n = 0; n < num_rows; ++n) {
    const int8_t* row = codes + n * K;
    for (int64_t k = 0; k < K; ++k) beyond |= row[k] < -kMaxWeightCode;
    for (int64_t k = 0; k + 1 < K; k += 2) {
      const int sum = row[k] + row[k + 1];
      beyond |= sum > kMaxPairCode || sum < -kMaxPairCode;
    }
  }
  return beyond == 0;
}

}  // namespace minifuse
