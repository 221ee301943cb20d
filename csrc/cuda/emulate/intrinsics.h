// What CUDA C++ has and C++ has not, for one fiber a thread. Included where a .cu file is compiled by a C++ compiler.
// atomicAdd exists for integers only: a sum of floats by atomics has no fixed order, and no kernel here may use one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/emulate/block.h"

#undef __shared__
#undef __constant__
#undef __launch_bounds__
#define __launch_bounds__(...)
#define __shared__ static
#define __constant__ static const

using std::max;
using std::min;

inline void __syncthreads() { moe::emulate::barrier_sync(0, 0); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  int nothing = 0;
  moe::emulate::warp_collective("__syncwarp", nothing, [](int**) {}, mask);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

namespace moe::emulate {

template <typename T>
struct Shuffled {
  T value, result;
};

// source(lane) is the lane to read; one that lies outside of the segment of `width` lanes leaves a lane its own value.
template <typename T, typename Source>
T shuffle(const char* what, uint32_t mask, T value, int width, Source source) {
  Shuffled<T> mine{value, value};
  warp_collective(
      what, mine,
      [&](Shuffled<T>** lanes) {
        for (int i = 0; i < WARP; ++i) {
          if (!lanes[i]) continue;
          const int from = source(i), segment = i / width * width;
          if (from < segment || from >= segment + width) continue;
          if (!lanes[from]) fail(std::string(what) + ": lane " + std::to_string(from) + " is read and not in the mask");
          lanes[i]->result = lanes[from]->value;
        }
      },
      mask);
  return mine.result;
}

template <typename T, typename Combine>
T reduce(const char* what, uint32_t mask, T value, Combine combine) {
  T mine = value;
  warp_collective(
      what, mine,
      [&](T** lanes) {
        T sum{};
        bool first = true;
        for (int i = 0; i < WARP; ++i)
          if (lanes[i]) {
            sum = first ? *lanes[i] : combine(sum, *lanes[i]);
            first = false;
          }
        for (int i = 0; i < WARP; ++i)
          if (lanes[i]) *lanes[i] = sum;
      },
      mask);
  return mine;
}

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace moe::emulate

// The lane that is read differs from thread to thread in __shfl_sync alone: each brings its own.
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  struct Mine {
    T value, result;
    int source;
  } mine{value, value, source};
  moe::emulate::warp_collective(
      "__shfl_sync", mine,
      [width](Mine** lanes) {
        for (int i = 0; i < 32; ++i) {
          if (!lanes[i]) continue;
          const int from = i / width * width + (lanes[i]->source & (width - 1));
          if (!lanes[from]) moe::emulate::fail("__shfl_sync: the lane that is read is not in the mask");
          lanes[i]->result = lanes[from]->value;
        }
      },
      mask);
  return mine.result;
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned step, int width = 32) {
  return moe::emulate::shuffle("__shfl_down_sync", mask, value, width,
                               [step](int i) { return i + static_cast<int>(step); });
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned step, int width = 32) {
  return moe::emulate::shuffle("__shfl_up_sync", mask, value, width,
                               [step](int i) { return i - static_cast<int>(step); });
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32) {
  return moe::emulate::shuffle("__shfl_xor_sync", mask, value, width, [lanes](int i) { return i ^ lanes; });
}

inline unsigned __ballot_sync(uint32_t mask, bool predicate) {
  const uint32_t mine = predicate ? 1u << moe::emulate::lane() : 0u;
  return moe::emulate::reduce("__ballot_sync", mask, mine, [](uint32_t a, uint32_t b) { return a | b; });
}
inline int __any_sync(uint32_t mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, bool predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <typename T>
unsigned __match_any_sync(uint32_t mask, T value) {
  struct Mine {
    T value;
    unsigned same;
  } mine{value, 0};
  moe::emulate::warp_collective(
      "__match_any_sync", mine,
      [](Mine** lanes) {
        for (int i = 0; i < 32; ++i)
          for (int j = 0; j < 32; ++j)
            if (lanes[i] && lanes[j] && lanes[i]->value == lanes[j]->value) lanes[i]->same |= 1u << j;
      },
      mask);
  return mine.same;
}

// sm_80 and above; integers only, as on the device.
template <typename T>
T __reduce_add_sync(uint32_t mask, T value) {
  static_assert(std::is_integral<T>::value && sizeof(T) == 4, "__reduce_add_sync takes 32-bit integers");
  return moe::emulate::reduce("__reduce_add_sync", mask, value, [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T value) {
  static_assert(std::is_integral<T>::value && sizeof(T) == 4, "__reduce_max_sync takes 32-bit integers");
  return moe::emulate::reduce("__reduce_max_sync", mask, value, [](T a, T b) { return std::max(a, b); });
}
template <typename T>
T __reduce_min_sync(uint32_t mask, T value) {
  static_assert(std::is_integral<T>::value && sizeof(T) == 4, "__reduce_min_sync takes 32-bit integers");
  return moe::emulate::reduce("__reduce_min_sync", mask, value, [](T a, T b) { return std::min(a, b); });
}

namespace moe::emulate {
inline int block_reduce(const char* what, int value, bool any) {
  int mine = value;
  const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  block_collective(what, mine, [=](int** all) {
    int sum = any ? 0 : 1;
    for (int i = 0; i < threads; ++i) sum = any ? sum + *all[i] : (sum && *all[i]);
    for (int i = 0; i < threads; ++i) *all[i] = sum;
  });
  return mine;
}
}  // namespace moe::emulate

inline int __syncthreads_count(int predicate) {
  return moe::emulate::block_reduce("__syncthreads_count", predicate != 0, true);
}
inline int __syncthreads_or(int predicate) {
  return moe::emulate::block_reduce("__syncthreads_or", predicate != 0, true) != 0;
}
inline int __syncthreads_and(int predicate) {
  return moe::emulate::block_reduce("__syncthreads_and", predicate != 0, false);
}

inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}
inline unsigned atomicInc(unsigned* address, unsigned most) {
  const unsigned before = *address;
  *address = before >= most ? 0 : before + 1;
  return before;
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
inline unsigned __float_as_uint(float x) { return moe::emulate::bits<unsigned>(x); }
inline int __float_as_int(float x) { return moe::emulate::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return moe::emulate::bits<float>(x); }
inline float __int_as_float(int x) { return moe::emulate::bits<float>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
