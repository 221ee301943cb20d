#include "cuda/emulate/block.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/emulate/fiber.h"

namespace moe::emulate {
namespace {

constexpr int BARRIERS = 16;

struct Thread {
  std::unique_ptr<Fiber> fiber = std::make_unique<Fiber>();
  uint3 index{};
  int rank = 0;
  // Null: it can go on. Otherwise what it waits for.
  const char* waits_for = nullptr;
  bool (*holds)(void*) = nullptr;  // null: whoever ends the wait clears waits_for
  void* condition = nullptr;
  int barrier = -1;
};

struct Barrier {
  int threads = 0;
  int arrived = 0;
};

struct Meeting {
  const char* what;
  int first, count;
  uint32_t mask;
  int missing;
  std::vector<void*> operands;
};

struct Block {
  std::vector<Thread> threads;
  int size = 0, live = 0;
  Barrier barriers[BARRIERS];
  std::vector<Meeting> meetings;
  std::deque<std::function<void()>> put_off;
  std::vector<std::pair<void*, size_t>> shared;
  std::vector<unsigned char> dynamic;
  size_t dynamic_bytes = 0;
  Thread* now = nullptr;
  std::exception_ptr error;
  void (*body)(void*) = nullptr;
  void* closure = nullptr;
};

Block the_block;
Order the_order = Order::ascending;
std::mt19937_64 the_random;

std::string place(const Thread& thread) {
  const uint3 t = thread.index;
  return "block (" + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) +
         ") thread (" + std::to_string(t.x) + "," + std::to_string(t.y) + "," + std::to_string(t.z) + ")";
}

void arrange(std::vector<int>& turns) {
  if (the_order == Order::descending) std::reverse(turns.begin(), turns.end());
  if (the_order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), the_random);
}

void enter(void* argument) {
  auto* block = static_cast<Block*>(argument);
  try {
    block->body(block->closure);
  } catch (...) {
    block->error = std::current_exception();
  }
}

void wait(const char* what, bool (*holds)(void*), void* condition) {
  Thread& t = *the_block.now;
  t.waits_for = what;
  t.holds = holds;
  t.condition = condition;
  t.fiber->suspend();
}

void release_if_full(int id) {
  Block& b = the_block;
  Barrier& barrier = b.barriers[id];
  const int wanted = barrier.threads ? barrier.threads : b.live;
  if (barrier.arrived == 0 || barrier.arrived < wanted) return;
  barrier = Barrier{};
  for (int i = 0; i < b.size; ++i)
    if (b.threads[i].barrier == id) {
      b.threads[i].barrier = -1;
      b.threads[i].waits_for = nullptr;
    }
}

void arrive(int id, int threads) {
  if (id < 0 || id >= BARRIERS) fail("barrier " + std::to_string(id) + ": there are " + std::to_string(BARRIERS));
  if (threads % WARP) fail("barrier " + std::to_string(id) + ": " + std::to_string(threads) + " threads are no warps");
  Barrier& barrier = the_block.barriers[id];
  if (barrier.arrived && barrier.threads != threads)
    fail("barrier " + std::to_string(id) + ": for " + std::to_string(threads) + " threads, others came for " +
         std::to_string(barrier.threads));
  barrier.threads = threads;
  ++barrier.arrived;
}

std::string stuck() {
  const Block& b = the_block;
  std::string text = "no thread can go on:";
  int listed = 0, waiting = 0;
  for (int i = 0; i < b.size; ++i) {
    const Thread& t = b.threads[i];
    if (t.fiber->ended()) continue;
    ++waiting;
    // One line for a run of neighbours that wait for the same.
    if (i > 0 && !b.threads[i - 1].fiber->ended() && b.threads[i - 1].waits_for == t.waits_for && listed) continue;
    if (++listed <= 16) text += "\n  " + place(t) + " on waits for " + t.waits_for;
  }
  for (const Meeting& m : b.meetings)
    text += "\n  " + std::string(m.what) + " of threads " + std::to_string(m.first) + " to " +
            std::to_string(m.first + m.count - 1) + " lacks " + std::to_string(m.missing);
  for (int i = 0; i < BARRIERS; ++i)
    if (b.barriers[i].arrived)
      text += "\n  barrier " + std::to_string(i) + " has " + std::to_string(b.barriers[i].arrived) + " of " +
              std::to_string(b.barriers[i].threads ? b.barriers[i].threads : b.live) + " threads";
  return text + "\n  " + std::to_string(b.size - waiting) + " threads have ended";
}

// Lets the thread go on if it can, until it waits or ends.
bool go_on(Thread& t) {
  Block& b = the_block;
  if (t.fiber->ended()) return false;
  if (t.waits_for) {
    if (!t.holds || !t.holds(t.condition)) return false;
    t.waits_for = nullptr;
    t.holds = nullptr;
  }
  b.now = &t;
  threadIdx = t.index;
  t.fiber->resume();
  if (b.error) std::rethrow_exception(b.error);
  if (t.fiber->ended()) {
    --b.live;
    for (int id = 0; id < BARRIERS; ++id)
      if (b.barriers[id].arrived && !b.barriers[id].threads) release_if_full(id);
  }
  return true;
}

void run_block(const std::vector<int>& initial) {
  Block& b = the_block;
  std::vector<int> turns = initial;
  while (b.live > 0) {
    bool moved = false;
    if (the_order == Order::shuffled) {
      arrange(turns);
      for (int i : turns) moved = go_on(b.threads[i]) || moved;
    } else {
      // A warp goes as far as it can before the next one begins: what a missing barrier lets it overwrite, it does.
      for (size_t first = 0; first < turns.size(); first += WARP)
        for (bool again = true; again;) {
          again = false;
          for (size_t i = first; i < std::min(first + WARP, turns.size()); ++i)
            again = go_on(b.threads[turns[i]]) || again;
          moved = moved || again;
        }
    }
    if (moved) continue;
    if (b.put_off.empty()) throw std::runtime_error(stuck());
    auto work = std::move(b.put_off.front());
    b.put_off.pop_front();
    work();
  }
  for (; !b.put_off.empty(); b.put_off.pop_front()) b.put_off.front()();
  for (int id = 0; id < BARRIERS; ++id)
    if (b.barriers[id].arrived)
      throw std::runtime_error("the block ended with " + std::to_string(b.barriers[id].arrived) +
                               " threads at barrier " + std::to_string(id));
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  the_order = order;
  the_random.seed(seed);
}

void fail(const std::string& text) {
  throw std::runtime_error((the_block.now ? place(*the_block.now) + ": " : std::string()) + text);
}

int thread_rank() { return the_block.now->rank; }

void barrier_sync(int id, int threads) {
  static const char* const NAMES[BARRIERS] = {
      "barrier 0", "barrier 1", "barrier 2",  "barrier 3",  "barrier 4",  "barrier 5",  "barrier 6",  "barrier 7",
      "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
  arrive(id, threads);
  Thread& t = *the_block.now;
  t.barrier = id;
  t.waits_for = NAMES[id];
  release_if_full(id);
  if (t.waits_for) wait(NAMES[id], nullptr, nullptr);
}

void barrier_arrive(int id, int threads) {
  arrive(id, threads);
  release_if_full(id);
}

void wait_for(const char* what, bool (*holds)(void*), void* condition) {
  if (!holds(condition)) wait(what, holds, condition);
}

void later(std::function<void()> work) { the_block.put_off.push_back(std::move(work)); }

void meet(const char* what, int first, int count, uint32_t mask, void* operand,
          void (*act)(void* context, void** operands), void* context) {
  Block& b = the_block;
  const int rank = thread_rank();
  if (first + count > b.size) fail(std::string(what) + ": the block has no thread " + std::to_string(b.size));
  if (!(mask >> (rank % WARP) & 1)) fail(std::string(what) + ": this lane is not in its own mask");
  auto found = std::find_if(b.meetings.begin(), b.meetings.end(), [&](const Meeting& m) {
    // A warp may still meet on its own while others of its warpgroup wait for it at what they all do.
    return m.first == first && m.count == count && m.mask >> (rank % WARP) & 1;
  });
  if (found == b.meetings.end()) {
    b.meetings.push_back({what, first, count, mask, 0, std::vector<void*>(count, nullptr)});
    found = b.meetings.end() - 1;
    for (int i = 0; i < count; ++i) {
      if (!(mask >> (i % WARP) & 1)) continue;
      if (b.threads[first + i].fiber->ended())
        fail(std::string(what) + ": thread " + std::to_string(first + i) + " is named in the mask and has ended");
      ++found->missing;
    }
  }
  if (found->mask != mask || std::strcmp(found->what, what) != 0)
    fail(std::string(what) + ": other threads of the group are at " + found->what + " or have another mask");
  found->operands[rank - first] = operand;
  if (--found->missing) return wait(what, nullptr, nullptr);
  Meeting meeting = std::move(*found);
  b.meetings.erase(found);
  act(context, meeting.operands.data());
  for (int i = 0; i < count; ++i)
    if (meeting.operands[i]) b.threads[first + i].waits_for = nullptr;
}

void poison(void* variable, size_t bytes) {
  Block& b = the_block;
  for (const auto& [known, size] : b.shared)
    if (known == variable) return;
  b.shared.emplace_back(variable, bytes);
  size_t total = b.dynamic_bytes;
  for (const auto& [known, size] : b.shared) total += size;
  if (total > MOST_SHARED) fail("shared memory: " + std::to_string(total) + " bytes");
  std::memset(variable, 0xff, bytes);
}

unsigned char* dynamic_shared() {
  const auto address = reinterpret_cast<uintptr_t>(the_block.dynamic.data());
  return the_block.dynamic.data() + (1024 - address % 1024) % 1024;
}

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*thread)(void*), void* closure) {
  Block& b = the_block;
  const size_t size = size_t{block.x} * block.y * block.z;
  if (size == 0 || size > 1024 || block.z > 64) throw std::runtime_error("launch: no such block");
  if (size_t{grid.x} * grid.y * grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("launch: no such grid");
  if (shared_bytes > MOST_SHARED) throw std::runtime_error("launch: too much shared memory");
  while (b.threads.size() < size) b.threads.emplace_back();
  b.size = static_cast<int>(size);
  b.body = thread;
  b.closure = closure;
  b.dynamic_bytes = shared_bytes;
  b.dynamic.assign(shared_bytes + 2048, 0xff);
  blockDim = block;
  gridDim = grid;

  std::vector<int> turns(size), blocks(size_t{grid.x} * grid.y * grid.z);
  std::iota(turns.begin(), turns.end(), 0);
  std::iota(blocks.begin(), blocks.end(), 0);
  arrange(turns);
  arrange(blocks);
  for (int which : blocks) {
    const unsigned n = static_cast<unsigned>(which);
    blockIdx = {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
    ++blocks_begun;
    b.live = b.size;
    b.error = nullptr;
    b.meetings.clear();
    b.put_off.clear();
    b.shared.clear();
    for (Barrier& barrier : b.barriers) barrier = Barrier{};
    std::memset(b.dynamic.data(), 0xff, b.dynamic.size());
    for (unsigned i = 0; i < size; ++i) {
      Thread& t = b.threads[i];
      t.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
      t.rank = static_cast<int>(i);
      t.waits_for = nullptr;
      t.holds = nullptr;
      t.barrier = -1;
      t.fiber->start(enter, &b);
    }
    try {
      run_block(turns);
    } catch (...) {
      b.now = nullptr;
      throw;
    }
    b.now = nullptr;
    // What was written behind the dynamic shared memory.
    const unsigned char* end = dynamic_shared() + shared_bytes;
    for (int i = 0; i < 64; ++i)
      if (end[i] != 0xff) throw std::runtime_error("launch: a write behind the dynamic shared memory");
  }
}

}  // namespace moe::emulate

// For tests that have only the built library: 0 ascending, 1 descending, 2 shuffled.
extern "C" __attribute__((visibility("default"))) void moe_emulate_set_order(int order, uint64_t seed) {
  moe::emulate::set_order(static_cast<moe::emulate::Order>(order), seed);
}
