// Every thread takes the next block of vectors, so that the ids it sees ascend, and keeps the best
// of each query; the threads' findings are merged at the end. The order of (score, id) is total:
// neither the number of threads nor their timing changes a result.

#include "search/search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "common/buffer.h"
#include "common/check.h"
#include "threads/items.h"
#include "search/top_k.h"

namespace minifuse {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Vectors that a thread takes at a time: 12 MiB of float32 at 384 dimensions.
constexpr int64_t kBlockVectors = 8192;
// Products of a block, at most: a signal is asked about before each block, and the scalar build takes
// some tenths of a second for so many. But as many vectors as fill the kernels' tiles.
constexpr int64_t kMostProducts = 50'000'000;
constexpr int64_t kFewestVectors = 64;
// Queries that are searched together: at most these, and fewer where k is large, so that the
// findings of a thread (k hits a query) take at most this much memory.
constexpr int64_t kMostQueries = 1024;
constexpr int64_t kMostFindingsBytes = int64_t{32} << 20;

int64_t queries_at_once(int64_t k) {
  const int64_t bytes_per_query = std::max<int64_t>(1, k) * static_cast<int64_t>(sizeof(Hit));
  return std::clamp<int64_t>(kMostFindingsBytes / bytes_per_query, 1, kMostQueries);
}

// The queries of one pass, as the kernels read them.
struct Queries {
  const float* rows;  // [count, dim]
  int64_t count, padded;
  BufferOf<std::byte> panels;
  BufferOf<int8_t> codes;  // [count, dim rounded up to 64]
  Buffer scale, sum;  // [padded]

  Queries(const InstructionSet& isa, const SearchSpace& space, const float* rows, int64_t count)
      : rows(rows), count(count) {
    const bool is_int8 = space.type == WeightType::kInt8;
    const MatrixFormat& format =
        is_int8 ? isa.kernels.search_int8_format : isa.kernels.float32.format;
    const int64_t columns = format.panel_columns, dim = space.dim;
    padded = round_up(count, columns);
    if (is_int8) quantize(dim);
    const int64_t row_size = is_int8 ? round_up(dim, 64) : dim;
    const int64_t panel_bytes = format.panel_bytes(dim);
    panels = BufferOf<std::byte>(padded / columns * panel_bytes);
    for (int64_t first = 0; first < count; first += columns) {
      const void* from = is_int8 ? static_cast<const void*>(codes.data() + first * row_size)
                                 : static_cast<const void*>(rows + first * dim);
      format.pack_panel(from, row_size, std::min(columns, count - first), dim,
                        panels.data() + first / columns * panel_bytes);
    }
  }

 private:
  // To -64..64 by the largest magnitude (search_int8.inl.h).
  void quantize(int64_t dim) {
    const int64_t width = round_up(dim, 64);
    codes = BufferOf<int8_t>(count * width);
    scale = Buffer(padded);
    sum = Buffer(padded);
    std::memset(codes.data(), 0, static_cast<size_t>(count * width));
    std::fill_n(scale.data(), padded, 0.0f);
    std::fill_n(sum.data(), padded, 0.0f);
    for (int64_t q = 0; q < count; ++q) {
      const float* x = rows + q * dim;
      float largest = 0;
      for (int64_t k = 0; k < dim; ++k) {
        check(x[k] == x[k], "a query holds a NaN");
        largest = std::max(largest, std::fabs(x[k]));
      }
      if (!(largest > 1e-30f)) continue;
      check(largest <= std::numeric_limits<float>::max(), "a query holds an infinity");
      int32_t total = 0;
      for (int64_t k = 0; k < dim; ++k) {
        const auto code = static_cast<int8_t>(std::nearbyint(x[k] / largest * 64.0f));
        codes.data()[q * width + k] = code;
        total += code;
      }
      scale.data()[q] = largest / 64.0f;
      sum.data()[q] = scale.data()[q] * static_cast<float>(total);
    }
  }
};

// Results of one thread.
struct Findings {
  std::vector<TopK> best;  // [num_queries]
  Buffer thresholds;       // [padded], infinity past num_queries
  int64_t first_id = 0;    // of the vectors that are being searched

  Findings(const Queries& queries, int64_t k)
      : best(static_cast<size_t>(queries.count), TopK(k)), thresholds(queries.padded) {
    std::fill_n(thresholds.data(), queries.padded, kInfinity);
    std::fill_n(thresholds.data(), queries.count, k > 0 ? -kInfinity : kInfinity);
  }

  static void offer(void* context, int64_t query, int64_t vector, float score) {
    Findings& self = *static_cast<Findings*>(context);
    TopK& best = self.best[static_cast<size_t>(query)];
    best.offer({score, self.first_id + vector});
    self.thresholds.data()[query] = best.threshold();
  }
};

void write(const TopK& best, int64_t k, float* scores, int64_t* ids) {
  const std::vector<Hit> hits = best.sorted();
  for (int64_t i = 0; i < k; ++i) {
    const bool exists = i < static_cast<int64_t>(hits.size());
    scores[i] = exists ? hits[static_cast<size_t>(i)].score : -kInfinity;
    ids[i] = exists ? hits[static_cast<size_t>(i)].id : -1;
  }
}

size_t bytes_per_value(WeightType type) {
  return type == WeightType::kFloat32 ? 4 : type == WeightType::kBfloat16 ? 2 : 1;
}

// Vectors [begin, end) of a segment.
SearchParams params_of(const SearchSpace& space, const Segment& segment, int64_t begin, int64_t end,
                       const Queries& queries, Findings& findings, float* scratch) {
  findings.first_id = segment.first_id + begin;
  const auto* vectors = static_cast<const std::byte*>(segment.vectors);
  return {
      .vectors = vectors + static_cast<size_t>(begin * space.stride) * bytes_per_value(space.type),
      .stride = space.stride,
      .num_vectors = end - begin,
      .dim = space.dim,
      .queries = queries.rows,
      .num_queries = queries.count,
      .query_panels = queries.panels.data(),
      .thresholds = findings.thresholds.data(),
      .offer = Findings::offer,
      .context = &findings,
      .scratch = scratch,
      .vector_scale = segment.scale ? segment.scale + 2 * begin : nullptr,
      .query_codes = queries.codes.data(),
      .query_scale = queries.scale.data(),
      .query_sum = queries.sum.data()};
}

struct Block {
  const Segment* segment;
  int64_t begin, end;
};

std::vector<Block> blocks_of(const SearchSpace& space, int64_t num_queries) {
  const int64_t most = kMostProducts / std::max<int64_t>(1, num_queries * space.dim);
  const int64_t size =
      std::clamp<int64_t>(round_up(most, kFewestVectors), kFewestVectors, kBlockVectors);
  std::vector<Block> blocks;
  for (const Segment& segment : space.segments)
    for (int64_t begin = 0; begin < segment.count; begin += size)
      blocks.push_back({&segment, begin, std::min(segment.count, begin + size)});
  return blocks;
}

}  // namespace

int64_t SearchSpace::num_vectors() const {
  int64_t count = 0;
  for (const Segment& segment : segments) count += segment.count;
  return count;
}

bool search(const InstructionSet& isa, const SearchSpace& space, const float* queries,
            int64_t num_queries, int64_t k, int num_threads, const ShouldStop& should_stop,
            float* scores, int64_t* ids) {
  const auto kernel = isa.search(space.type);
  const int64_t most_queries = queries_at_once(k);
  for (int64_t first = 0; first < num_queries; first += most_queries) {
    const int64_t count = std::min(most_queries, num_queries - first);
    const std::vector<Block> blocks = blocks_of(space, count);
    const int64_t num_blocks = static_cast<int64_t>(blocks.size());
    const int threads =
        static_cast<int>(std::clamp<int64_t>(num_blocks, 1, std::max(1, num_threads)));
    const Queries packed(isa, space, queries + first * space.dim, count);
    Items items(num_blocks, should_stop);
    std::mutex mutex;
    Findings all(packed, k);
    const bool is_whole = items.run(threads, [&](int member) {
      Findings mine(packed, k);
      Buffer scratch(search_scratch_floats(space.dim));
      while (const std::optional<int64_t> i = items.next(member)) {
        const Block& block = blocks[static_cast<size_t>(*i)];
        kernel(
            params_of(space, *block.segment, block.begin, block.end, packed, mine, scratch.data()));
      }
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t q = 0; q < count; ++q)
        all.best[static_cast<size_t>(q)].merge(mine.best[static_cast<size_t>(q)]);
    });
    if (!is_whole) return false;
    for (int64_t q = 0; q < count; ++q)
      write(all.best[static_cast<size_t>(q)], k, scores + (first + q) * k, ids + (first + q) * k);
  }
  return true;
}

bool rescore(const InstructionSet& isa, const SearchSpace& space, const float* queries,
             int64_t num_queries, const int64_t* candidates, int64_t num_candidates, int64_t k,
             int num_threads, const ShouldStop& should_stop, float* scores, int64_t* ids) {
  const auto kernel = isa.search(WeightType::kFloat32);
  const int threads =
      static_cast<int>(std::clamp<int64_t>(num_queries, 1, std::max(1, num_threads)));
  Items items(num_queries, should_stop);
  return items.run(threads, [&](int member) {
    Buffer scratch(search_scratch_floats(space.dim));
    // Candidates are gathered a block at a time, whatever their number.
    const int64_t most = std::clamp<int64_t>(kMostFindingsBytes / 4 / space.dim, 1,
                                             std::max<int64_t>(1, num_candidates));
    Buffer gathered(most * space.dim);
    while (const std::optional<int64_t> item = items.next(member)) {
      const int64_t q = *item;
      // In ascending order, as the thresholds want them.
      std::vector<int64_t> wanted(candidates + q * num_candidates,
                                  candidates + (q + 1) * num_candidates);
      std::erase(wanted, -1);
      std::sort(wanted.begin(), wanted.end());
      const int64_t count = static_cast<int64_t>(wanted.size());
      const SearchSpace some{WeightType::kFloat32, space.dim, space.dim, {}};
      const Queries one(isa, some, queries + q * space.dim, 1);
      Findings found(one, k);
      auto segment = space.segments.begin();
      for (int64_t first = 0; first < count; first += most) {
        if (items.is_stopped(member)) return;
        const int64_t rows = std::min(most, count - first);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t id = wanted[static_cast<size_t>(first + i)];
          while (id >= segment->first_id + segment->count) ++segment;
          std::memcpy(
              gathered.data() + i * space.dim,
              static_cast<const float*>(segment->vectors) + (id - segment->first_id) * space.stride,
              static_cast<size_t>(space.dim) * sizeof(float));
        }
        const Segment block{gathered.data(), nullptr, rows, first};
        kernel(params_of(some, block, 0, rows, one, found, scratch.data()));
      }
      write(found.best[0], k, scores + q * k, ids + q * k);
      for (int64_t i = 0; i < k; ++i) {
        int64_t& id = ids[q * k + i];
        if (id >= 0) id = wanted[static_cast<size_t>(id)];
      }
    }
  });
}

}  // namespace minifuse
