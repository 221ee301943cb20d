#include "weight_gradient.h"

namespace moe {
namespace {

// Columns of one task: with BLOCK_ROWS of them times this, results and gathered rows share the second-level cache.
constexpr int64_t BLOCK_COLUMNS = 192;

// Pitch of `count` columns in the layout for many, however few they are.
int64_t wide_pitch(const Kernels& kern, const Form& form, int64_t count) {
  return (std::max(count, form.few_columns + 1) + kern.lanes - 1) / kern.lanes * kern.lanes;
}

struct GradientTask {
  int32_t expert;
  int32_t row;
  int32_t column;
};

}  // namespace

void weight_gradient(const Kernels& kern, const Form& form, const Chunks& chunks, const char* left, int64_t features,
                     const Rows& rows, int64_t columns, const TensorView& out, bool across, bool add, int threads) {
  const int64_t experts = static_cast<int64_t>(chunks.begin.size()) - 1, item = item_size(out.dtype);
  if (!add) prefer_huge_pages(out.data, static_cast<size_t>(out.numel() * item));
  std::vector<GradientTask> tasks;
  for (int64_t e = 0; e < experts; ++e) {
    if (chunks.begin[e] == chunks.begin[e + 1]) {
      if (!add) tasks.push_back({static_cast<int32_t>(e), -1, 0});
      continue;
    }
    for (int64_t h = 0; h < columns; h += BLOCK_COLUMNS)
      for (int64_t m = 0; m < features; m += BLOCK_ROWS)
        tasks.push_back({static_cast<int32_t>(e), static_cast<int32_t>(m), static_cast<int32_t>(h)});
  }
  parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t index) {
    const GradientTask task = tasks[index];
    char* expert = out.row(task.expert);
    if (task.row < 0) {
      std::memset(expert, 0, static_cast<size_t>(features * columns * item));
      return;
    }
    const int64_t height = std::min(BLOCK_ROWS, features - task.row);
    const int64_t width = std::min(BLOCK_COLUMNS, columns - task.column), pitch = wide_pitch(kern, form, width);
    TaskScratch scratch(kern, form, BLOCK_ROWS, 1);
    // Whole tiles of float32 are summed in place.
    const bool in_place = !across && out.dtype == DType::f32 && width == pitch && height % form.tile_rows == 0;
    const int64_t sum_pitch = in_place ? columns : pitch;
    float* sum = in_place ? reinterpret_cast<float*>(expert) + task.row * columns + task.column : scratch.result[0];
    for (int32_t c = chunks.begin[task.expert]; c < chunks.begin[task.expert + 1]; ++c) {
      const Chunk& chunk = chunks.list[c];
      form.pack_rows(scratch.packed, pitch, rows.from(chunk.first), chunk.count, task.column, width);
      const char* at = left + (chunk.columns_before * features + task.row * chunk.pitch) * item_size(form.left);
      const Operand operand{at, form.left, chunk.pitch, 1};
      form.product_over_rows(sum, sum_pitch, operand, height, chunk.count, scratch.packed, pitch, pitch,
                             (add && in_place) || c > chunks.begin[task.expert], scratch.inner);
    }
    if (in_place) return;
    if (across && !add) {
      kern.scatter_transposed(expert + (task.column * features + task.row) * item, out.dtype, features, sum, pitch,
                              width, height);
      return;
    }
    float* block = sum;
    int64_t rows_pitch = pitch, count = height, length = width, first = task.row * columns + task.column;
    int64_t stride = columns;
    if (across) {
      kern.scatter_transposed(reinterpret_cast<char*>(scratch.packed), DType::f32, height, sum, pitch, width, height);
      block = scratch.packed;
      rows_pitch = height, count = width, length = height, first = task.column * features + task.row, stride = features;
    }
    for (int64_t m = 0; m < count; ++m) {
      char* to = expert + (first + m * stride) * item;
      float* row = block + m * rows_pitch;
      if (add) kern.add_scaled(row, 1.0f, to, out.dtype, length);
      kern.store(to, out.dtype, row, length);
    }
  });
}

void bias_gradient(const Kernels& kern, const Form& form, const Chunks& chunks, const char* left, int64_t features,
                   const float* factor, const TensorView& out, int threads) {
  constexpr int64_t GROUP = 64;
  const int64_t experts = static_cast<int64_t>(chunks.begin.size()) - 1, groups = (features + GROUP - 1) / GROUP;
  const std::vector<float> ones(CHUNK_ROWS, 1.0f);
  parallel_for(experts * groups, threads, [&](int64_t index) {
    const int64_t e = index / groups, first = index % groups * GROUP, count = std::min(GROUP, features - first);
    float sum[GROUP] = {};
    for (int32_t c = chunks.begin[e]; c < chunks.begin[e + 1]; ++c) {
      const Chunk& chunk = chunks.list[c];
      const float* by = factor ? factor + chunk.first : ones.data();
      for (int64_t m = 0; m < count; ++m) {
        const char* row = left + (chunk.columns_before * features + (first + m) * chunk.pitch) * item_size(form.left);
        sum[m] += kern.dot(row, form.left, reinterpret_cast<const char*>(by), DType::f32, chunk.count);
      }
    }
    kern.store(out.row(e) + first * item_size(out.dtype), out.dtype, sum, count);
  });
}

void bias_gradient_of_rows(const Kernels& kern, const int32_t* offsets, const Rows& rows, const float* factor,
                           const TensorView& out, int threads) {
  constexpr int64_t GROUP = 256;
  const int64_t columns = out.shape[1], groups = (columns + GROUP - 1) / GROUP;
  parallel_for(out.shape[0] * groups, threads, [&](int64_t index) {
    const int64_t e = index / groups, first = index % groups * GROUP, count = std::min(GROUP, columns - first);
    float sum[GROUP] = {};
    for (int64_t n = offsets[e]; n < offsets[e + 1]; ++n)
      kern.add_scaled(sum, factor ? factor[n] : 1.0f, rows.at(n, first), rows.dtype, count);
    kern.store(out.row(e) + first * item_size(out.dtype), out.dtype, sum, count);
  });
}

}  // namespace moe
