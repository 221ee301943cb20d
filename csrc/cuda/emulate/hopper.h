// The functions of cuda/hopper.cuh and cuda/wgmma.cuh on a CPU, as the PTX ISA describes them.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/emulate/ptx.h"
#include "cuda/tensor_map.h"

namespace moe::emulate {

// An mbarrier: its phase is over when all have arrived and all bytes have landed.
struct PhaseBarrier {
  int arrivals = 0;
  int missing = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;

  void advance() {
    if (missing || bytes) return;
    ++phase;
    missing = arrivals;
  }
};

inline PhaseBarrier& phase_barrier(char* at) {
  static std::map<char*, PhaseBarrier> all;
  return all[at];
}

// Address of a 16-byte piece after the 128-byte swizzle.
inline uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// The products of a warpgroup that are under way. They are computed when they are waited for: shared memory that was
// overwritten before gives a wrong result, and sums that are read before are not there yet.
struct Products {
  uint64_t block = 0;
  std::vector<std::vector<std::function<void()>>> groups{1};
};
inline Products& products_of_warpgroup() {
  static Products all[8];
  Products& own = all[thread_rank() / WARPGROUP];
  if (own.block != blocks_begun) own = Products{blocks_begun};
  return own;
}

inline uint16_t element_at(uint32_t address) {
  uint16_t bits;
  std::memcpy(&bits, dynamic_shared() + swizzle_128(address), 2);
  return bits;
}

// The element (index, k) of an operand whose descriptor is given; k < 16.
inline uint16_t element_of(uint64_t descriptor, bool across_k, int index, int k) {
  if (descriptor >> 62 != 1 || descriptor >> 49 & 7) fail("wgmma: not the 128-byte swizzle, or a base offset");
  const auto field = [descriptor](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4; };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  const uint32_t i = static_cast<uint32_t>(index), j = static_cast<uint32_t>(k);
  if (across_k) return element_at(start + i % 64 * 2 + i / 64 * leading + j % 8 * 128 + j / 8 * stride);
  return element_at(start + i % 8 * 128 + i / 8 * stride + j * 2);
}

}  // namespace moe::emulate

namespace moe::cuda::ptx {

inline uint32_t descriptor_address(SharedPtr pointer) {
  return static_cast<uint32_t>(reinterpret_cast<unsigned char*>(pointer) - emulate::dynamic_shared());
}

inline void barrier_init(SharedPtr barrier, int arrivals) {
  emulate::phase_barrier(barrier) = {arrivals, arrivals, 0, 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive(SharedPtr barrier) {
  emulate::PhaseBarrier& b = emulate::phase_barrier(barrier);
  if (b.missing == 0) emulate::fail("mbarrier.arrive: nobody else was to come");
  --b.missing;
  b.advance();
}
inline void barrier_expect(SharedPtr barrier, int bytes) { emulate::phase_barrier(barrier).bytes += bytes; }
inline void barrier_wait(SharedPtr barrier, uint32_t parity) {
  const emulate::PhaseBarrier& b = emulate::phase_barrier(barrier);
  emulate::block_until("mbarrier.try_wait", [&b, parity] { return (b.phase & 1) != parity; });
}

inline void copy_box(SharedPtr to, const TensorMap* map, int32_t x, int32_t y, int32_t z, SharedPtr barrier) {
  BoxedTensor tensor;
  std::memcpy(static_cast<void*>(&tensor), map, sizeof tensor);
  const uint32_t first = descriptor_address(to);
  if (first % 1024) emulate::fail("TMA: the tile does not begin at a multiple of 1024");
  const auto land = [=] {
    for (int32_t row = 0; row < tensor.rows; ++row)
      for (int32_t column = 0; column < BOX_WIDTH; ++column) {
        const int64_t at[3] = {int64_t{x} + column, int64_t{y} + row, z};
        bool inside = true;
        for (int i = 0; i < 3; ++i) inside = inside && at[i] >= 0 && at[i] < tensor.sizes[i];
        const uint16_t zero = 0;
        const void* from = &zero;
        if (inside)
          from =
              static_cast<const uint16_t*>(tensor.data) + at[0] + at[1] * tensor.strides[0] + at[2] * tensor.strides[1];
        const uint32_t offset = emulate::swizzle_128(first + static_cast<uint32_t>(row * BOX_WIDTH + column) * 2);
        std::memcpy(emulate::dynamic_shared() + offset, from, 2);
      }
    emulate::PhaseBarrier& b = emulate::phase_barrier(barrier);
    b.bytes -= tensor.rows * BOX_WIDTH * 2;
    b.advance();
  };
  // As in copy_async: half of them at once, half as late as they may.
  if (emulate::coin())
    land();
  else
    emulate::later(land);
}

inline void prefetch_map(const TensorMap*) {}
inline void fence_for_tensor_cores() {}

template <int REGISTERS>
void give_registers() {}
template <int REGISTERS>
void take_registers() {}

inline void wgmma_fence() {}

inline void wgmma_commit() {
  int nothing = 0;
  emulate::warpgroup_collective("wgmma.commit_group", nothing,
                                [](int**) { emulate::products_of_warpgroup().groups.emplace_back(); });
}

template <int PENDING>
void wgmma_wait() {
  int nothing = 0;
  emulate::warpgroup_collective("wgmma.wait_group", nothing, [](int**) {
    auto& groups = emulate::products_of_warpgroup().groups;
    for (; groups.size() > PENDING + 1; groups.erase(groups.begin()))
      for (const auto& product : groups.front()) product();
  });
}

template <bool A_ACROSS_K, bool B_ACROSS_K, typename T>
void wgmma(float (&d)[128], uint64_t a, uint64_t b, bool add, T kind) {
  struct Thread {
    float* d;
    uint64_t a, b;
    bool add;
  } mine{d, a, b, add};
  emulate::warpgroup_collective("wgmma", mine, [kind](Thread** threads) {
    std::vector<float*> sums(emulate::WARPGROUP);
    for (int i = 0; i < emulate::WARPGROUP; ++i) {
      sums[i] = threads[i]->d;
      if (threads[i]->a != threads[0]->a || threads[i]->b != threads[0]->b || threads[i]->add != threads[0]->add)
        emulate::fail("wgmma: the threads of a warpgroup do not agree");
    }
    const uint64_t left = threads[0]->a, right = threads[0]->b;
    const bool add = threads[0]->add;
    emulate::products_of_warpgroup().groups.back().push_back([=] {
      static float a[64][16], b[16][256];
      for (int k = 0; k < 16; ++k) {
        for (int i = 0; i < 64; ++i)
          a[i][k] = emulate::half_to_float(emulate::element_of(left, A_ACROSS_K, i, k), kind);
        for (int i = 0; i < 256; ++i)
          b[k][i] = emulate::half_to_float(emulate::element_of(right, B_ACROSS_K, i, k), kind);
      }
      for (int row = 0; row < 64; ++row) {
        float sum[256] = {};
        // Where the row is in the fragments: its warp, and which of a lane's two rows.
        float* const* lanes = &sums[row / 16 * 32 + row % 8 * 4];
        const int half = row % 16 / 8 * 2;
        for (int i = 0; i < 256 && add; ++i) sum[i] = lanes[i % 8 / 2][i / 8 * 4 + half + i % 2];
        for (int k = 0; k < 16; ++k)
          for (int i = 0; i < 256; ++i) sum[i] += a[row][k] * b[k][i];
        for (int i = 0; i < 256; ++i) lanes[i % 8 / 2][i / 8 * 4 + half + i % 2] = sum[i];
      }
    });
  });
}

}  // namespace moe::cuda::ptx
