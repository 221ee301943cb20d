// Bfloat16 from 12 bits: python/specmoe/offload/store/packing.py says how they lie.
#pragma once

#include <cstdint>
#include <cstring>

#include "vec.h"

namespace moe {
namespace {

// Plain loops over what was loaded before anything is stored: `out` may be where `blocks` are, and compilers make
// vectors of them.
inline void unpack_bf16(char* out, const char* blocks, int64_t count, int base) {
  const uint16_t lowest = static_cast<uint16_t>(base << 7);
  for (int64_t block = 0; block < count; ++block) {
    uint8_t low[64], codes[32];
    uint16_t values[64];
    std::memcpy(low, blocks + block * 96, sizeof low);
    std::memcpy(codes, blocks + block * 96 + 64, sizeof codes);
    for (int i = 0; i < 32; ++i) {
      const uint16_t bits = low[i];
      const uint16_t exponent = static_cast<uint16_t>(lowest + ((codes[i] & 15) << 7));
      values[i] = static_cast<uint16_t>(((bits & 0x80) << 8) | (bits & 0x7f) | exponent);
    }
    for (int i = 0; i < 32; ++i) {
      const uint16_t bits = low[32 + i];
      const uint16_t exponent = static_cast<uint16_t>(lowest + ((codes[i] >> 4) << 7));
      values[32 + i] = static_cast<uint16_t>(((bits & 0x80) << 8) | (bits & 0x7f) | exponent);
    }
    std::memcpy(out + block * 128, values, sizeof values);
  }
}

}  // namespace
}  // namespace moe
