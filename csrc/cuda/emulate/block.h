// Runs the kernels of csrc/cuda on a CPU, for tests: every thread of a block is a fiber, blocks run one after another.
//
// What it finds: wrong indices, missing barriers (threads take turns in an order that `order` changes), threads that
// never meet, shared memory that is read before it is written (it starts as NaN). What it cannot find: anything about
// speed, memory ordering between threads that do not synchronize, blocks that wait for each other.
//
// A warp's instruction that this folder does not have (a matrix product, a copy engine) is written on top of
// `warp_collective`, `warpgroup_collective`, `block_until` and `later`.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

// The thread that runs now, as the kernel reads it.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace moe::emulate {

constexpr int WARP = 32;
constexpr int WARPGROUP = 128;
// What a block of an H100 or H200 may have.
constexpr size_t MOST_SHARED = 227 * 1024;

// In which order threads and blocks take turns: warp by warp, each as far as it gets, or every thread at random. A
// right kernel gives the same bits in all of them.
enum class Order { ascending, descending, shuffled };
void set_order(Order order, uint64_t seed = 0);

// Ends the launch: `launch` throws std::runtime_error with this text and the thread's place in front.
[[noreturn]] void fail(const std::string& text);

// How many blocks have begun: what an emulated instruction keeps for a block is stale when it changes.
inline uint64_t blocks_begun = 0;

// The number of this thread in its block, warp, …
int thread_rank();
inline int lane() { return thread_rank() % WARP; }

// bar.sync and bar.arrive. `threads` is how many take part; 0: all of the block that have not ended.
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);

// Wait until the condition holds; another thread, or what was put off by `later`, makes it true.
void wait_for(const char* what, bool (*holds)(void*), void* condition);
template <typename Condition>
void block_until(const char* what, Condition condition) {
  wait_for(what, [](void* c) { return static_cast<bool>((*static_cast<Condition*>(c))()); }, &condition);
}

// Put work off until no thread of the block can go on without it: an asynchronous copy or product that takes as long
// as it may, so that a thread that does not wait for it reads what was there before. First come, first served; what is
// left when the threads have ended is done then.
void later(std::function<void()> work);

// The threads first + i of the block, i < count, whose bit (modulo 32) is in `mask` meet: the last of them runs `act`
// on what all brought, null where the mask has no bit, then all go on.
void meet(const char* what, int first, int count, uint32_t mask, void* operand,
          void (*act)(void* context, void** operands), void* context);

template <typename T, typename Act>
void collective(const char* what, int first, int count, uint32_t mask, T& operand, Act& act) {
  meet(
      what, first, count, mask, &operand,
      [](void* context, void** operands) { (*static_cast<Act*>(context))(reinterpret_cast<T**>(operands)); }, &act);
}

// act(T** lanes): lanes[i] is the operand of lane i, which lies on that thread's stack and may be written.
template <typename T, typename Act>
void warp_collective(const char* what, T& operand, Act act, uint32_t mask = 0xffffffffu) {
  collective(what, thread_rank() / WARP * WARP, WARP, mask, operand, act);
}

// act(T** threads) for the 128 threads of a warpgroup.
template <typename T, typename Act>
void warpgroup_collective(const char* what, T& operand, Act act) {
  collective(what, thread_rank() / WARPGROUP * WARPGROUP, WARPGROUP, 0xffffffffu, operand, act);
}

// act(T** threads) for all threads of the block.
template <typename T, typename Act>
void block_collective(const char* what, T& operand, Act act) {
  collective(what, 0, static_cast<int>(blockDim.x * blockDim.y * blockDim.z), 0xffffffffu, operand, act);
}

// Fill a shared variable with 0xff, once in a block: NaN as a float, -1 as an integer.
void poison(void* variable, size_t bytes);
unsigned char* dynamic_shared();

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*thread)(void*), void* closure);

// kernel<<<grid, block, shared_bytes>>>(arguments...)
template <typename... P, typename... A>
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(P...), A&&... arguments) {
  std::tuple<std::decay_t<P>...> values(std::forward<A>(arguments)...);
  auto thread = [&] { std::apply(kernel, values); };
  run_grid(grid, block, shared_bytes, [](void* closure) { (*static_cast<decltype(thread)*>(closure))(); }, &thread);
}

}  // namespace moe::emulate
