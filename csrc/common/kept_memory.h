// Memory for results that leave the native side: what is given back is kept for the next ones, so that the system does
// not have to clear it again.
#pragma once

#include <cstddef>

namespace moe {

class KeptBlock {
 public:
  // Takes the smallest kept block that is not much too large, or new memory; `bytes` is not 0.
  explicit KeptBlock(size_t bytes);
  // Gives it back to be kept, unless that would exceed the limit.
  ~KeptBlock();
  KeptBlock(const KeptBlock&) = delete;
  KeptBlock& operator=(const KeptBlock&) = delete;

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Whether the memory was in use before.
  bool used() const { return used_; }

 private:
  char* data_ = nullptr;
  size_t bytes_, capacity_ = 0;
  bool used_ = false;
};

// Bytes that are kept at most while nobody uses them. A lower limit frees what exceeds it at once.
void set_kept_limit(size_t bytes);
// Bytes that are kept now.
size_t kept_bytes();

}  // namespace moe
