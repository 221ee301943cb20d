// The routing plan on the native side, and how its rows are cut into chunks.
#pragma once

#include <cstdint>
#include <vector>

#include "common/view.h"
#include "isa/kernels.h"

namespace moe {

// offsets (E+1), row_token (N) and slot_row (T, K), int32, as moe_kernels.route gives them.
struct Plan {
  int64_t experts = 0, tokens = 0, slots = 0;  // E, T, K
  const int32_t* offsets = nullptr;
  const int32_t* row_token = nullptr;
  const int32_t* slot_row = nullptr;

  int64_t rows() const { return tokens * slots; }
  int64_t valid_rows() const { return offsets[experts]; }
};

// Sorts slots by expert, stably; indices are int32 or int64, and one outside [0, E) is no expert.
void route(const TensorView& indices, int64_t experts, int32_t* offsets, int32_t* row_token, int32_t* slot_row);

// No form works on more rows of one expert together.
constexpr int64_t CHUNK_ROWS = 320;

// Consecutive rows of one expert. Scratch tensors of a chunk are [feature][pitch], or [word][pitch] once packed, the
// chunk's rows along the columns.
struct Chunk {
  int32_t expert;
  int32_t first;           // row
  int32_t count;           // rows
  int32_t pitch;           // columns, count rounded up to whole vectors
  int64_t columns_before;  // sum of the pitches of the chunks before
};

// The cut depends on the row counts alone, never on the number of threads.
struct Chunks {
  std::vector<Chunk> list;
  std::vector<int32_t> begin;  // (E+1): expert e has the chunks begin[e] to begin[e+1]
  int64_t columns = 0;         // sum of all pitches
  bool kept = false;           // whether a chunk's columns stay in the cache while one weight block follows the other
};

// `depth`: the length of the rows that are packed, where as many of them as the second-level cache holds are one chunk.
Chunks cut_into_chunks(const Kernels& kernels, const Form& form, const int32_t* offsets, int64_t experts,
                       int64_t depth = 0);

// Pitch of a buffer with `count` columns: whole vectors, or exactly `count` where a product takes the few-column form.
inline int64_t pitch_of(const Kernels& kernels, const Form& form, int64_t count) {
  return count <= form.few_columns ? count : (count + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
}

// Throws unless offsets rise from 0 to at most N, tokens lie in [0, T) and rows in [-1, N).
void check_offsets(const char* op, const TensorView& offsets, int64_t rows);
void check_row_token(const char* op, const TensorView& row_token, int64_t valid_rows, int64_t tokens);
void check_slot_row(const char* op, const TensorView& slot_row, int64_t rows);

}  // namespace moe
