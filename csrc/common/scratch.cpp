#include "scratch.h"

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#include "error.h"

namespace moe {
namespace {

constexpr size_t PAGE = 4096;
constexpr size_t HUGE_PAGE = size_t{2} << 20;
// What the free list holds at most; the rest goes back to the system at once.
constexpr size_t BYTES_KEPT = size_t{512} << 20;
constexpr size_t BLOCKS_KEPT = 8;

// What a task keeps in a second-level cache takes most of it: in small pages, which lie anywhere in memory, some of its
// lines push each other out. In a huge page they lie side by side.
char* allocate(size_t bytes) {
  const size_t alignment = bytes >= HUGE_PAGE / 8 ? HUGE_PAGE : PAGE;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* block = nullptr;
  if (posix_memalign(&block, alignment, bytes) != 0) throw std::bad_alloc();
  prefer_huge_pages(block, bytes);
  return static_cast<char*>(block);
}

struct Block {
  char* data;
  size_t capacity;
};

struct FreeList {
  std::mutex mutex;
  Block blocks[BLOCKS_KEPT];
  size_t count = 0;
  size_t bytes = 0;
};

// Never destroyed, so that a call in flight at interpreter exit finds it. A fork could copy it while its mutex is
// held, so the child starts a new one.
std::atomic<FreeList*>& free_list_pointer() {
  static std::atomic<FreeList*> list{new FreeList};
  return list;
}

void renew_free_list() { free_list_pointer().store(new FreeList); }

FreeList& free_list() {
  static const int registered = pthread_atfork(nullptr, nullptr, renew_free_list);
  if (registered != 0) throw Error("scratch: pthread_atfork failed");
  return *free_list_pointer().load();
}

struct Release {
  void operator()(char* block) const { std::free(block); }
};

struct ThreadBlock {
  void* at_least(size_t bytes) {
    if (capacity < bytes) {
      data.reset();
      data.reset(allocate(bytes));
      capacity = bytes;
    }
    return data.get();
  }

  std::unique_ptr<char, Release> data;
  size_t capacity = 0;
};

}  // namespace

Workspace::Workspace(size_t bytes) {
  if (bytes == 0) return;
  FreeList& list = free_list();
  {
    std::lock_guard<std::mutex> lock(list.mutex);
    // The smallest block that is large enough; failing that, the largest one makes room for its successor.
    size_t chosen = list.count;
    for (size_t i = 0; i < list.count; ++i) {
      const size_t have = list.blocks[i].capacity, best = chosen < list.count ? list.blocks[chosen].capacity : 0;
      if (chosen == list.count || (have >= bytes ? best < bytes || have < best : best < bytes && have > best))
        chosen = i;
    }
    if (chosen < list.count) {
      block_ = list.blocks[chosen].data;
      capacity_ = list.blocks[chosen].capacity;
      list.bytes -= capacity_;
      list.blocks[chosen] = list.blocks[--list.count];
    }
  }
  if (capacity_ < bytes) {
    std::free(block_);
    block_ = nullptr;
    capacity_ = bytes + bytes / 4;
    block_ = allocate(capacity_);
  }
}

Workspace::~Workspace() {
  if (!block_) return;
  FreeList& list = free_list();
  {
    std::lock_guard<std::mutex> lock(list.mutex);
    if (list.count < BLOCKS_KEPT && list.bytes + capacity_ <= BYTES_KEPT) {
      list.blocks[list.count++] = {block_, capacity_};
      list.bytes += capacity_;
      return;
    }
  }
  std::free(block_);
}

void* Workspace::take_bytes(size_t bytes) {
  if (used_ + bytes > capacity_) throw Error("scratch: workspace of " + std::to_string(capacity_) + " bytes exhausted");
  void* taken = block_ + used_;
  used_ += bytes;
  return taken;
}

void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / PAGE * PAGE;
  // Advice that the kernel does not take changes nothing but the speed.
  if (end >= begin + HUGE_PAGE) static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

void* thread_scratch(size_t bytes) {
  thread_local ThreadBlock block;
  return block.at_least(bytes);
}

void* row_scratch(size_t bytes) noexcept {
  thread_local ThreadBlock block;
  return block.at_least(bytes);
}

}  // namespace moe
