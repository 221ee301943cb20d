#include "row_products.h"

namespace moe {
Chunks cut_into_row_chunks(const int32_t* offsets, int64_t experts) {
  constexpr int64_t MOST = 640, QUANTUM = 32;
  Chunks chunks;
  chunks.begin.reserve(experts + 1);
  for (int64_t e = 0; e < experts; ++e) {
    chunks.begin.push_back(static_cast<int32_t>(chunks.list.size()));
    const int64_t rows = offsets[e + 1] - offsets[e], pieces = std::max<int64_t>((rows + MOST - 1) / MOST, 1);
    const int64_t size = ((rows + pieces - 1) / pieces + QUANTUM - 1) / QUANTUM * QUANTUM;
    for (int64_t first = 0; first < rows; first += size) {
      const int32_t count = static_cast<int32_t>(std::min(size, rows - first));
      chunks.list.push_back(
          {static_cast<int32_t>(e), static_cast<int32_t>(offsets[e] + first), count, count, chunks.columns});
      chunks.columns += count;
    }
  }
  chunks.begin.push_back(static_cast<int32_t>(chunks.list.size()));
  return chunks;
}

RowTasks::RowTasks(const RowForm& form, const Chunks& chunks, int64_t columns, int64_t quantum, int64_t largest,
                   int threads) {
  for (const Chunk& chunk : chunks.list) rows = std::max<int64_t>(rows, chunk.count);
  int64_t fitting = form.product_columns(rows);
  if (largest > 0) fitting = std::min(fitting, largest);
  const int64_t pieces = std::max<int64_t>((columns + fitting - 1) / fitting, 1);
  const int64_t even = ((columns + pieces - 1) / pieces + quantum - 1) / quantum * quantum;
  list = cut_into_tasks(chunks, columns, std::max(even, quantum), quantum, threads);
  for (const Task& task : list) this->columns = std::max<int64_t>(this->columns, task.count);
}

RowScratch::RowScratch(const RowForm& form, const RowTasks& tasks, int64_t more_floats) {
  const size_t inner_bytes = Workspace::padded<char>(form.product_scratch(tasks.rows, tasks.columns));
  inner = static_cast<char*>(thread_scratch(inner_bytes + Workspace::padded<float>(more_floats)));
  more = reinterpret_cast<float*>(inner + inner_bytes);
}

Operand row_product(const Kernels& kern, const Chunks& chunks, const Task& task, const Rows& a, int64_t depth,
                    const Weight& w, int64_t first, float* weight_scratch, char* inner) {
  const Chunk& chunk = chunks.list[task.chunk];
  const Operand right = w.backward(kern, *kern.pairs, chunk.expert, first + task.first, task.count, weight_scratch);
  kern.rows->product(a.from(chunk.first), chunk.count, depth, right, task.count, inner);
  return right;
}

int64_t row_slice(int64_t rows, int64_t columns) {
  constexpr int64_t FLOATS = int64_t{64} << 20;
  const int64_t fitting = std::max<int64_t>(FLOATS / std::max<int64_t>(rows, 1) / BLOCK_ROWS, 1) * BLOCK_ROWS;
  return std::min(fitting, std::max<int64_t>(columns, 1));
}

void product_of_rows(const Kernels& kern, const Chunks& chunks, const Rows& a, int64_t depth, const Weight& w,
                     int64_t first, int64_t count, char* y, DType dtype, int threads) {
  const RowTasks tasks(*kern.rows, chunks, count, NF4_BLOCK, w.quantized ? BLOCK_ROWS : 0, threads);
  const int64_t item = item_size(dtype);
  for_each_task(tasks.list, threads, [&](const Task& task, const Task*) {
    const Chunk& chunk = chunks.list[task.chunk];
    RowScratch scratch(*kern.rows, tasks, w.backward_floats(task.count));
    const Operand right = row_product(kern, chunks, task, a, depth, w, first, scratch.more, scratch.inner);
    kern.rows->results(y + (chunk.first * count + task.first) * item, dtype, count * item, 0, chunk.count, chunk.count,
                       right, task.count, scratch.inner);
  });
}

void outer_product(const RowForm& form, const int32_t* offsets, const Rows& a, const Rows& b, const TensorView& out,
                   bool add, bool stream, int threads) {
  const int64_t experts = out.shape[0], features = out.shape[1], columns = out.shape[2], item = item_size(out.dtype);
  if (!add && !stream) prefer_huge_pages(out.data, static_cast<size_t>(out.numel() * item));
  if (features == 0 || columns == 0) return;
  struct Block {
    int64_t expert, first, count;
  };
  // Enough of them for all threads, however few experts there are.
  constexpr int64_t QUANTUM = 64;
  const int64_t wanted = threads > 1 ? 8 * threads : 1, share = (features * experts + wanted - 1) / wanted;
  std::vector<Block> blocks;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e];
    const int64_t even = std::max((share + QUANTUM - 1) / QUANTUM * QUANTUM, QUANTUM);
    const int64_t block = rows == 0 ? features : std::min(form.outer_block(rows), even);
    if (rows == 0 && add) continue;
    for (int64_t m = 0; m < features; m += block) blocks.push_back({e, m, std::min(block, features - m)});
  }
  int64_t scratch_bytes = 0;
  for (int64_t e = 0; e < experts; ++e)
    scratch_bytes = std::max(scratch_bytes, form.outer_scratch(offsets[e + 1] - offsets[e]));
  parallel_for(static_cast<int64_t>(blocks.size()), threads, [&](int64_t index) {
    const Block block = blocks[index];
    const int64_t row = offsets[block.expert], rows = offsets[block.expert + 1] - row;
    char* to = out.row(block.expert) + block.first * columns * item;
    if (rows == 0) {
      std::memset(to, 0, static_cast<size_t>(block.count * columns * item));
      return;
    }
    char* scratch = static_cast<char*>(thread_scratch(static_cast<size_t>(scratch_bytes)));
    Rows left = a.from(row);
    left.base += block.first * item_size(a.dtype);
    form.outer(to, columns * item, left, block.count, b.from(row), columns, rows, add, stream, scratch);
  });
}

}  // namespace moe
