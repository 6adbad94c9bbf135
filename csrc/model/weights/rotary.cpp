// The C library's sines differ in their last bits from machine to machine, so here are plain
// additions and multiplications in double precision, a billion times as exact as the float32 that is
// kept.

#include "model/weights/rotary.h"

#include <cmath>

namespace minifuse {
namespace {

struct CosSin {
  double cosine, sine;
};

// x from 0 to 2^20: a multiple of pi / 2 is taken off in two parts, the first of which has 33 bits, so
// that its products are exact (Cody and Waite 1980); then the series, whose next terms are below
// 1e-17 for |r| <= pi / 4.
CosSin cos_sin(double x) {
  constexpr double kHigh = 1.57079632673412561417, kLow = 6.07710050650619224932e-11;
  constexpr double kInverse = 0.63661977236758134308;
  const double quarters = std::floor(x * kInverse + 0.5);
  const double r = (x - quarters * kHigh) - quarters * kLow, r2 = r * r;
  double cosine = 0, sine = 0;
  for (int n = 18; n >= 2; n -= 2) {
    cosine = (cosine + 1) * -r2 / (n * (n - 1));
    sine = (sine + 1) * -r2 / (n * (n + 1));
  }
  cosine += 1;
  sine = (sine + 1) * r;
  switch (static_cast<int64_t>(quarters) % 4) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

}  // namespace

Buffer rotary_angles(double theta, double scale, int64_t num_positions, int64_t head_dim) {
  Buffer table(num_positions * head_dim);
  const int64_t half = head_dim / 2;
  for (int64_t d = 0; d < half; ++d) {
    const float exponent = static_cast<float>(2 * d) / static_cast<float>(head_dim);
    const float frequency =
        1.0f / static_cast<float>(std::pow(theta, double{exponent})) / static_cast<float>(scale);
    for (int64_t i = 0; i < num_positions; ++i) {
      const CosSin turned = cos_sin(double{static_cast<float>(i) * frequency});
      table.data()[i * head_dim + d] = static_cast<float>(turned.cosine);
      table.data()[i * head_dim + half + d] = static_cast<float>(turned.sine);
    }
  }
  return table;
}

}  // namespace minifuse
