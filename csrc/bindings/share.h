// How an operation on arrays is shared out to threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "encoder/schedule.h"

namespace minifuse {

// Work below this many flops stays on the calling thread: waking another costs microseconds.
constexpr double kFlopsPerThread = 1e6;

inline int threads_for(double flops, int64_t max_parts) {
  static const int available = default_num_threads();
  const double wanted = std::max(1.0, flops / kFlopsPerThread);
  return static_cast<int>(std::min({static_cast<double>(available), wanted,
                                    static_cast<double>(std::max<int64_t>(1, max_parts))}));
}

// f(begin, end) over [0, n) in one contiguous part per thread; `flops` in all decide how many.
template <typename F>
void share(int64_t n, int64_t granularity, double flops, F f) {
  const int64_t units = (n + granularity - 1) / granularity;
  const auto part = [&](int64_t member, int64_t size) {
    const int64_t begin = std::min(n, units * member / size * granularity);
    const int64_t end = std::min(n, units * (member + 1) / size * granularity);
    if (begin < end) f(begin, end);
  };
  const int threads = threads_for(flops, units);
  if (threads == 1) return part(0, 1);
  ThreadPool::get().run(threads, [&](int member, int size) { part(member, size); });
}

}  // namespace minifuse
