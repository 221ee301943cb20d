#include "kept_memory.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "error.h"
#include "scratch.h"

namespace moe {
namespace {

constexpr size_t HUGE_PAGE = size_t{2} << 20;

struct Block {
  char* data;
  size_t capacity;
};

struct Kept {
  std::mutex mutex;
  std::vector<Block> blocks;  // the longest kept first
  size_t bytes = 0;
  size_t limit = 0;
};

// Never destroyed: blocks may come back at interpreter exit. A fork could copy it while its mutex is held, so the child
// starts with an empty one.
std::atomic<Kept*>& kept_pointer() {
  static std::atomic<Kept*> kept{new Kept};
  return kept;
}

void renew_kept() {
  Kept* fresh = new Kept;
  fresh->limit = kept_pointer().load()->limit;
  kept_pointer().store(fresh);
}

Kept& kept() {
  static const int registered = pthread_atfork(nullptr, nullptr, renew_kept);
  if (registered != 0) throw Error("kept memory: pthread_atfork failed");
  return *kept_pointer().load();
}

// Takes what is over the limit out of the list, the longest kept first.
std::vector<Block> take_excess(Kept& list) {
  std::vector<Block> excess;
  while (list.bytes > list.limit) {
    excess.push_back(list.blocks.front());
    list.bytes -= list.blocks.front().capacity;
    list.blocks.erase(list.blocks.begin());
  }
  return excess;
}

void release(const std::vector<Block>& blocks) {
  for (const Block& block : blocks) std::free(block.data);
}

}  // namespace

KeptBlock::KeptBlock(size_t bytes) : bytes_(bytes) {
  Kept& list = kept();
  {
    std::lock_guard<std::mutex> lock(list.mutex);
    auto best = list.blocks.end();
    for (auto block = list.blocks.begin(); block != list.blocks.end(); ++block)
      if (block->capacity >= bytes && block->capacity <= bytes + bytes / 4 &&
          (best == list.blocks.end() || block->capacity < best->capacity))
        best = block;
    if (best != list.blocks.end()) {
      data_ = best->data;
      capacity_ = best->capacity;
      used_ = true;
      list.bytes -= capacity_;
      list.blocks.erase(best);
      return;
    }
  }
  capacity_ = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  void* fresh = nullptr;
  if (posix_memalign(&fresh, HUGE_PAGE, capacity_) != 0) throw std::bad_alloc();
  prefer_huge_pages(fresh, capacity_);
  data_ = static_cast<char*>(fresh);
}

KeptBlock::~KeptBlock() {
  Kept& list = kept();
  std::vector<Block> excess;
  {
    std::lock_guard<std::mutex> lock(list.mutex);
    // What never fits should not drive out what does.
    if (capacity_ > list.limit) {
      excess.push_back({data_, capacity_});
    } else {
      list.blocks.push_back({data_, capacity_});
      list.bytes += capacity_;
      excess = take_excess(list);
    }
  }
  release(excess);
}

void set_kept_limit(size_t bytes) {
  Kept& list = kept();
  std::vector<Block> excess;
  {
    std::lock_guard<std::mutex> lock(list.mutex);
    list.limit = bytes;
    excess = take_excess(list);
  }
  release(excess);
}

size_t kept_bytes() {
  Kept& list = kept();
  std::lock_guard<std::mutex> lock(list.mutex);
  return list.bytes;
}

}  // namespace moe
