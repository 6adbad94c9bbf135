#include "linear/packed_linear.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "linear/quantize.h"

namespace minifuse {

PackedLinear::PackedLinear(const MatrixFormat& format, int64_t N, int64_t K)
    : format(&format),
      N(N),
      K(K),
      num_panels((N + format.panel_columns - 1) / format.panel_columns),
      weight(num_panels * format.panel_bytes(K)) {
  if (format.weight_type != WeightType::kInt8) return;
  weight_scale = Buffer(int8_groups(K) * num_panels * format.panel_columns);
  weight_sum = Buffer(weight_scale.size());
}

void PackedLinear::pack(const float* source, int64_t ldw, int64_t begin, int64_t end) {
  const int64_t columns = format->panel_columns;
  std::vector<uint16_t> halves;
  std::vector<int8_t> codes;
  std::vector<float> scale(static_cast<size_t>(int8_groups(K) * columns));
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * columns, rows = std::min(columns, N - first);
    const float* from = source + first * ldw;
    std::byte* to = weight.data() + panel * format->panel_bytes(K);
    switch (format->weight_type) {
      case WeightType::kFloat32:
        format->pack_panel(from, ldw, rows, K, to);
        break;
      case WeightType::kBfloat16:
        halves.resize(static_cast<size_t>(rows * K));
        for (int64_t i = 0; i < rows; ++i) to_bfloat16(from + i * ldw, K, halves.data() + i * K);
        format->pack_panel(halves.data(), K, rows, K, to);
        break;
      case WeightType::kInt8:
        codes.resize(static_cast<size_t>(rows * K));
        quantize_rows(from, ldw, rows, K, nullptr, nullptr, codes.data(), scale.data(), columns);
        pack_panel_codes(panel, codes.data(), scale.data(), columns);
        break;
    }
  }
}

void PackedLinear::pack_codes(const int8_t* codes, const float* scale, const float* channels) {
  if (channels) {
    input_scale = Buffer(K);
    std::copy(channels, channels + K, input_scale.data());
  }
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const int64_t first = panel * format->panel_columns;
    pack_panel_codes(panel, codes + first * K, scale + first, N);
  }
}

// codes [rows of the panel, K], scale [groups, ldscale]. The sums that correct for x's zero points
// are made here: a code is an integer, so they are the same whoever adds.
void PackedLinear::pack_panel_codes(int64_t panel, const int8_t* codes, const float* scale,
                                    int64_t ldscale) {
  const int64_t columns = format->panel_columns, first = panel * columns;
  const int64_t rows = std::min(columns, N - first);
  for (int64_t group = 0; group < int8_groups(K); ++group) {
    const int64_t k = group * kInt8Group, end = std::min(K, k + kInt8Group);
    float* scales = weight_scale.data() + group * num_panels * columns + first;
    float* sums = weight_sum.data() + group * num_panels * columns + first;
    for (int64_t i = 0; i < columns; ++i) {
      const int8_t* row = codes + i * K;
      scales[i] = i < rows ? scale[group * ldscale + i] : 0.0f;
      const int sum = i < rows ? std::accumulate(row + k, row + end, 0) : 0;
      sums[i] = scales[i] * static_cast<float>(sum);
    }
  }
  format->pack_panel(codes, K, rows, K, weight.data() + panel * format->panel_bytes(K));
}

LinearParams PackedLinear::params(const float* x, int64_t ldx, float* y, int64_t ldy, int64_t M,
                                  Activation activation) const {
  return {.x = x,
          .ldx = ldx,
          .packed_weight = weight.data(),
          .bias = bias.data(),
          .y = y,
          .ldy = ldy,
          .M = M,
          .N = N,
          .K = K,
          .panel_begin = 0,
          .panel_end = num_panels,
          .activation = activation,
          .weight_scale = weight_scale.data(),
          .weight_sum = weight_sum.data(),
          .input_scale = input_scale.data()};
}

}  // namespace minifuse
