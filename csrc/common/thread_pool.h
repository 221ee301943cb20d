// A native thread pool that parks its workers, shared by every caller in the process.
#pragma once

#include <cstdint>
#include <type_traits>

namespace moe {

using TaskFunction = void (*)(void* context, int64_t task);

// Runs task(0) … task(count - 1) on at most `threads` threads, the caller being one of them, and returns when all are
// done. Which thread runs which task is not fixed: tasks must not care. Several callers may be inside at once; a
// caller never waits for a worker to become free, so nesting cannot deadlock. The first exception of a task is rethrown.
void run_tasks(int64_t count, int threads, TaskFunction task, void* context);

template <typename Task>
void parallel_for(int64_t count, int threads, Task&& task) {
  using Plain = std::remove_reference_t<Task>;
  run_tasks(
      count, threads, [](void* context, int64_t index) { (*static_cast<Plain*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

// Number of workers that have been started in this process (a forked child starts again at 0).
int pool_workers();

}  // namespace moe
