// Owned memory for plain numbers: 64-byte aligned, and on huge pages from 2 MiB up, because a pass
// over 42 MB of weights touches ten thousand ordinary pages and only twenty huge ones.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace minifuse {

template <typename T>
class BufferOf {
 public:
  BufferOf() = default;
  // Throws std::bad_alloc where there is no memory, or no number for so many bytes.
  explicit BufferOf(int64_t size) : size_(size) {
    constexpr size_t kHugePage = size_t{2} << 20;
    size_t size_bytes = 0;
    if (size < 0 || __builtin_mul_overflow(static_cast<size_t>(size), sizeof(T), &size_bytes) ||
        size_bytes > SIZE_MAX / 2)
      throw std::bad_alloc();
#if defined(MINIFUSE_GUARD_PAGES)
    data_ = guarded(size_bytes);
    return;
#endif
    const size_t alignment = size_bytes >= kHugePage ? kHugePage : 64;
    const size_t rounded = (size_bytes + alignment) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, rounded);
    if (memory == nullptr) throw std::bad_alloc();
    data_ = Memory(static_cast<T*>(memory));
#if defined(__linux__)
    if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);  // a hint: failing is fine
#endif
  }

  BufferOf(BufferOf&& other) noexcept : data_(std::move(other.data_)), size_(other.size_) {
    other.size_ = 0;
  }
  BufferOf& operator=(BufferOf&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
#if defined(MINIFUSE_GUARD_PAGES)
  // Memory that ends where a page begins that nobody may touch: kernels that no sanitizer instruments,
  // because they would run a hundred times slower, end the process at their first step past the end.
  struct Free {
    void* pages = nullptr;
    size_t size = 0;
    void operator()(T*) const { munmap(pages, size); }
  };
  using Memory = std::unique_ptr<T, Free>;
  static Memory guarded(size_t size_bytes) {
    constexpr size_t kPage = 4096;
    const size_t used = (size_bytes + 64) / 64 * 64, whole = (used + kPage - 1) / kPage * kPage;
    void* pages =
        mmap(nullptr, whole + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    char* end = static_cast<char*>(pages) + whole;
    if (mprotect(end, kPage, PROT_NONE) != 0) throw std::bad_alloc();
    // A multiple of 64 bytes goes up to the guard; what is shorter by less is rounded up.
    const size_t rounded = (size_bytes + 63) / 64 * 64;
    return Memory(reinterpret_cast<T*>(end - rounded), Free{pages, whole + kPage});
  }
#else
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  using Memory = std::unique_ptr<T, Free>;
#endif
  Memory data_;
  int64_t size_ = 0;
};

using Buffer = BufferOf<float>;

}  // namespace minifuse
