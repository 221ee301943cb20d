#include "borrowed_team.h"

#include <pthread.h>

#include <atomic>
#include <exception>
#include <mutex>

#include "error.h"

namespace moe {
namespace {

struct Job {
  TaskFunction task;
  void* context;
  int64_t count;
  std::atomic<int> seats;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;  // guarded by the mutex
};

// No exception may leave it: the runtime calls it from C.
void take_part(void* data) {
  Job& job = *static_cast<Job*>(data);
  if (job.seats.fetch_sub(1, std::memory_order_relaxed) <= 0) return;
  try {
    for (;;) {
      const int64_t index = job.next.fetch_add(1, std::memory_order_relaxed);
      if (index >= job.count) return;
      job.task(job.context, index);
    }
  } catch (...) {
    job.next.store(job.count, std::memory_order_relaxed);
    std::lock_guard<std::mutex> lock(job.mutex);
    if (!job.error) job.error = std::current_exception();
  }
}

std::atomic<ParallelRegion> borrowed{nullptr};

void give_back_in_child() { borrowed.store(nullptr); }

}  // namespace

void borrow_team(ParallelRegion region) {
  static const int registered = pthread_atfork(nullptr, nullptr, give_back_in_child);
  if (registered != 0) throw Error("thread pool: pthread_atfork failed");
  borrowed.store(region);
}

bool run_on_team(int64_t count, int threads, TaskFunction task, void* context) {
  const ParallelRegion region = borrowed.load(std::memory_order_acquire);
  if (!region) return false;
  Job job{task, context, count, {threads}, {0}, {}, {}};
  region(take_part, &job, 0, 0);
  if (job.error) std::rethrow_exception(job.error);
  return true;
}

}  // namespace moe
