// AMX tiles: 8 registers of 16 rows by up to 64 bytes. With MOE_EMULATE_AMX they are memory, and the products follow
// the instructions' definition step by step, so that the kernels can be tested where there is no AMX.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace moe {
namespace {

constexpr int64_t TILE_SIDE = 16;  // rows of a tile, and 32-bit words of a row
constexpr int64_t TILE_ROW_BYTES = 64;
constexpr int64_t TILE_WORDS = TILE_SIDE * TILE_SIDE;  // 32-bit words of a tile

#if defined(MOE_EMULATE_AMX)

struct EmulatedTile {
  alignas(64) uint8_t row[TILE_SIDE][TILE_ROW_BYTES];
};
thread_local EmulatedTile emulated[8];
thread_local int64_t emulated_columns = TILE_SIDE;

// Around each product. (No object with a destructor: this code must not bring exception handling with it.)
inline void tile_begin(int64_t columns = TILE_SIDE) { emulated_columns = columns; }
inline void tile_end() {}

inline size_t tile_row_bytes(int tile) {
  return static_cast<size_t>(tile == 4 || tile == 5 ? TILE_ROW_BYTES : emulated_columns * 4);
}

template <int TILE>
inline void tile_zero() {
  std::memset(&emulated[TILE], 0, sizeof emulated[TILE]);
}
template <int TILE>
inline void tile_load(const void* base, int64_t stride) {
  std::memset(&emulated[TILE], 0, sizeof emulated[TILE]);
  for (int64_t r = 0; r < TILE_SIDE; ++r)
    std::memcpy(emulated[TILE].row[r], static_cast<const char*>(base) + r * stride, tile_row_bytes(TILE));
}
template <int TILE>
inline void tile_stream(const void* base, int64_t stride) {
  tile_load<TILE>(base, stride);
}
template <int TILE>
inline void tile_store(void* base, int64_t stride) {
  for (int64_t r = 0; r < TILE_SIDE; ++r)
    std::memcpy(static_cast<char*>(base) + r * stride, emulated[TILE].row[r], tile_row_bytes(TILE));
}

template <typename T>
inline T tile_get(const EmulatedTile& tile, int64_t row, int64_t index) {
  T value;
  std::memcpy(&value, tile.row[row] + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}
inline float tile_bf16(const EmulatedTile& tile, int64_t row, int64_t index) {
  const uint32_t bits = static_cast<uint32_t>(tile_get<uint16_t>(tile, row, index)) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// TDPBF16PS: the first and the second values of the pairs are summed apart from zero, then both are added.
template <int C, int A, int B>
inline void tile_dot_bf16() {
  for (int64_t m = 0; m < TILE_SIDE; ++m)
    for (int64_t n = 0; n < TILE_SIDE; ++n) {
      float first = 0.0f, second = 0.0f;
      for (int64_t k = 0; k < TILE_SIDE; ++k) {
        first += tile_bf16(emulated[A], m, 2 * k) * tile_bf16(emulated[B], k, 2 * n);
        second += tile_bf16(emulated[A], m, 2 * k + 1) * tile_bf16(emulated[B], k, 2 * n + 1);
      }
      const float sum = tile_get<float>(emulated[C], m, n) + (first + second);
      std::memcpy(emulated[C].row[m] + 4 * n, &sum, sizeof sum);
    }
}

// Signed bytes of A times bytes of B, of type `Right`: TDPBSUD and TDPBSSD.
template <class Right, int C, int A, int B>
inline void emulated_dot_bytes() {
  for (int64_t m = 0; m < TILE_SIDE; ++m)
    for (int64_t n = 0; n < TILE_SIDE; ++n) {
      int32_t sum = tile_get<int32_t>(emulated[C], m, n);
      for (int64_t k = 0; k < TILE_SIDE; ++k)
        for (int64_t i = 0; i < 4; ++i)
          sum += static_cast<int32_t>(tile_get<int8_t>(emulated[A], m, 4 * k + i)) *
                 static_cast<int32_t>(tile_get<Right>(emulated[B], k, 4 * n + i));
      std::memcpy(emulated[C].row[m] + 4 * n, &sum, sizeof sum);
    }
}

template <int C, int A, int B>
inline void tile_dot_int8() {
  emulated_dot_bytes<uint8_t, C, A, B>();
}

#else

// What LDTILECFG reads. Tiles 4 and 5 have their full size; what is smaller is filled up with zeros in memory. The
// others have 16 rows of `columns` words: rows that lie closer than 64 bytes are then read without what follows them,
// six times as fast where they are a word each (Xeon with AMX, 2.2 instead of 13.3 ns a tile).
struct alignas(64) TileConfig {
  constexpr TileConfig() : TileConfig(TILE_SIDE) {}
  explicit constexpr TileConfig(int64_t columns) {
    for (int t = 0; t < 8; ++t) {
      rows[t] = TILE_SIDE;
      row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? TILE_ROW_BYTES : columns * 4);
    }
  }

  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "the layout that LDTILECFG reads");

inline void tile_begin(int64_t columns = TILE_SIDE) {
  struct Each {
    constexpr Each() {
      for (int64_t n = 0; n < TILE_SIDE; ++n) columns[n] = TileConfig(n + 1);
    }
    TileConfig columns[TILE_SIDE];
  };
  static constexpr Each EACH;
  _tile_loadconfig(&EACH.columns[columns - 1]);
}
// Leaves nothing for the system to save when the thread sleeps.
inline void tile_end() { _tile_release(); }

// The instructions name their tiles, so each number is written out.
#define MOE_EACH_TILE(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
template <int TILE>
inline __attribute__((always_inline)) void tile_zero() {
#define MOE_ONE(N) \
  if constexpr (TILE == N) _tile_zero(N);
  MOE_EACH_TILE(MOE_ONE)
#undef MOE_ONE
}
template <int TILE>
inline __attribute__((always_inline)) void tile_load(const void* base, int64_t stride) {
#define MOE_ONE(N) \
  if constexpr (TILE == N) _tile_loadd(N, base, stride);
  MOE_EACH_TILE(MOE_ONE)
#undef MOE_ONE
}
// The same for data that will not be used again soon: it leaves the first-level cache to the other operand.
template <int TILE>
inline __attribute__((always_inline)) void tile_stream(const void* base, int64_t stride) {
#define MOE_ONE(N) \
  if constexpr (TILE == N) _tile_stream_loadd(N, base, stride);
  MOE_EACH_TILE(MOE_ONE)
#undef MOE_ONE
}
template <int TILE>
inline __attribute__((always_inline)) void tile_store(void* base, int64_t stride) {
#define MOE_ONE(N) \
  if constexpr (TILE == N) _tile_stored(N, base, stride);
  MOE_EACH_TILE(MOE_ONE)
#undef MOE_ONE
}
#undef MOE_EACH_TILE

// C is 0 to 3, A 4 or 5, B 6 or 7.
#define MOE_EACH_PRODUCT(DO)                                                                                  \
  DO(0, 4, 6)                                                                                                 \
  DO(0, 5, 6)                                                                                                 \
  DO(0, 4, 7)                                                                                                 \
  DO(0, 5, 7)                                                                                                 \
  DO(1, 4, 6)                                                                                                 \
  DO(1, 5, 6)                                                                                                 \
  DO(1, 4, 7) DO(1, 5, 7) DO(2, 4, 6) DO(2, 5, 6) DO(2, 4, 7) DO(2, 5, 7) DO(3, 4, 6) DO(3, 5, 6) DO(3, 4, 7) \
      DO(3, 5, 7)
template <int C, int A, int B>
inline __attribute__((always_inline)) void tile_dot_bf16() {
  static_assert(C >= 0 && C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7), "tiles of these roles");
#define MOE_ONE(c, a, b) \
  if constexpr (C == c && A == a && B == b) _tile_dpbf16ps(c, a, b);
  MOE_EACH_PRODUCT(MOE_ONE)
#undef MOE_ONE
}
template <int C, int A, int B>
inline __attribute__((always_inline)) void tile_dot_int8() {
  static_assert(C >= 0 && C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7), "tiles of these roles");
#define MOE_ONE(c, a, b) \
  if constexpr (C == c && A == a && B == b) _tile_dpbsud(c, a, b);
  MOE_EACH_PRODUCT(MOE_ONE)
#undef MOE_ONE
}
#undef MOE_EACH_PRODUCT

#endif

// The sums of one or two tiles of rows by one or two of columns, in tiles 0 to 3: from c, or zero, and back.
template <int ROWS, int COLUMNS>
inline void load_sums(const float* c, int64_t ldc, bool accumulate) {
  if (!accumulate) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    return;
  }
  const int64_t stride = ldc * 4;
  const float* below = c + TILE_SIDE * ldc;
  tile_load<0>(c, stride);
  if constexpr (COLUMNS == 2) tile_load<1>(c + TILE_SIDE, stride);
  if constexpr (ROWS == 2) tile_load<2>(below, stride);
  if constexpr (ROWS == 2 && COLUMNS == 2) tile_load<3>(below + TILE_SIDE, stride);
}
template <int ROWS, int COLUMNS>
inline void store_sums(float* c, int64_t ldc) {
  const int64_t stride = ldc * 4;
  float* below = c + TILE_SIDE * ldc;
  tile_store<0>(c, stride);
  if constexpr (COLUMNS == 2) tile_store<1>(c + TILE_SIDE, stride);
  if constexpr (ROWS == 2) tile_store<2>(below, stride);
  if constexpr (ROWS == 2 && COLUMNS == 2) tile_store<3>(below + TILE_SIDE, stride);
}

}  // namespace
}  // namespace moe
