#include "thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "borrowed_team.h"
#include "error.h"

namespace moe {
namespace {

constexpr int MAX_WORKERS = 255;
// Long enough to bridge two phases of one kernel, short enough that a parked pool costs other processes nothing.
constexpr auto SPIN = std::chrono::microseconds(5);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(Condition&& condition) {
  const auto end = std::chrono::steady_clock::now() + SPIN;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

struct Job {
  TaskFunction task;
  void* context;
  int64_t count;
  int seats;                     // workers that may still join, guarded by the pool's mutex
  std::atomic<int64_t> next{0};
  std::atomic<int> inside{0};    // workers inside; they join under the mutex and leave under it
  std::exception_ptr error;      // guarded by the pool's mutex
};

class Pool {
 public:
  void run(Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start_workers(job.seats);
      jobs_.push_back(&job);
      pending_.fetch_add(1, std::memory_order_release);
      for (int i = 0; i < std::min(job.seats, sleeping_); ++i) wake_.notify_one();
    }
    work(job);
    std::unique_lock<std::mutex> lock(mutex_);
    retire(job);
    if (job.inside.load(std::memory_order_acquire) > 0) {
      lock.unlock();
      const bool done = spin_until([&] { return job.inside.load(std::memory_order_acquire) == 0; });
      // The lock is taken either way: the last worker leaves while it holds it, and the job lies on this stack.
      lock.lock();
      if (!done) left_.wait(lock, [&] { return job.inside.load(std::memory_order_acquire) == 0; });
    }
    if (job.error) std::rethrow_exception(job.error);
  }

  int workers() {
    std::lock_guard<std::mutex> lock(mutex_);
    return started_;
  }

 private:
  void work(Job& job) {
    try {
      for (;;) {
        const int64_t index = job.next.fetch_add(1, std::memory_order_relaxed);
        if (index >= job.count) return;
        job.task(job.context, index);
      }
    } catch (...) {
      job.next.store(job.count, std::memory_order_relaxed);
      std::lock_guard<std::mutex> lock(mutex_);
      if (!job.error) job.error = std::current_exception();
    }
  }

  // Takes a job off the list; the mutex is held. Both the caller and the worker that fills the last seat come here.
  void retire(Job& job) {
    const auto found = std::find(jobs_.begin(), jobs_.end(), &job);
    if (found == jobs_.end()) return;
    jobs_.erase(found);
    pending_.fetch_sub(1, std::memory_order_relaxed);
  }

  void start_workers(int wanted) {
    for (; started_ < std::min(wanted, MAX_WORKERS); ++started_) {
      try {
        // Detached, and the pool is never destroyed: a parked worker needs nothing at interpreter exit.
        std::thread([this] { loop(); }).detach();
      } catch (const std::system_error&) {
        return;  // no more threads to be had: the caller still does all the work itself
      }
    }
  }

  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (jobs_.empty()) {
        lock.unlock();
        const bool found = spin_until([&] { return pending_.load(std::memory_order_acquire) > 0; });
        lock.lock();
        if (!found && jobs_.empty()) {
          ++sleeping_;
          wake_.wait(lock, [&] { return !jobs_.empty(); });
          --sleeping_;
        }
        continue;
      }
      Job& job = *jobs_.front();
      job.inside.fetch_add(1, std::memory_order_relaxed);
      if (--job.seats == 0) retire(job);
      lock.unlock();
      work(job);
      lock.lock();
      retire(job);
      if (job.inside.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable left_;
  std::vector<Job*> jobs_;
  std::atomic<int> pending_{0};
  int started_ = 0;
  int sleeping_ = 0;
};

std::atomic<Pool*> current_pool{nullptr};

// Only the forking thread lives in the child: the parent's workers are gone and its mutex may be held for ever.
void forget_pool_in_child() { current_pool.store(nullptr); }

Pool& pool() {
  Pool* found = current_pool.load(std::memory_order_acquire);
  if (found) return *found;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool_in_child);
  if (registered != 0) throw Error("thread pool: pthread_atfork failed");
  Pool* fresh = new Pool;
  if (current_pool.compare_exchange_strong(found, fresh)) return *fresh;
  delete fresh;
  return *found;
}

}  // namespace

void run_tasks(int64_t count, int threads, TaskFunction task, void* context) {
  if (count <= 0) return;
  const int64_t seats = std::min<int64_t>(std::min<int64_t>(threads, count) - 1, MAX_WORKERS);
  if (seats <= 0) {
    for (int64_t index = 0; index < count; ++index) task(context, index);
    return;
  }
  if (run_on_team(count, static_cast<int>(seats + 1), task, context)) return;
  Job job;
  job.task = task;
  job.context = context;
  job.count = count;
  job.seats = static_cast<int>(seats);
  pool().run(job);
}

int pool_workers() {
  Pool* found = current_pool.load(std::memory_order_acquire);
  return found ? found->workers() : 0;
}

}  // namespace moe
