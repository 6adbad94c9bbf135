// The multiple negatives ranking loss (Henderson et al. 2017; InfoNCE) and its gradient, tile by
// tile: the matrix of scores never exists.
//
//   a [n, d] anchors     b [m, d] candidates, m >= n, b_i the right one for a_i
//   s_ij = scale a_i . b_j          l_i = log sum_j exp(s_ij) - s_ii          loss = sum_i w l_i
//   da_i = w scale (sum_j p_ij b_j - b_i)       db_j = w scale (sum_i p_ij a_i - [j < n] a_j)
//
// with p_ij = exp(s_ij) / sum_j exp(s_ij). A pair (i, j), j != i, takes no part where their groups
// are equal: b_j is another right answer to a_i.
#pragma once

#include <cstdint>
#include <optional>

#include "cpu/dispatch.h"
#include "threads/should_stop.h"

namespace minifuse {

struct ContrastiveParams {
  const float* a;  // [n, d]
  const float* b;  // [m, d]
  int64_t n, m, d;
  float scale;
  float weight;  // w: of each row in the sum
  const int64_t* group_a = nullptr;  // [n], or null: no pair is masked
  const int64_t* group_b = nullptr;  // [m]
};

// Returns the loss, and adds to da [n, d] and db [m, d]. Nothing is returned where should_stop, asked
// now and then on the calling thread, said true: da and db are then unfinished.
std::optional<double> contrastive_loss(const InstructionSet& isa, const ContrastiveParams& params,
                                       int num_threads, const ShouldStop& should_stop, float* da,
                                       float* db);

}  // namespace minifuse
