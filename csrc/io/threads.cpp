// Reads by threads that call pread, one piece each at a time.
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <vector>

#include "engine.h"

namespace moe {
namespace {

class ThreadEngine : public ReadEngine {
 public:
  ThreadEngine(int fd, Requests& requests, int lanes) : fd_(fd), requests_(requests) {
    for (int i = 0; i < lanes; ++i) threads_.emplace_back([this] { run(); });
  }

  ~ThreadEngine() override { stop(); }

  void pump() override {}

  void stop() override {
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  const char* name() const override { return "threads"; }

 private:
  void run() {
    Piece piece;
    while (requests_.wait_next(piece)) {
      const ssize_t count = pread(fd_, piece.address, static_cast<size_t>(piece.bytes), piece.offset);
      requests_.finish(piece, count < 0 ? -errno : count);
      piece.request.reset();
    }
  }

  const int fd_;
  Requests& requests_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadEngine> make_thread_engine(int fd, Requests& requests, int lanes) {
  return std::make_unique<ThreadEngine>(fd, requests, lanes);
}

}  // namespace moe
