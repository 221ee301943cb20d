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

  // A slot for each token, or a base alone: a row of the output is one row's, and nothing has to be summed later.
  std::vector<int32_t> token_of_row;
  bool placed = shape.rows > 0 && (a.slot_row ? a.slot_row->shape[1] == 1 : base != nullptr);
  if (placed) {
    token_of_row.assign(shape.rows, -1);
    for (int64_t t = 0; placed && t < rows_out; ++t) {
      const int64_t row = a.slot_row ? a.slot_row->as<const int32_t>()[t] : t;
      if (row < 0) continue;
      placed = token_of_row[row] < 0;
      token_of_row[row] = static_cast<int32_t>(t);
    }
  }
  // Rows go straight to the output unless they still have to be summed: then by way of float32 slices.
  const bool summed = !placed && (a.slot_row || base);
  Slices slices(summed ? shape.rows : 0, shape.outputs, kern.lanes);
  const int64_t y_floats = summed ? slices.floats : 0;
  const int64_t x_words = form.whole() ? chunks.columns * form.words(shape.inputs) : 0;
  Workspace workspace(Workspace::padded<float>(y_floats) + Workspace::padded<float>(x_words));
  float* y = workspace.take<float>(y_floats);
  float* x_packed = workspace.take<float>(x_words);
  if (placed) {
    const size_t bytes = static_cast<size_t>(shape.outputs * item_size(out.dtype));
    slices.width = std::max<int64_t>(shape.outputs, 1);
    for (int64_t t = 0; t < rows_out; ++t) {
      const int64_t row = a.slot_row ? a.slot_row->as<const int32_t>()[t] : t;
      if (row >= 0 && row < shape.valid_rows) continue;
      if (!base)
        std::memset(out.row(t), 0, bytes);
      else if (base->data != out.data)
        std::memcpy(out.row(t), base->row(t), bytes);
    }
  } else if (!summed) {
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
  if (form.whole()) pack_rows(form, chunks, x_rows, shape.inputs, x_packed, threads);
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
      if (placed) {
        float* lines = scratch.packed;
        kern.scatter_transposed(reinterpret_cast<char*>(lines), DType::f32, task.count, block, pitch, chunk.count,
                                task.count);
        for (int64_t n = 0; n < chunk.count; ++n, lines += task.count) {
          const int64_t token = token_of_row[chunk.first + n];
          if (token < 0) continue;
          if (base)
            kern.add_scaled(lines, 1.0f, base->row(token) + row * item_size(base->dtype), base->dtype, task.count);
          kern.store(out.row(token) + row * item_size(out.dtype), out.dtype, lines, task.count);
        }
      } else if (summed)
        kern.scatter_transposed(reinterpret_cast<char*>(y + chunk.first * count + task.first), DType::f32, count, block,
                                pitch, chunk.count, task.count);
      else
        kern.scatter_transposed(out.row(chunk.first) + row * item_size(out.dtype), out.dtype, shape.outputs, block,
                                pitch, chunk.count, task.count);
    });
    if (summed)
      sum_rows(out.data, out.dtype, shape.outputs, first, count, rows_out, reinterpret_cast<const char*>(y), DType::f32,
               count, token_rows, nullptr, nullptr, base, threads);
  }
}

}  // namespace moe
