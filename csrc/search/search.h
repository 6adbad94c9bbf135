// Exact top-k by dot product over vectors in several pieces of memory, all threads together.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dispatch.h"
#include "threads/should_stop.h"

namespace minifuse {

// Vectors [count, stride] whose ids are first_id, first_id + 1, ...
struct Segment {
  const void* vectors;
  const float* scale;  // [count, 2], codes only
  int64_t count;
  int64_t first_id;
};

// All vectors of one type, in segments of ascending ids.
struct SearchSpace {
  WeightType type;
  int64_t dim, stride;
  std::vector<Segment> segments;

  int64_t num_vectors() const;
};

// The k best of each query, best first, ties broken by the lower id: [num_queries, k]. Where fewer
// than k vectors are comparable (a score may be NaN where sums overflow), ids end in -1 with a score
// of -infinity. Returns false where should_stop, asked now and then on the calling thread, said
// true.
bool search(const InstructionSet& isa, const SearchSpace& space, const float* queries,
            int64_t num_queries, int64_t k, int num_threads, const ShouldStop& should_stop,
            float* scores, int64_t* ids);

// The same among the vectors candidates [num_queries, num_candidates] only (-1: none), by their
// float32 vectors. Scores have the bits that a search of all of them would give.
bool rescore(const InstructionSet& isa, const SearchSpace& space, const float* queries,
             int64_t num_queries, const int64_t* candidates, int64_t num_candidates, int64_t k,
             int num_threads, const ShouldStop& should_stop, float* scores, int64_t* ids);

}  // namespace minifuse
