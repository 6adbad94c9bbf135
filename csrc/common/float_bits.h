// bfloat16 and float16 as bits: to nearest even, NaN kept, beyond the range infinity. Not for the
// kernels of an instruction set, which convert with its own instructions (float_formats.inl.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace minifuse {

static inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
static inline float float_of_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

static inline uint16_t to_bfloat16_bits(float x) {
  const uint32_t bits = bits_of(x);
  const bool is_nan =
      (bits & 0x7fffffffu) > 0x7f800000u;  // which becomes quiet, as processors do it
  return static_cast<uint16_t>((is_nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >>
                               16);
}
static inline float from_bfloat16_bits(uint16_t bits) {
  return float_of_bits(uint32_t{bits} << 16);
}

static inline uint16_t to_float16_bits(float x) {
  if (std::isnan(x)) return 0x7fff;
  const int sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(x));
  if (magnitude >= 65536.0) return static_cast<uint16_t>(sign | 0x7c00);
  const int exponent = magnitude == 0.0 ? -14 : std::max(std::ilogb(magnitude), -14);
  // In units of the last place; a carry runs into the exponent, as it should. Subnormals have
  // fewer than 1024 units.
  const auto units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign | (units + (exponent + 14) * 1024));
}
static inline float from_float16_bits(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(exponent ? 1024 + fraction : fraction),
                           std::max(exponent, 1) - 25);
}

}  // namespace minifuse
