// Owned memory for plain numbers: 64-byte aligned, and on huge pages from 2 MiB up, because a pass
// over 42 MB of weights touches ten thousand ordinary pages and only twenty huge ones.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace minifuse {

template <typename T>
class BufferOf {
 public:
  BufferOf() = default;
  explicit BufferOf(int64_t size) : size_(size) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t size_bytes = static_cast<size_t>(size) * sizeof(T);
    const size_t alignment = size_bytes >= kHugePage ? kHugePage : 64;
    const size_t rounded = (size_bytes + alignment) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    data_.reset(static_cast<T*>(memory));
#if defined(__linux__)
    if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);  // a hint: failing is fine
#endif
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

using Buffer = BufferOf<float>;

}  // namespace minifuse
