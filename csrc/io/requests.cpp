#include "requests.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "common/error.h"

namespace moe {
namespace {

// A direct read that is cut at anything else met the end of the file, and could not be continued from there.
constexpr int64_t SECTOR = 512;

}  // namespace

std::string describe(const Outcome& outcome) {
  if (outcome.error == END_OF_FILE) return "the file ends at byte " + std::to_string(outcome.error_at);
  return std::string(std::strerror(outcome.error)) + " (errno " + std::to_string(outcome.error) + ") at byte " +
         std::to_string(outcome.error_at);
}

uint64_t Requests::submit(int64_t offset, int64_t bytes, char* address, bool urgent) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) throw Error("Reader: it was closed");
  auto request = std::make_shared<Request>(Request{++last_id_, offset, bytes, address, urgent});
  requests_[request->id] = request;
  if (bytes == 0) {
    request->finished = true;
  } else {
    queues_[urgent ? 0 : 1].push_back(request);
    work_.notify_all();
  }
  return request->id;
}

bool Requests::cancel(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = requests_.find(id);
  if (found == requests_.end() || found->second->finished || found->second->next > 0) return false;
  found->second->error = ECANCELED;
  found->second->error_at = found->second->offset;
  settle(found->second);
  return true;
}

bool Requests::promote(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = requests_.find(id);
  if (found == requests_.end() || found->second->finished || found->second->urgent) return false;
  const auto request = found->second;
  const auto waits = [&](const Piece& rest) { return rest.request == request; };
  const auto resting = std::count_if(rests_.begin(), rests_.end(), waits);
  request->urgent = true;
  // From here on its pieces are none of the guesses'.
  guesses_under_way_ -= request->pieces - static_cast<int>(resting);
  auto& guesses = queues_[1];
  const auto place = std::find(guesses.begin(), guesses.end(), request);
  if (place != guesses.end()) {
    guesses.erase(place);
    queues_[0].push_back(request);
  }
  work_.notify_all();
  return true;
}

void Requests::abandon(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = requests_.find(id);
  if (found == requests_.end() || found->second->finished) return;
  if (!found->second->error) found->second->error = ECANCELED;
  settle(found->second);
}

void Requests::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  for (auto& entry : requests_) {
    if (entry.second->finished) continue;
    if (!entry.second->error) entry.second->error = ECANCELED;
    settle(entry.second);
  }
  work_.notify_all();
}

// Takes a request that has an error out of the queues, and ends it when none of its pieces is under way.
void Requests::settle(const std::shared_ptr<Request>& request) {
  auto& queue = queues_[request->urgent ? 0 : 1];
  queue.erase(std::remove(queue.begin(), queue.end(), request), queue.end());
  for (auto rest = rests_.begin(); rest != rests_.end();) {
    if (rest->request == request) {
      if (request->error == END_OF_FILE) request->error_at = std::min(request->error_at, rest->offset);
      rest = rests_.erase(rest);
      --request->pieces;
    } else {
      ++rest;
    }
  }
  if (request->pieces == 0) {
    request->finished = true;
    done_.notify_all();
  }
}

bool Requests::wait(uint64_t id, double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  auto found = requests_.find(id);
  if (found == requests_.end()) throw Error("Reader: no request " + std::to_string(id));
  const auto request = found->second;
  return done_.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return request->finished; });
}

Outcome Requests::take(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = requests_.find(id);
  if (found == requests_.end() || !found->second->finished)
    throw Error("Reader: request " + std::to_string(id) + " is not finished");
  const Outcome outcome{found->second->error, found->second->error_at};
  requests_.erase(found);
  return outcome;
}

bool Requests::next(Piece& piece) {
  std::lock_guard<std::mutex> lock(mutex_);
  return next_locked(piece);
}

bool Requests::wait_next(Piece& piece) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (next_locked(piece)) return true;
    if (closed_) return false;
    work_.wait(lock);
  }
}

bool Requests::next_locked(Piece& piece) {
  if (!rests_.empty()) {
    piece = rests_.front();
    rests_.pop_front();
    begin(piece);
    return true;
  }
  for (auto& queue : queues_) {
    if (queue.empty() || (&queue == &queues_[1] && guesses_under_way_ >= most_guesses_)) continue;
    const auto request = queue.front();
    const int64_t bytes = std::min(piece_bytes_, request->bytes - request->next);
    piece = {request, request->offset + request->next, bytes, request->address + request->next};
    request->next += bytes;
    ++request->pieces;
    begin(piece);
    if (request->next == request->bytes) queue.pop_front();
    return true;
  }
  return false;
}

void Requests::begin(const Piece& piece) {
  ++under_way_;
  guesses_under_way_ += !piece.request->urgent;
}

int64_t Requests::injected(const Piece& piece, int64_t result) {
  if (fail_times_ > 0 && piece.offset < fail_end_ && piece.offset + piece.bytes > fail_begin_) {
    --fail_times_;
    return -fail_error_;
  }
  return short_limit_ > 0 ? std::min(result, short_limit_) : result;
}

bool Requests::finish(const Piece& piece, int64_t result) {
  std::lock_guard<std::mutex> lock(mutex_);
  Request& request = *piece.request;
  --under_way_;
  if (!request.urgent) {
    --guesses_under_way_;
    if (!queues_[1].empty()) work_.notify_one();
  }
  result = injected(piece, result);
  const int64_t end = piece.offset + result;
  if (result == -EINTR || result == -EAGAIN) {
    result = 0;
  } else if (result < 0) {
    if (!request.error) request.error = static_cast<int>(-result), request.error_at = piece.offset;
  } else if (result < piece.bytes && (result == 0 || result % SECTOR != 0 || request.error == END_OF_FILE)) {
    // Pieces end in any order: the file ends where the first of them was cut.
    if (!request.error || (request.error == END_OF_FILE && end < request.error_at)) request.error_at = end;
    if (!request.error) request.error = END_OF_FILE;
  }
  if (result >= 0 && result < piece.bytes && !request.error) {
    rests_.push_back({piece.request, piece.offset + result, piece.bytes - result, piece.address + result});
    work_.notify_one();
    return true;
  }
  --request.pieces;
  if (request.error) {
    settle(piece.request);
  } else if (request.pieces == 0 && request.next == request.bytes) {
    request.finished = true;
    done_.notify_all();
  }
  return false;
}

int64_t Requests::waiting() {
  std::lock_guard<std::mutex> lock(mutex_);
  int64_t count = 0;
  for (const auto& queue : queues_)
    for (const auto& request : queue) count += request->next == 0;
  return count;
}

int64_t Requests::under_way() {
  std::lock_guard<std::mutex> lock(mutex_);
  return under_way_;
}

void Requests::inject_error(int64_t begin, int64_t end, int error, int times) {
  std::lock_guard<std::mutex> lock(mutex_);
  fail_begin_ = begin, fail_end_ = end, fail_error_ = error, fail_times_ = times;
}

void Requests::inject_short(int64_t limit) {
  std::lock_guard<std::mutex> lock(mutex_);
  short_limit_ = limit;
}

}  // namespace moe
