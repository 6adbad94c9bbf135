// Divides an operation on arrays among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/buffer.h"
#include "threads/pool.h"

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
