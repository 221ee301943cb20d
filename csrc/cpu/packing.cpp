#include "packing.h"

#include <cstring>
#include <string>
#include <vector>

#include "common/error.h"
#include "dispatch.h"

namespace moe {
namespace {

constexpr int64_t VALUES = 64, BLOCK_BYTES = 96;  // of a block
constexpr int64_t HEADER = 8, POSITION = 4, VALUE = 2;
// One value in so many may lie outside of the fifteen exponents.
constexpr int64_t OUTSIDE = 256;

}  // namespace

void unpack_bf16(const TensorView& stored, const TensorView& out) {
  const char* op = "unpack_bf16";
  check_type(op, "stored", stored, DType::u8, {-1});
  check_type(op, "out", out, DType::u8, {-1});
  const int64_t values = out.numel() / 2, room = values / OUTSIDE, blocks = values / VALUES;
  const int64_t least = HEADER + room * (POSITION + VALUE) + blocks * BLOCK_BYTES;
  if (out.numel() % (2 * VALUES) != 0 || stored.numel() < least)
    throw Error("unpack_bf16: expected a multiple of 128 bytes and at least " + std::to_string(least) +
                " packed ones, got " + std::to_string(out.numel()) + " and " + std::to_string(stored.numel()));
  uint32_t head[2];
  std::memcpy(head, stored.data, sizeof head);
  const int64_t base = head[0], outside = head[1];
  if (base > 255 || outside > room)
    throw Error("unpack_bf16: expected an exponent below 256 and at most " + std::to_string(room) +
                " values outside of the window, got " + std::to_string(base) + " and " + std::to_string(outside));
  // Aside, since the values may be written over them.
  std::vector<uint32_t> positions(static_cast<size_t>(outside));
  std::vector<uint16_t> exact(static_cast<size_t>(outside));
  if (outside > 0) {
    std::memcpy(positions.data(), stored.data + HEADER, static_cast<size_t>(outside * POSITION));
    std::memcpy(exact.data(), stored.data + HEADER + room * POSITION, static_cast<size_t>(outside * VALUE));
  }
  for (const uint32_t position : positions)
    if (position >= values)
      throw Error("unpack_bf16: expected positions below " + std::to_string(values) + ", got " +
                  std::to_string(position));
  kernels().unpack_bf16(out.data, stored.data + stored.numel() - blocks * BLOCK_BYTES, blocks, static_cast<int>(base));
  for (size_t i = 0; i < exact.size(); ++i) std::memcpy(out.data + VALUE * positions[i], &exact[i], VALUE);
}

}  // namespace moe
