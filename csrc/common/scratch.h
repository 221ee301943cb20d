// Scratch memory that outlives a call, so that no call pays for fresh pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe {

// A block of the process-wide free list, held for one call; concurrent calls hold different blocks.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // The next `count` elements, aligned to a cache line; contents are undefined.
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(padded<T>(count)));
  }

  // Bytes that take<T>(count) uses up: the constructor's argument is a sum of these.
  template <typename T>
  static size_t padded(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }

 private:
  void* take_bytes(size_t bytes);

  char* block_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
};

// Scratch of the running thread for the length of one task: at least `bytes`, aligned to a page.
void* thread_scratch(size_t bytes);

// More of it, for the inner kernels: they are compiled for one instruction set each, and must not bring the code of
// containers and exceptions with them, which the linker would share. Without memory the process ends.
void* row_scratch(size_t bytes) noexcept;

// Asks the system to back a large fresh output with huge pages, which saves most of the cost of its first touch.
void prefer_huge_pages(void* data, size_t bytes);

}  // namespace moe
