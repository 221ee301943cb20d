#include "reader.h"

#include <unistd.h>

#include "common/error.h"

namespace moe {

Reader::Reader(int fd, const std::string& wanted, int lanes, int depth, int64_t piece_bytes, int guesses)
    : requests(piece_bytes, guesses), process_(getpid()) {
  if (lanes < 1 || depth < 1 || depth > 4095 || piece_bytes < 4096 || piece_bytes % 4096 || guesses < 1)
    throw Error("Reader: expected lanes >= 1, depth in 1..4095, a piece of whole pages and guesses >= 1, got " +
                std::to_string(lanes) + ", " + std::to_string(depth) + ", " + std::to_string(piece_bytes) + ", " +
                std::to_string(guesses));
  if (wanted != "auto" && wanted != "io_uring" && wanted != "threads")
    throw Error("Reader: method: expected auto, io_uring or threads, got " + wanted);
  if (wanted == "threads")
    reason = "threads were asked for";
  else
    engine_ = make_uring_engine(fd, requests, depth, reason);
  if (!engine_ && wanted == "io_uring") throw Error("Reader: io_uring cannot be used here: " + reason);
  if (!engine_) engine_ = make_thread_engine(fd, requests, lanes);
  method = engine_->name();
}

Reader::~Reader() { close(); }

uint64_t Reader::submit(int64_t offset, int64_t bytes, char* address, bool urgent) {
  require_same_process();
  if (offset < 0) throw Error("Reader: offset: expected at least 0, got " + std::to_string(offset));
  const uint64_t id = requests.submit(offset, bytes, address, urgent);
  engine_->pump();
  return id;
}

bool Reader::promote(uint64_t id) {
  require_same_process();
  const bool changed = requests.promote(id);
  if (changed) engine_->pump();
  return changed;
}

void Reader::close() {
  if (!engine_) return;
  if (getpid() != process_) {
    // The threads are the parent's: nothing here can be joined.
    engine_.release();
    return;
  }
  requests.close();
  engine_->stop();
  engine_.reset();
}

void Reader::require_same_process() const {
  if (!engine_) throw Error("Reader: it was closed");
  if (getpid() != process_) throw Error("Reader: it belongs to the process before fork: open the file again");
}

}  // namespace moe
