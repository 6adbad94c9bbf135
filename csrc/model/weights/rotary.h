// The angles of rotary positions (Su et al. 2021), as cosines and sines: a table that every machine
// computes to the same bits.
#pragma once

#include <cstdint>

#include "common/buffer.h"

namespace minifuse {

// Returns [num_positions, head_dim]: of position i, the cosines of the angles i * theta^(-2 d /
// head_dim) / scale for d = 0 .. head_dim / 2 - 1, then their sines. Frequencies and angles are
// rounded to float32, as PyTorch has them.
Buffer rotary_angles(double theta, double scale, int64_t num_positions, int64_t head_dim);

}  // namespace minifuse
