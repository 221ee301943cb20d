// Reads that wait, run and are done. A request is cut into pieces, so that one request keeps many reads under way.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

namespace moe {

struct Request {
  uint64_t id;
  int64_t offset;
  int64_t bytes;
  char* address;
  bool urgent;
  int64_t next = 0;      // bytes that pieces were cut from
  int pieces = 0;        // under way, or waiting to be continued
  int error = 0;         // the first errno; END_OF_FILE where the file ended
  int64_t error_at = 0;  // offset of the piece that failed
  bool finished = false;
};

struct Piece {
  std::shared_ptr<Request> request;
  int64_t offset = 0;
  int64_t bytes = 0;
  char* address = nullptr;
};

constexpr int END_OF_FILE = -1;

// What a finished request came to: error is 0, an errno, or END_OF_FILE.
struct Outcome {
  int error;
  int64_t error_at;
};

std::string describe(const Outcome& outcome);

// Thread-safe. An engine takes pieces and reports them; callers submit, cancel and wait.
class Requests {
 public:
  // No more than `most_guesses` pieces of requests that are not urgent are under way at once: a disk serves what it has
  // in order, so that an urgent request waits for them.
  Requests(int64_t piece_bytes, int most_guesses) : piece_bytes_(piece_bytes), most_guesses_(most_guesses) {}

  uint64_t submit(int64_t offset, int64_t bytes, char* address, bool urgent);
  // Drops a request of which no piece has begun; its outcome is then ECANCELED.
  bool cancel(uint64_t id);
  // Makes an urgent request of a guess that is not finished, because somebody waits for it now; whether it did.
  bool promote(uint64_t id);
  // Cuts off what has not begun; what is under way still writes until the request is finished.
  void abandon(uint64_t id);
  // Ends all that has not begun, and refuses what is submitted later.
  void close();

  // Waits up to so many seconds; true once the request is finished. `take` must follow, once.
  bool wait(uint64_t id, double seconds);
  Outcome take(uint64_t id);

  // For engines: the next piece, urgent requests first. `next` returns at once; `wait_next` returns false when closed.
  bool next(Piece& piece);
  bool wait_next(Piece& piece);
  // `result`: bytes read, or a negative errno. Returns true if the rest of a short read waits to be taken again.
  bool finish(const Piece& piece, int64_t result);

  int64_t waiting();
  int64_t under_way();

  // For tests: the next `times` pieces that touch [begin, end) fail; no read returns more than `limit` bytes (0: all).
  void inject_error(int64_t begin, int64_t end, int error, int times);
  void inject_short(int64_t limit);

 private:
  bool next_locked(Piece& piece);
  void begin(const Piece& piece);
  void settle(const std::shared_ptr<Request>& request);
  int64_t injected(const Piece& piece, int64_t result);

  const int64_t piece_bytes_;
  const int most_guesses_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::unordered_map<uint64_t, std::shared_ptr<Request>> requests_;
  std::deque<std::shared_ptr<Request>> queues_[2];  // urgent first
  std::deque<Piece> rests_;
  uint64_t last_id_ = 0;
  int64_t under_way_ = 0;
  int guesses_under_way_ = 0;
  bool closed_ = false;
  int64_t fail_begin_ = 0, fail_end_ = 0, short_limit_ = 0;
  int fail_error_ = 0, fail_times_ = 0;
};

}  // namespace moe
