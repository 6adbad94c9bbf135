// Two passes over tiles of rows, each a matrix product, a softmax in place and another product: rows
// of a against all of b give the sums and da; rows of b against all of a, the sums being known, give
// db. Every element of a gradient is one sum over all its terms in ascending order, so neither tiles
// nor threads change a bit.

#include "training/contrastive.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "linear/packed_linear.h"
#include "threads/items.h"

namespace minifuse {
namespace {

constexpr int64_t kTileRows = 48;

// x [rows, K] as the weight of a product over K, and x^T as that of a product over rows.
PackedLinear packed(const MatrixFormat& format, const float* x, int64_t rows, int64_t K) {
  PackedLinear weight(format, rows, K);
  weight.pack(x, K, 0, weight.num_panels);
  return weight;
}
PackedLinear packed_transposed(const MatrixFormat& format, const float* x, int64_t rows,
                               int64_t K) {
  std::vector<float> transposed(static_cast<size_t>(rows * K));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < K; ++k) transposed[static_cast<size_t>(k * rows + i)] = x[i * K + k];
  PackedLinear weight(format, K, rows);
  weight.pack(transposed.data(), rows, 0, weight.num_panels);
  return weight;
}

// For each tile of rows of x [rows, d]: s = x other^T, weigh(first row, count, s) turns it into
// weights, gradient [rows, d] += factor (s other). False where should_stop said true.
template <typename Weigh>
bool over_tiles(const InstructionSet& isa, const float* x, int64_t rows, int64_t d,
                const float* other, int64_t num_other, float factor, int num_threads,
                const ShouldStop& should_stop, Weigh weigh, float* gradient) {
  const LinearKernels& kernels = isa.kernels.float32;
  const PackedLinear scores = packed(kernels.format, other, num_other, d);
  const PackedLinear sums = packed_transposed(kernels.format, other, num_other, d);
  const int64_t num_tiles = (rows + kTileRows - 1) / kTileRows;
  const int threads =
      static_cast<int>(std::min<int64_t>(num_threads, std::max<int64_t>(1, num_tiles)));
  Items tiles(num_tiles, should_stop);
  return tiles.run(threads, [&](int member) {
    Buffer s(kTileRows * num_other), out(kTileRows * d);
    while (const std::optional<int64_t> tile = tiles.next(member)) {
      const int64_t first = *tile * kTileRows, count = std::min(kTileRows, rows - first);
      kernels.linear(
          scores.params(x + first * d, d, s.data(), num_other, count, Activation::kNone));
      weigh(first, count, s.data());
      kernels.linear(sums.params(s.data(), num_other, out.data(), d, count, Activation::kNone));
      for (int64_t i = 0; i < count * d; ++i) gradient[first * d + i] += factor * out.data()[i];
    }
  });
}

}  // namespace

std::optional<double> contrastive_loss(const InstructionSet& isa, const ContrastiveParams& p,
                                       int num_threads, const ShouldStop& should_stop, float* da,
                                       float* db) {
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  const auto is_masked = [&p](int64_t i, int64_t j) {
    return p.group_a && i != j && p.group_a[i] == p.group_b[j];
  };
  const Kernels& kernels = isa.kernels;
  // For each row of scores: its largest, one over its sum of exponentials, and p_ii - 1 from the
  // terms beside it, since the difference would keep no digit where p_ii is nearly 1.
  std::vector<float> largest(static_cast<size_t>(p.n)), inverse(largest.size());
  std::vector<float> right_term(largest.size());
  std::vector<double> loss(largest.size());

  const bool has_sums = over_tiles(
      isa, p.a, p.n, p.d, p.b, p.m, p.weight * p.scale, num_threads, should_stop,
      [&](int64_t first, int64_t count, float* s) {
        for (int64_t r = 0; r < count; ++r) {
          const int64_t i = first + r;
          float* row = s + r * p.m;
          float highest = kMasked;
          for (int64_t j = 0; j < p.m; ++j) {
            row[j] = is_masked(i, j) ? kMasked : row[j] * p.scale;
            highest = std::max(highest, row[j]);
          }
          const float right = row[i];
          for (int64_t j = 0; j < p.m; ++j) row[j] -= highest;
          kernels.exp(row, row, p.m);
          double others = 0;
          for (int64_t j = 0; j < p.m; ++j) {
            if (is_masked(i, j)) row[j] = 0;
            if (j != i) others += row[j];
          }
          const double sum = others + row[i];
          const size_t at = static_cast<size_t>(i);
          largest[at] = highest;
          inverse[at] = static_cast<float>(1 / sum);
          right_term[at] = static_cast<float>(-others / sum);
          loss[at] = double{highest} - right + std::log(sum);
          for (int64_t j = 0; j < p.m; ++j) row[j] *= inverse[at];
          row[i] = right_term[at];
        }
      },
      da);
  if (!has_sums) return std::nullopt;

  const bool is_whole = over_tiles(
      isa, p.b, p.m, p.d, p.a, p.n, p.weight * p.scale, num_threads, should_stop,
      [&](int64_t first, int64_t count, float* s) {
        for (int64_t r = 0; r < count; ++r) {
          const int64_t j = first + r;
          float* row = s + r * p.n;
          for (int64_t i = 0; i < p.n; ++i)
            row[i] = row[i] * p.scale - largest[static_cast<size_t>(i)];
          kernels.exp(row, row, p.n);
          for (int64_t i = 0; i < p.n; ++i)
            row[i] = is_masked(i, j) ? 0 : row[i] * inverse[static_cast<size_t>(i)];
          if (j < p.n) row[j] = right_term[static_cast<size_t>(j)];
        }
      },
      db);
  if (!is_whole) return std::nullopt;

  double total = 0;
  for (const double one : loss) total += one;
  return total * p.weight;
}

}  // namespace minifuse
