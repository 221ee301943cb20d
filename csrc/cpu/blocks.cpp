#include "blocks.h"

namespace moe {

std::vector<Task> cut_into_tasks(const Chunks& chunks, int64_t rows, int64_t largest, int64_t quantum, int threads) {
  int64_t block = std::min((rows + quantum - 1) / quantum * quantum, largest);
  const int64_t wanted = threads > 1 ? 4 * threads : 1;
  const int64_t count = static_cast<int64_t>(chunks.list.size());
  while (block > quantum && count * ((rows + block - 1) / block) < wanted)
    block = std::max((block / 2 + quantum - 1) / quantum * quantum, quantum);
  std::vector<Task> tasks;
  if (rows == 0) return tasks;
  tasks.reserve(count * ((rows + block - 1) / block));
  for (size_t e = 0; e + 1 < chunks.begin.size(); ++e) {
    if (chunks.begin[e] == chunks.begin[e + 1]) continue;
    const auto add = [&](int32_t chunk, int64_t first) {
      tasks.push_back({chunk, static_cast<int32_t>(first), static_cast<int32_t>(std::min(block, rows - first))});
    };
    if (chunks.kept) {
      for (int32_t c = chunks.begin[e]; c < chunks.begin[e + 1]; ++c)
        for (int64_t first = 0; first < rows; first += block) add(c, first);
    } else {
      for (int64_t first = 0; first < rows; first += block)
        for (int32_t c = chunks.begin[e]; c < chunks.begin[e + 1]; ++c) add(c, first);
    }
  }
  return tasks;
}

namespace {

// What a task packs at a time, in words: a quarter of a second-level cache.
constexpr int64_t PACKED = 64 * 1024;

}  // namespace

TaskScratch::TaskScratch(const Kernels& kernels, const Form& form, int64_t block, int pieces, int64_t weight_floats) {
  const int64_t pitch = CHUNK_ROWS + kernels.lanes;
  // The inner kernel may write up to a whole tile of spare rows.
  const int64_t result_size = (block + form.tile_rows) * pitch;
  const int64_t inner_size = (form.scratch + 15) / 16 * 16;
  const int64_t extra_size = 2 * (BLOCK_ROWS + CHUNK_ROWS);
  const int64_t packed_size = std::max(PACKED, form.depth * pitch);
  const int64_t total = packed_size + pieces * result_size + inner_size + extra_size + weight_floats;
  packed = static_cast<float*>(thread_scratch(static_cast<size_t>(total) * sizeof(float)));
  for (int p = 0; p < PIECES; ++p) result[p] = p < pieces ? packed + packed_size + p * result_size : nullptr;
  inner = packed + packed_size + pieces * result_size;
  extra = inner + inner_size;
  weight = extra + extra_size;
}

void block_product(const Form& form, TaskScratch& scratch, const Operand* a, int pieces, int64_t rows, int64_t depth,
                   const Chunk& chunk, const Right& right) {
  const int64_t pitch = chunk.pitch, words = form.words(depth);
  const bool few = chunk.count <= form.few_columns;
  if (depth == 0)
    for (int p = 0; p < pieces; ++p)
      std::memset(scratch.result[p], 0, static_cast<size_t>(rows * pitch) * sizeof(float));
  // Few columns take long stretches of a weight's row at once, which memory likes best.
  const int64_t cuts = form.whole() ? 0 : std::max<int64_t>(PACKED / std::max<int64_t>(pitch, 1) / form.depth, 1);
  const bool at_once = form.whole() || (form.panel && right.packed);
  const int64_t step = at_once ? std::max<int64_t>(depth, 1) : cuts * form.depth * form.unit;
  for (int64_t k = 0; k < depth; k += step) {
    const int64_t part = std::min(step, depth - k);
    const float* b = scratch.packed;
    const int64_t ldb = form.ldb(right.packed ? depth : part, pitch);
    if (right.packed)
      b = right.packed + chunk.columns_before * words + k / form.unit * (few ? chunk.count : pitch);
    else
      form.pack_columns(scratch.packed, ldb, right.rows->from(chunk.first), chunk.count, k, part);
    for (int p = 0; p < pieces; ++p)
      form.product(scratch.result[p], pitch, a[p].at(0, k), rows, part, b, ldb, chunk.count, k > 0, scratch.inner);
  }
}

void pack_rows(const Form& form, const Chunks& chunks, const Rows& rows, int64_t depth, float* packed, int threads) {
  const int used = threads_for(threads, static_cast<double>(chunks.columns) * static_cast<double>(depth) / 8.0);
  parallel_for(static_cast<int64_t>(chunks.list.size()), used, [&](int64_t index) {
    const Chunk& chunk = chunks.list[index];
    form.pack_columns(packed + chunk.columns_before * form.words(depth), form.ldb(depth, chunk.pitch),
                      rows.from(chunk.first), chunk.count, 0, depth);
  });
}

void pack_block(const Form& form, float* packed, const Chunk& chunk, int64_t depth, int64_t first, const float* block,
                int64_t rows) {
  float* to = packed + chunk.columns_before * form.words(depth);
  form.pack_block(to, form.ldb(depth, chunk.pitch), first / form.unit, block, chunk.pitch, rows, chunk.count);
  if (first + rows != depth || chunk.count <= form.few_columns) return;
  // Products that take whole tiles of words read on to the end of the room.
  const int64_t end = (depth + form.unit - 1) / form.unit, words = form.words(depth);
  const int64_t width = form.panel ? form.panel : chunk.pitch;
  for (int64_t n = 0; n < chunk.pitch; n += width, to += words * width)
    std::fill(to + end * width, to + words * width, 0.0f);
}

Slices::Slices(int64_t rows, int64_t columns, int64_t lanes) {
  // 16 MB of float32: about what a share of the last-level cache holds.
  constexpr int64_t FLOATS = int64_t{4} << 20;
  const int64_t fitting = std::max<int64_t>(FLOATS / std::max<int64_t>(rows, 1) / BLOCK_ROWS, 1) * BLOCK_ROWS;
  width = std::min(fitting, (columns + lanes - 1) / lanes * lanes);
  floats = rows * width;
}

}  // namespace moe
