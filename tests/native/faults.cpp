// Makes the n-th call of a function of the system fail: preloaded into a Python process by
// test_fault_injection.py, which arms it through ctypes. Calls are counted in every thread.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <new>

namespace {

enum Kind { kOpen, kWrite, kSync, kRename, kMap, kThread, kMemory, kNumKinds };
constexpr const char* kNames[kNumKinds] = {"open", "write",  "fsync", "rename",
                                           "mmap", "thread", "memory"};

std::atomic<int> armed{-1};
std::atomic<long> calls{0}, fails_at{0};

// Counts a call; true where it is the one that fails.
bool fails(Kind kind) { return armed.load() == kind && calls.fetch_add(1) + 1 == fails_at.load(); }

template <typename F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

// Fails call number n from now on of that kind; n = 0 only counts.
void faults_arm(const char* name, long n) {
  armed = -1;
  calls = 0;
  fails_at = n;
  for (int kind = 0; kind < kNumKinds; ++kind)
    if (strcmp(kNames[kind], name) == 0) armed = kind;
}
// Returns how many calls there were.
long faults_disarm() {
  armed = -1;
  return calls;
}

#define MODE_OF(flags)           \
  mode_t mode = 0;               \
  if ((flags) & O_CREAT) {       \
    va_list list;                \
    va_start(list, flags);       \
    mode = va_arg(list, mode_t); \
    va_end(list);                \
  }

int open(const char* path, int flags, ...) {
  MODE_OF(flags)
  if (fails(kOpen)) return errno = EMFILE, -1;
  static const auto real = next<int (*)(const char*, int, ...)>("open");
  return real(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  MODE_OF(flags)
  if (fails(kOpen)) return errno = EMFILE, -1;
  static const auto real = next<int (*)(const char*, int, ...)>("open64");
  return real(path, flags, mode);
}
ssize_t write(int file, const void* data, size_t size) {
  if (fails(kWrite)) return errno = ENOSPC, -1;
  static const auto real = next<ssize_t (*)(int, const void*, size_t)>("write");
  return real(file, data, size);
}
int fsync(int file) {
  if (fails(kSync)) return errno = EIO, -1;
  static const auto real = next<int (*)(int)>("fsync");
  return real(file);
}
int rename(const char* from, const char* to) {
  if (fails(kRename)) return errno = EACCES, -1;
  static const auto real = next<int (*)(const char*, const char*)>("rename");
  return real(from, to);
}
int link(const char* from, const char* to) {
  if (fails(kRename)) return errno = EACCES, -1;
  static const auto real = next<int (*)(const char*, const char*)>("link");
  return real(from, to);
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
  // Pages without a file are the memory of large buffers (common/buffer.h); Python's are smaller.
  const bool is_buffer = file < 0 && size >= size_t{2} << 20;
  if ((file >= 0 && fails(kMap)) || (is_buffer && fails(kMemory)))
    return errno = ENOMEM, MAP_FAILED;
  static const auto real = next<void* (*)(void*, size_t, int, int, int, off_t)>("mmap");
  return real(address, size, protection, flags, file, offset);
}
void* mmap64(void* address, size_t size, int protection, int flags, int file, off64_t offset) {
  return mmap(address, size, protection, flags, file, offset);
}
int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* argument) {
  if (fails(kThread)) return EAGAIN;
  static const auto real =
      next<int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)>("pthread_create");
  return real(thread, attributes, run, argument);
}
void* aligned_alloc(size_t alignment, size_t size) {
  if (fails(kMemory)) return nullptr;
  static const auto real = next<void* (*)(size_t, size_t)>("aligned_alloc");
  return real(alignment, size);
}

}  // extern "C"

void* operator new(size_t size) {
  if (fails(kMemory)) throw std::bad_alloc();
  if (void* memory = malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }
