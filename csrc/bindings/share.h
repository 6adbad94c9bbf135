// Divides an operation on arrays among threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>

#include "common/buffer.h"
#include "threads/items.h"

namespace minifuse {

// Memory that a kernel may write to, for one call on the calling thread. What a small call used is
// kept for the next one on that thread; a large one is given back to the system.
template <typename T>
class ThreadScratch {
 public:
  explicit ThreadScratch(int64_t size) : buffer_(std::move(kept())) {
    if (buffer_.size() < size) buffer_ = BufferOf<T>(size);
  }
  ThreadScratch(const ThreadScratch&) = delete;
  ~ThreadScratch() {
    constexpr int64_t kMostKeptBytes = int64_t{4} << 20;
    if (buffer_.size() * static_cast<int64_t>(sizeof(T)) <= kMostKeptBytes)
      kept() = std::move(buffer_);
  }

  T* data() { return buffer_.data(); }
  BufferOf<T>& buffer() { return buffer_; }

 private:
  static BufferOf<T>& kept() {
    thread_local BufferOf<T> buffer;
    return buffer;
  }

  BufferOf<T> buffer_;
};

// Work below this many flops stays on the calling thread: waking another costs microseconds.
constexpr double kFlopsPerThread = 1e6;
// The cost of a float that is read, changed a little and written, in flops.
constexpr double kMoveCost = 4.0;

inline int threads_for(double flops, int64_t max_parts) {
  static const int available = default_num_threads();
  const double wanted = std::max(1.0, flops / kFlopsPerThread);
  return static_cast<int>(std::min({static_cast<double>(available), wanted,
                                    static_cast<double>(std::max<int64_t>(1, max_parts))}));
}

// work(member) on so many threads; one alone needs no turn of the pool.
template <typename Work>
void run_items(Items& items, int num_threads, Work work) {
  if (num_threads == 1)
    work(0);
  else
    items.run(num_threads, std::ref(work));
}

// f(begin, end) over [0, n), part by part, until should_stop says true. The parts are about equal, a
// multiple of the threads in number, and begin at multiples of `unit`. A part for each thread may be
// small; more parts than that have `fewest` at least, which are worth what f does once for all of them.
template <typename F>
void share(int64_t n, int64_t unit, int64_t fewest, double flops, const ShouldStop& should_stop,
           F f) {
  const int threads = threads_for(flops, (n + unit - 1) / unit);
  const double most = static_cast<double>(n / std::max<int64_t>(1, fewest));
  const double rounds = std::max(1.0, std::floor(std::min(flops / kFlopsPerPart, most) / threads));
  const Parts parts(n, unit, threads * static_cast<int64_t>(rounds));
  Items items(parts.count(), should_stop);
  run_items(items, threads, [&](int member) {
    while (const std::optional<int64_t> part = items.next(member))
      if (parts.begin(*part) < parts.end(*part)) f(parts.begin(*part), parts.end(*part));
  });
}
template <typename F>
void share(int64_t n, int64_t unit, double flops, const ShouldStop& should_stop, F f) {
  share(n, unit, unit, flops, should_stop, f);
}

}  // namespace minifuse
