// Asynchronous reads of one open file.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "engine.h"
#include "requests.h"

namespace moe {

class Reader {
 public:
  // `fd` stays its owner's and must outlive the reader. `method`: "auto", "io_uring" or "threads". `guesses`: pieces of
  // requests that are not urgent under way at once.
  Reader(int fd, const std::string& method, int lanes, int depth, int64_t piece_bytes, int guesses);
  ~Reader();

  uint64_t submit(int64_t offset, int64_t bytes, char* address, bool urgent);
  // As `Requests::promote`, and begins what may begin now.
  bool promote(uint64_t id);
  void close();

  Requests requests;
  std::string method;  // what carries the reads out
  std::string reason;  // why it is not io_uring

 private:
  void require_same_process() const;

  std::unique_ptr<ReadEngine> engine_;
  const pid_t process_;
};

}  // namespace moe
