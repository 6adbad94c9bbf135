// Owned memory for plain numbers, 64-byte aligned. From 256 KiB up it is pages of the system's own:
// malloc would put such buffers between the small objects of its heaps, whose holes never go back to
// the system, and a process that encoded in several threads grew by a percent a minute. From 2 MiB up
// the pages are huge ones: a pass over 42 MB of weights touches ten thousand ordinary pages and only
// twenty huge ones.
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

// Gives back what allocate_bytes() took: to the allocator, or to the system where pages were mapped.
struct FreeBytes {
  void* pages = nullptr;
  size_t mapped_bytes = 0;  // from `pages` on; 0: the memory is the allocator's

  void operator()(void* memory) const {
#if defined(__linux__)
    if (mapped_bytes != 0) {
      munmap(pages, mapped_bytes);
      return;
    }
#endif
    std::free(memory);
  }
};
using Bytes = std::unique_ptr<void, FreeBytes>;

#if defined(__linux__)
inline char* map_pages(size_t size_bytes) {
  void* pages =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(pages);
}
#endif

// Throws std::bad_alloc where there is no memory. Zero bytes are memory of no use, but not null.
inline Bytes allocate_bytes(size_t size_bytes) {
#if defined(MINIFUSE_GUARD_PAGES)
  // Memory that ends where a page begins that nobody may touch: kernels that no sanitizer instruments,
  // because they would run a hundred times slower, end the process at their first step past the end.
  // A multiple of 64 bytes goes up to the guard; what is shorter by less is rounded up.
  constexpr size_t kPage = 4096;
  const size_t rounded = (size_bytes + 63) / 64 * 64;
  const size_t whole = (rounded + kPage) / kPage * kPage;
  char* pages = map_pages(whole + kPage);
  if (mprotect(pages + whole, kPage, PROT_NONE) != 0) throw std::bad_alloc();
  return Bytes(pages + whole - rounded, {pages, whole + kPage});
#else
  const auto rounded = [&](size_t multiple) {
    return (size_bytes + multiple) / multiple * multiple;
  };
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
  constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20, kLeastMapped = size_t{256} << 10;
  if (size_bytes >= kHugePage) {
    const size_t whole = rounded(kHugePage);
    char* pages = map_pages(whole + kHugePage);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(pages) % kHugePage) % kHugePage;
    if (before != 0) munmap(pages, before);
    munmap(pages + before + whole, kHugePage - before);
    pages += before;
    madvise(pages, whole, MADV_HUGEPAGE);  // a hint: failing is fine
    return Bytes(pages, {pages, whole});
  }
  if (size_bytes >= kLeastMapped) {
    char* pages = map_pages(rounded(kPage));
    return Bytes(pages, {pages, rounded(kPage)});
  }
#endif
  void* memory = std::aligned_alloc(64, rounded(64));
  if (memory == nullptr) throw std::bad_alloc();
  return Bytes(memory);
#endif
}

template <typename T>
class BufferOf {
 public:
  BufferOf() = default;
  // Throws std::bad_alloc where there is no memory, or no number for so many bytes.
  explicit BufferOf(int64_t size) : size_(size) {
    size_t size_bytes = 0;
    if (size < 0 || __builtin_mul_overflow(static_cast<size_t>(size), sizeof(T), &size_bytes) ||
        size_bytes > SIZE_MAX / 2)
      throw std::bad_alloc();
    bytes_ = allocate_bytes(size_bytes);
  }

  BufferOf(BufferOf&& other) noexcept : bytes_(std::move(other.bytes_)), size_(other.size_) {
    other.size_ = 0;
  }
  BufferOf& operator=(BufferOf&& other) noexcept {
    bytes_ = std::move(other.bytes_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() { return static_cast<T*>(bytes_.get()); }
  const T* data() const { return static_cast<const T*>(bytes_.get()); }
  int64_t size() const { return size_; }

 private:
  Bytes bytes_;
  int64_t size_ = 0;
};

using Buffer = BufferOf<float>;

}  // namespace minifuse
