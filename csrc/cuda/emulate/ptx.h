// The instructions of cuda/ptx.cuh on a CPU, as the PTX ISA describes them.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "cuda/emulate/block.h"
#include "cuda/kernel.h"

namespace moe::emulate {

// A copy may land at any time until it is waited for. About half of them land at once and half as late as they may, so
// that a thread that does not wait reads old bytes, and one that copies over what others still read overwrites it.
struct Copy {
  void* to;
  const void* from;
  bool valid;

  void land() const {
    if (valid)
      std::memcpy(to, from, 16);
    else
      std::memset(to, 0, 16);
  }
};

inline bool coin() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return state >> 31;
}

struct Copies {
  uint64_t block = 0;
  std::deque<std::vector<Copy>> groups{1};  // the last one is not committed yet
};

inline Copies& copies_of_thread() {
  static std::vector<Copies> all(1024);
  Copies& own = all[thread_rank()];
  if (own.block != blocks_begun) own = Copies{blocks_begun};
  return own;
}

inline float half_to_float(uint16_t bits, __half) {
  __half_raw raw;
  raw.x = bits;
  return __half2float(__half(raw));
}
inline float half_to_float(uint16_t bits, __nv_bfloat16) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

}  // namespace moe::emulate

namespace moe::cuda {

using SharedPtr = char*;
inline SharedPtr shared_address(void* pointer) { return static_cast<char*>(pointer); }

namespace ptx {

inline void copy_async(SharedPtr to, const void* from, bool valid) {
  auto& copies = emulate::copies_of_thread();
  if ((reinterpret_cast<uintptr_t>(to) | (valid ? reinterpret_cast<uintptr_t>(from) : 0)) % 16)
    emulate::fail("cp.async: an address is no multiple of 16");
  const emulate::Copy copy{to, from, valid};
  if (emulate::coin())
    copy.land();
  else
    copies.groups.back().push_back(copy);
}

inline void copy_async_commit() { emulate::copies_of_thread().groups.emplace_back(); }

template <int PENDING>
void copy_async_wait() {
  auto& groups = emulate::copies_of_thread().groups;
  for (; groups.size() > PENDING + 1; groups.pop_front())
    for (const emulate::Copy& copy : groups.front()) copy.land();
}

template <bool TRANSPOSED>
void load_matrices(uint32_t (&r)[4], SharedPtr row) {
  struct Lane {
    const char* row;
    uint32_t* r;
  } mine{row, r};
  if (reinterpret_cast<uintptr_t>(row) % 16) emulate::fail("ldmatrix: an address is no multiple of 16");
  emulate::warp_collective("ldmatrix", mine, [](Lane** lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t element[8][8];
      for (int i = 0; i < 8; ++i) std::memcpy(element[i], lanes[8 * matrix + i]->row, 16);
      for (int lane = 0; lane < 32; ++lane) {
        const int i = lane / 4, j = lane % 4 * 2;
        const uint16_t low = TRANSPOSED ? element[j][i] : element[i][j];
        const uint16_t high = TRANSPOSED ? element[j + 1][i] : element[i][j + 1];
        lanes[lane]->r[matrix] = low | uint32_t{high} << 16;
      }
    }
  });
}

template <typename T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, T kind) {
  struct Lane {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } mine{c, a, {b0, b1}};
  emulate::warp_collective("mma.sync", mine, [kind](Lane** lanes) {
    float a[16][16], b[8][16];
    auto value = [kind](uint32_t word, int half) {
      return emulate::half_to_float(static_cast<uint16_t>(word >> 16 * half), kind);
    };
    for (int lane = 0; lane < 32; ++lane)
      for (int half = 0; half < 2; ++half) {
        const int row = lane / 4, k = lane % 4 * 2 + half;
        for (int i = 0; i < 4; ++i) a[row + i % 2 * 8][k + i / 2 * 8] = value(lanes[lane]->a[i], half);
        for (int i = 0; i < 2; ++i) b[row][k + i * 8] = value(lanes[lane]->b[i], half);
      }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = lanes[lane]->c[i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
        lanes[lane]->c[i] = sum;
      }
  });
}

}  // namespace ptx
}  // namespace moe::cuda
