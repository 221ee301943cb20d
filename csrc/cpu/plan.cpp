#include "plan.h"

#include <algorithm>
#include <string>

#include "common/error.h"

namespace moe {
namespace {

template <typename Index>
void route_as(const Index* indices, int64_t tokens, int64_t slots, int64_t experts, int32_t* offsets,
              int32_t* row_token, int32_t* slot_row) {
  const int64_t rows = tokens * slots;
  std::fill(offsets, offsets + experts + 1, 0);
  for (int64_t n = 0; n < rows; ++n)
    if (static_cast<uint64_t>(indices[n]) < static_cast<uint64_t>(experts)) ++offsets[indices[n] + 1];
  for (int64_t e = 0; e < experts; ++e) offsets[e + 1] += offsets[e];
  std::vector<int32_t> next(offsets, offsets + experts);
  for (int64_t t = 0, n = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < slots; ++k, ++n) {
      slot_row[n] = -1;
      if (static_cast<uint64_t>(indices[n]) >= static_cast<uint64_t>(experts)) continue;
      const int32_t row = next[indices[n]]++;
      slot_row[n] = row;
      row_token[row] = static_cast<int32_t>(t);
    }
  }
  std::fill(row_token + offsets[experts], row_token + rows, 0);
}

[[noreturn]] void fail(const char* op, const char* name, const std::string& expected, int64_t got) {
  throw Error(std::string(op) + ": " + name + ": expected " + expected + ", got " + std::to_string(got));
}

}  // namespace

void route(const TensorView& indices, int64_t experts, int32_t* offsets, int32_t* row_token, int32_t* slot_row) {
  const int64_t tokens = indices.shape[0], slots = indices.shape[1];
  if (indices.dtype == DType::i64)
    route_as(indices.as<const int64_t>(), tokens, slots, experts, offsets, row_token, slot_row);
  else
    route_as(indices.as<const int32_t>(), tokens, slots, experts, offsets, row_token, slot_row);
}

Chunks cut_into_chunks(const Kernels& kernels, const Form& form, const int32_t* offsets, int64_t experts,
                       int64_t depth) {
  // Packed words of a chunk: 1.25 MiB, of 2 MiB that a core with AMX has.
  constexpr int64_t WORDS = int64_t{320} << 10, LEAST = 64;
  int64_t most = form.chunk_rows;
  if (form.panel && depth > 0)
    most = std::clamp(WORDS / form.words(depth) / kernels.lanes * kernels.lanes, LEAST, CHUNK_ROWS);
  Chunks chunks;
  chunks.kept = form.panel > 0;
  chunks.begin.reserve(experts + 1);
  for (int64_t e = 0; e < experts; ++e) {
    chunks.begin.push_back(static_cast<int32_t>(chunks.list.size()));
    const int64_t rows = offsets[e + 1] - offsets[e];
    if (rows == 0) continue;
    const auto add = [&](int64_t first, int64_t count) {
      const int64_t pitch = pitch_of(kernels, form, count);
      chunks.list.push_back({static_cast<int32_t>(e), static_cast<int32_t>(offsets[e] + first),
                             static_cast<int32_t>(count), static_cast<int32_t>(pitch), chunks.columns});
      chunks.columns += pitch;
    };
    // A few rows above whole vectors are cheaper by themselves than as another vector.
    const int64_t above = rows % kernels.lanes, tail = rows > kernels.lanes && above <= form.tail_columns ? above : 0;
    const int64_t whole = rows - tail, pieces = (whole + most - 1) / most;
    const int64_t size = pitch_of(kernels, form, (whole + pieces - 1) / pieces);
    for (int64_t first = 0; first < whole; first += size) add(first, std::min(size, whole - first));
    if (tail > 0) add(whole, tail);
  }
  chunks.begin.push_back(static_cast<int32_t>(chunks.list.size()));
  return chunks;
}

void check_offsets(const char* op, const TensorView& offsets, int64_t rows) {
  const int32_t* value = offsets.as<const int32_t>();
  int32_t before = 0;
  for (int64_t e = 0; e < offsets.shape[0]; ++e) {
    if (value[e] < before || value[e] > rows || (e == 0 && value[e] != 0))
      fail(op, "offsets", "values rising from 0 to at most N=" + std::to_string(rows), value[e]);
    before = value[e];
  }
}

void check_row_token(const char* op, const TensorView& row_token, int64_t valid_rows, int64_t tokens) {
  const int32_t* value = row_token.as<const int32_t>();
  for (int64_t n = 0; n < valid_rows; ++n)
    if (value[n] < 0 || value[n] >= tokens) fail(op, "row_token", "tokens below T=" + std::to_string(tokens), value[n]);
}

void check_slot_row(const char* op, const TensorView& slot_row, int64_t rows) {
  const int32_t* value = slot_row.as<const int32_t>();
  for (int64_t n = 0; n < slot_row.numel(); ++n)
    if (value[n] < -1 || value[n] >= rows) fail(op, "slot_row", "-1 or rows below N=" + std::to_string(rows), value[n]);
}

}  // namespace moe
