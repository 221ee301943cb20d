// grouped_mm, forward: each row times its expert's matrix.
#include "grouped_shape.h"
#include "tokens.h"

namespace moe {

void grouped_mm(const GroupedArguments& a, const TensorView* base, const TensorView& out, int threads) {
  const char* op = "grouped_mm";
  const Kernels& kern = kernels();
  const GroupedShape shape(op, a);
  const int64_t rows_out = a.slot_row ? a.slot_row->shape[0] : shape.rows;
  check_float(op, "out", out, {rows_out, shape.outputs});
  if (base) check_float(op, "base", *base, {rows_out, shape.outputs});
  const Form& form = kern.form(a.w.dtype(), a.x.dtype, a.dynamic);
  const Chunks chunks = cut_into_chunks(kern, form, shape.offsets, shape.experts);
  threads = threads_for(threads, shape.time());

  // Rows go straight to the output unless they still have to be summed: then by way of float32 slices.
  const bool summed = a.slot_row || base;
  Slices slices(summed ? shape.rows : 0, shape.outputs, kern.lanes);
  const int64_t y_floats = summed ? slices.floats : 0;
  const int64_t x_words = form.whole() ? chunks.columns * form.words(shape.inputs) : 0;
  Workspace workspace(Workspace::padded<float>(y_floats) + Workspace::padded<float>(x_words));
  float* y = workspace.take<float>(y_floats);
  float* x_packed = workspace.take<float>(x_words);
  if (!summed) {
    slices.width = std::max<int64_t>(shape.outputs, 1);
    zero_rows(out, shape.valid_rows, shape.rows, threads);
  }
  std::vector<int32_t> own_row;  // slot_row of rows that stay where they are
  TokenRows token_rows{nullptr, 1, nullptr, nullptr};
  if (a.slot_row) {
    token_rows = {a.slot_row->as<const int32_t>(), a.slot_row->shape[1], nullptr, nullptr};
  } else if (base) {
    own_row.assign(shape.rows, -1);
    for (int64_t n = 0; n < shape.valid_rows; ++n) own_row[n] = static_cast<int32_t>(n);
    token_rows.slot_row = own_row.data();
  }

  const Rows x_rows{a.x.data, a.x.dtype, shape.inputs, a.row_token ? a.row_token->as<const int32_t>() : nullptr,
                    nullptr};
  if (form.whole()) pack_whole(form, chunks, x_rows, shape.inputs, x_packed, threads);
  const Right right = form.whole() ? Right::of(x_packed) : Right::gathered(x_rows);
  for (int64_t first = 0; first < shape.outputs; first += slices.width) {
    const int64_t count = std::min(slices.width, shape.outputs - first);
    const std::vector<Task> tasks = cut_into_tasks(chunks, count, BLOCK_ROWS, kern.lanes, threads);
    if (summed) shape.zero_unowned(y, count);
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t index) {
      const Task task = tasks[index];
      const Chunk& chunk = chunks.list[task.chunk];
      const int64_t pitch = chunk.pitch, row = first + task.first;
      TaskScratch scratch(kern, form, BLOCK_ROWS, 1, shape.w.forward_floats(task.count));
      float* block = scratch.result[0];
      const Operand left = shape.w.forward(kern, chunk.expert, row, task.count, scratch.weight);
      block_product(form, scratch, &left, 1, task.count, shape.inputs, chunk, right);
      if (a.bias) add_row_bias(kern, block, pitch, task.count, *a.bias, chunk.expert, row);
      if (a.row_scale) {
        const float* scale = a.row_scale->as<const float>() + chunk.first;
        for (int64_t m = 0; m < task.count; ++m)
          kern.multiply(block + m * pitch, block + m * pitch, scale, chunk.count);
      }
      if (summed)
        kern.scatter_transposed(reinterpret_cast<char*>(y + chunk.first * count + task.first), DType::f32, count,
                                block, pitch, chunk.count, task.count);
      else
        kern.scatter_transposed(out.row(chunk.first) + row * item_size(out.dtype), out.dtype, shape.outputs, block,
                                pitch, chunk.count, task.count);
    });
    if (summed)
      sum_rows(out.data, out.dtype, shape.outputs, first, count, rows_out, reinterpret_cast<const char*>(y),
               DType::f32, count, token_rows, nullptr, nullptr, base, threads);
  }
}

}  // namespace moe
