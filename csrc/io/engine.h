// What carries reads out: the kernel's queue (io_uring), or threads that call pread.
#pragma once

#include <memory>
#include <string>

#include "requests.h"

namespace moe {

class ReadEngine {
 public:
  virtual ~ReadEngine() = default;
  // Called after every submission and promotion.
  virtual void pump() = 0;
  // Ends what is under way and the engine's threads; `requests` is closed before.
  virtual void stop() = 0;
  virtual const char* name() const = 0;
};

std::unique_ptr<ReadEngine> make_thread_engine(int fd, Requests& requests, int lanes);

// nullptr where the kernel does not allow it, with the reason.
std::unique_ptr<ReadEngine> make_uring_engine(int fd, Requests& requests, int depth, std::string& reason);

}  // namespace moe
