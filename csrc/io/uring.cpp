// Reads by the kernel's queue, through its system calls: submitters fill the queue, one thread takes what is done.
#include <string>

#include "engine.h"

#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#define MOE_HAVE_URING 1
#endif
#endif

#ifdef MOE_HAVE_URING

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace moe {
namespace {

int uring_setup(unsigned entries, io_uring_params* params) {
  return static_cast<int>(syscall(__NR_io_uring_setup, entries, params));
}

int uring_enter(int fd, unsigned submit, unsigned complete, unsigned flags) {
  return static_cast<int>(syscall(__NR_io_uring_enter, fd, submit, complete, flags, nullptr, 0));
}

struct Mapping {
  void* address = MAP_FAILED;
  size_t bytes = 0;

  bool map(int fd, size_t size, off_t offset) {
    bytes = size;
    address = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
    return address != MAP_FAILED;
  }
  ~Mapping() {
    if (address != MAP_FAILED) munmap(address, bytes);
  }
  template <typename T>
  T* at(uint32_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(address) + offset);
  }
};

class UringEngine : public ReadEngine {
 public:
  UringEngine(int file, Requests& requests, int depth) : file_(file), requests_(requests), flying_(depth) {
    for (int i = depth; i-- > 0;) free_.push_back(i);
  }

  ~UringEngine() override {
    stop();
    if (ring_ >= 0) ::close(ring_);
  }

  // An empty text, or why there can be no ring here.
  std::string start() {
    io_uring_params params{};
    // One more than the reads under way: the request that ends the thread.
    ring_ = uring_setup(static_cast<unsigned>(flying_.size()) + 1, &params);
    if (ring_ < 0) return std::string("io_uring_setup: ") + std::strerror(errno);
    if (!(params.features & IORING_FEAT_SINGLE_MMAP) || !(params.features & IORING_FEAT_RW_CUR_POS))
      return "the kernel's io_uring is older than 5.6";
    const size_t queues = std::max(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                                   params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    if (!rings_.map(ring_, queues, IORING_OFF_SQ_RING) ||
        !entries_.map(ring_, params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES))
      return std::string("mmap of io_uring: ") + std::strerror(errno);
    sq_tail_ = rings_.at<unsigned>(params.sq_off.tail);
    sq_mask_ = *rings_.at<unsigned>(params.sq_off.ring_mask);
    sq_array_ = rings_.at<unsigned>(params.sq_off.array);
    cq_head_ = rings_.at<unsigned>(params.cq_off.head);
    cq_tail_ = rings_.at<unsigned>(params.cq_off.tail);
    cq_mask_ = *rings_.at<unsigned>(params.cq_off.ring_mask);
    cqes_ = rings_.at<io_uring_cqe>(params.cq_off.cqes);
    thread_ = std::thread([this] { run(); });
    return "";
  }

  void pump() override {
    std::lock_guard<std::mutex> lock(submission_);
    unsigned filled = 0;
    while (!free_.empty()) {
      const int slot = free_.back();
      if (!requests_.next(flying_[slot])) break;
      free_.pop_back();
      const Piece& piece = flying_[slot];
      io_uring_sqe& entry = claim();
      entry.opcode = IORING_OP_READ;
      entry.fd = file_;
      entry.addr = reinterpret_cast<uintptr_t>(piece.address);
      entry.len = static_cast<unsigned>(piece.bytes);
      entry.off = static_cast<uint64_t>(piece.offset);
      entry.user_data = static_cast<uint64_t>(slot) + 1;
      publish();
      ++filled;
    }
    hand_over(filled);
  }

  void stop() override {
    if (!thread_.joinable()) return;
    {
      std::lock_guard<std::mutex> lock(submission_);
      claim().opcode = IORING_OP_NOP;
      publish();
      hand_over(1);
    }
    thread_.join();
  }

  const char* name() const override { return "io_uring"; }

 private:
  io_uring_sqe& claim() {
    const unsigned index = *sq_tail_ & sq_mask_;
    sq_array_[index] = index;
    io_uring_sqe& entry = static_cast<io_uring_sqe*>(entries_.address)[index];
    std::memset(&entry, 0, sizeof(entry));
    return entry;
  }

  void publish() { __atomic_store_n(sq_tail_, *sq_tail_ + 1, __ATOMIC_RELEASE); }

  // The kernel takes the entries at once, so that there is always room for as many as may be under way.
  void hand_over(unsigned count) {
    while (count > 0) {
      const int taken = uring_enter(ring_, count, 0, 0);
      if (taken > 0)
        count -= static_cast<unsigned>(taken);
      else if (errno != EINTR && errno != EAGAIN && errno != EBUSY)
        std::terminate();
    }
  }

  void run() {
    bool stopping = false;
    while (!stopping || busy() > 0) {
      uring_enter(ring_, 0, 1, IORING_ENTER_GETEVENTS);
      unsigned head = *cq_head_;
      while (head != __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE)) {
        const io_uring_cqe done = cqes_[head & cq_mask_];
        __atomic_store_n(cq_head_, ++head, __ATOMIC_RELEASE);
        if (done.user_data == 0)
          stopping = true;
        else
          land(static_cast<int>(done.user_data - 1), done.res);
      }
      pump();
    }
  }

  void land(int slot, int64_t result) {
    const Piece piece = std::move(flying_[slot]);
    {
      std::lock_guard<std::mutex> lock(submission_);
      free_.push_back(slot);
    }
    requests_.finish(piece, result);
  }

  size_t busy() {
    std::lock_guard<std::mutex> lock(submission_);
    return flying_.size() - free_.size();
  }

  const int file_;
  Requests& requests_;
  std::vector<Piece> flying_;
  std::vector<int> free_;
  std::mutex submission_;
  std::thread thread_;
  int ring_ = -1;
  Mapping rings_, entries_;
  unsigned *sq_tail_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
  unsigned sq_mask_ = 0, cq_mask_ = 0;
  io_uring_cqe* cqes_ = nullptr;
};

}  // namespace

std::unique_ptr<ReadEngine> make_uring_engine(int fd, Requests& requests, int depth, std::string& reason) {
  auto engine = std::make_unique<UringEngine>(fd, requests, depth);
  reason = engine->start();
  if (!reason.empty()) return nullptr;
  return engine;
}

}  // namespace moe

#else

namespace moe {

std::unique_ptr<ReadEngine> make_uring_engine(int, Requests&, int, std::string& reason) {
  reason = "io_uring is Linux's";
  return nullptr;
}

}  // namespace moe

#endif
