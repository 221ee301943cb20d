// Products over chunks of rows, one task per (expert, block of weight rows, chunk).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "common/scratch.h"
#include "common/thread_pool.h"
#include "dispatch.h"
#include "plan.h"
#include "weight.h"

namespace moe {

// Rows of the left operand that one task takes at most. Cut so, one task's results and packed activations fit in the
// second-level cache together.
constexpr int64_t BLOCK_ROWS = 128;

// The right operand of a chunk's product: rows to be gathered, or a chunk-wise packed tensor [word][pitch].
struct Right {
  const Rows* rows = nullptr;
  const float* packed = nullptr;

  static Right gathered(const Rows& rows) { return {&rows, nullptr}; }
  static Right of(const float* packed) { return {nullptr, packed}; }
};

struct Task {
  int32_t chunk;
  int32_t first;  // row of the block
  int32_t count;
};

// Fewer threads where there is too little to do: a parked one takes tens of microseconds to wake.
inline int threads_for(int threads, double nanoseconds) {
  return static_cast<int>(std::min<double>(threads, 1.0 + nanoseconds / 30000.0));
}

// Expected time of reading `weights` elements once and of `products` multiply-adds, on one thread.
inline double product_time(double weights, double products) { return weights / 7.0 + products / 40.0; }

// All (chunk, block) pairs with the chunks of one weight block side by side. `quantum` divides every block but the
// last.
std::vector<Task> cut_into_tasks(const Chunks& chunks, int64_t rows, int64_t largest, int64_t quantum, int threads);

// work(task, next) for all tasks. Neighbours go to one thread in order, as far as that leaves enough for all to do:
// `next`, where it is not null, is what this thread does after `task`.
template <typename Work>
void for_each_task(const std::vector<Task>& tasks, int threads, Work&& work) {
  constexpr int64_t SHARES = 8, LONGEST = 16;
  const int64_t count = static_cast<int64_t>(tasks.size());
  const int64_t run = std::clamp<int64_t>(count / (SHARES * threads), 1, LONGEST);
  parallel_for((count + run - 1) / run, threads, [&](int64_t index) {
    const int64_t end = std::min(count, (index + 1) * run);
    for (int64_t i = index * run; i < end; ++i) work(tasks[i], i + 1 < end ? &tasks[i + 1] : nullptr);
  });
}

// Scratch of one task: packed activations, results of `pieces` blocks, and what the inner kernel and the weight need.
struct TaskScratch {
  static constexpr int PIECES = 4;
  TaskScratch(const Kernels& kernels, const Form& form, int64_t block, int pieces, int64_t weight_floats = 0);

  float* packed;
  float* result[PIECES];
  float* inner;
  float* extra;   // 2 · (BLOCK_ROWS + CHUNK_ROWS) floats for the epilogue's own use
  float* weight;  // `weight_floats` floats
};

// result[p][m][n] = Σ_k a[p](m, k) · right(k, n) for m < rows and the chunk's columns n; the pitch is the chunk's.
void block_product(const Form& form, TaskScratch& scratch, const Operand* a, int pieces, int64_t rows, int64_t depth,
                   const Chunk& chunk, const Right& right);

// Packs rows of `depth` values into a chunk-wise packed tensor.
void pack_rows(const Form& form, const Chunks& chunks, const Rows& rows, int64_t depth, float* packed, int threads);

// Puts rows [first, first + rows) of a block [row][pitch] into a chunk-wise packed tensor of `depth` rows.
void pack_block(const Form& form, float* packed, const Chunk& chunk, int64_t depth, int64_t first, const float* block,
                int64_t rows);

// Results per row (N, columns) in float32, made and used in slices of columns so that they stay in the cache.
struct Slices {
  Slices(int64_t rows, int64_t columns, int64_t lanes);
  int64_t width;
  int64_t floats;
};

// Adds the expert's biases from `first` on to the rows of a block [rows][pitch].
inline void add_row_bias(const Kernels& kernels, float* block, int64_t pitch, int64_t rows, const TensorView& bias,
                         int64_t expert, int64_t first) {
  const int64_t item = item_size(bias.dtype);
  for (int64_t m = 0; m < rows; ++m) {
    float value;
    kernels.load(&value, bias.row(expert) + (first + m) * item, bias.dtype, 1);
    kernels.add_value(block + m * pitch, value, pitch);
  }
}

}  // namespace moe
