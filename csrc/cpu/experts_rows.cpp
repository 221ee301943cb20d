#include "experts_rows.h"

#include "tokens.h"

namespace moe {
namespace {

// float32 values of one row in one task.
struct RowBuffers {
  RowBuffers(float* floats, int64_t count)
      : gate(floats), up(gate + count), act(up + count), both(act + count), factor(both + 2 * count) {}
  static int64_t floats(int64_t count) { return 6 * count; }

  float *gate, *up, *act;
  float* both;  // gate and up in turn
  float* factor;
};

void split(float* gate, float* up, const float* both, int64_t count) {
  for (int64_t i = 0; i < count; ++i) gate[i] = both[2 * i], up[i] = both[2 * i + 1];
}

void join(float* both, const float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) both[2 * i] = gate[i], both[2 * i + 1] = up[i];
}

}  // namespace

void activation_backward_by_rows(const Kernels& kern, const ExpertShape& shape, const ExpertWeights& experts,
                                 const Rows& grad, const TensorView& pre, const Chunks& chunks, const float* row_weight,
                                 const InnerRows& inner, int threads) {
  const bool quantized = shape.down.quantized != nullptr;
  // Rows of results that are taken out of a product at a time.
  constexpr int64_t ROWS = 32;
  const RowTasks tasks(*kern.rows, chunks, shape.inner, PARTIAL, quantized ? BLOCK_ROWS : 0, threads);
  const int64_t N = shape.rows(), columns = tasks.columns, floats = ROWS * columns + RowBuffers::floats(columns);
  for_each_task(tasks.list, threads, [&](const Task& task, const Task*) {
    const Chunk& chunk = chunks.list[task.chunk];
    RowScratch scratch(*kern.rows, tasks, floats + shape.down.backward_floats(columns));
    float* results = scratch.more;
    const RowBuffers row(results + ROWS * columns, columns);
    const Operand right =
        row_product(kern, chunks, task, grad, shape.hidden, shape.down, 0, scratch.more + floats, scratch.inner);
    const int64_t first = task.first, count = task.count, pre_item = item_size(pre.dtype);
    for (int64_t i = 0; i < chunk.count; ++i) {
      if (i % ROWS == 0)
        kern.rows->results(reinterpret_cast<char*>(results), DType::f32, columns * 4, i,
                           std::min(ROWS, chunk.count - i), chunk.count, right, count, scratch.inner);
      const int64_t n = chunk.first + i;
      float* grad_act = results + i % ROWS * columns;
      const char* pre_row = pre.row(n);
      if (experts.interleaved) {
        kern.load(row.both, pre_row + 2 * first * pre_item, pre.dtype, 2 * count);
        split(row.gate, row.up, row.both, count);
      } else {
        kern.load(row.gate, pre_row + first * pre_item, pre.dtype, count);
        if (shape.gated) kern.load(row.up, pre_row + (shape.inner + first) * pre_item, pre.dtype, count);
      }
      kern.activate_backward(experts.activation, row.act, row.gate, shape.gated ? row.up : nullptr, grad_act, count);
      for (int64_t m = 0; m < count; m += PARTIAL)
        inner.partial[(first + m) / PARTIAL * N + n] =
            kern.dot(reinterpret_cast<const char*>(grad_act + m), DType::f32,
                     reinterpret_cast<const char*>(row.act + m), DType::f32, std::min(count - m, PARTIAL));
      std::fill(row.factor, row.factor + count, row_weight[n]);
      kern.multiply(row.act, row.act, row.factor, count);
      kern.multiply(row.gate, row.gate, row.factor, count);
      if (shape.gated) kern.multiply(row.up, row.up, row.factor, count);
      char* to = inner.grad_pre + n * shape.wide * 2;
      if (experts.interleaved) {
        join(row.both, row.gate, row.up, count);
        kern.store(to + 2 * first * 2, DType::bf16, row.both, 2 * count);
      } else {
        kern.store(to + first * 2, DType::bf16, row.gate, count);
        if (shape.gated) kern.store(to + (shape.inner + first) * 2, DType::bf16, row.up, count);
      }
      kern.store(inner.act + (n * shape.inner + first) * 2, DType::bf16, row.act, count);
    }
  });
}

void input_gradient_by_rows(const Kernels& kern, const ExpertShape& shape, const Chunks& chunks, const char* grad_pre,
                            const int32_t* slot_row, char* y, DType y_dtype, int64_t slice, const TensorView& out,
                            int threads) {
  const Rows rows{grad_pre, DType::bf16, shape.wide, nullptr, nullptr};
  for (int64_t first = 0; first < shape.hidden; first += slice) {
    const int64_t count = std::min(slice, shape.hidden - first);
    product_of_rows(kern, chunks, rows, shape.wide, shape.gate_up, first, count, y, y_dtype, threads);
    sum_rows(out.data, out.dtype, shape.hidden, first, count, shape.tokens, y, y_dtype, count,
             {slot_row, shape.slots, nullptr, nullptr}, nullptr, nullptr, nullptr, threads);
  }
}

}  // namespace moe
