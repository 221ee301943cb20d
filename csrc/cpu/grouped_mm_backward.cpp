// grouped_mm, backward.
#include "grouped_shape.h"
#include "row_products.h"
#include "tokens.h"
#include "weight_gradient.h"

namespace moe {
namespace {

// dy: the gradient of the rows, before row_scale, as right operand [chunk][word of o][row] and as left operand
// [chunk][o][row].
struct Gradient {
  float* right;
  char* left;
};

void pack_gradient(const Kernels& kern, const Form& form, const GroupedShape& shape, const Chunks& chunks,
                   const Rows& grad, const Gradient& dy, int threads) {
  const std::vector<Task> tasks = cut_into_tasks(chunks, shape.outputs, BLOCK_ROWS, kern.lanes, threads);
  parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t index) {
    const Task task = tasks[index];
    const Chunk& chunk = chunks.list[task.chunk];
    const int64_t pitch = chunk.pitch;
    TaskScratch scratch(kern, form, BLOCK_ROWS, 1);
    kern.gather_transposed(scratch.result[0], pitch, grad.from(chunk.first), chunk.count, task.first, task.count);
    pack_block(form, dy.right, chunk, shape.outputs, task.first, scratch.result[0], task.count);
    kern.store(dy.left + (chunk.columns_before * shape.outputs + task.first * pitch) * item_size(form.left), form.left,
               scratch.result[0], task.count * pitch);
  });
}

struct InputGradient {
  const TensorView* grad_x;
  float* row_scale;    // (N) sums of x ∘ (dy W), or null
  const float* scale;  // row_scale's values, or null
  const Rows* x_rows;
  TokenRows token_rows;  // rows of each of x's tokens
};

// y (N, count) = dy · W for the columns [first, first + count), from a packed dy.
void packed_product(const Kernels& kern, const Form& form, const GroupedShape& shape, const Chunks& chunks,
                    const float* dy, float* y, int64_t first, int64_t count, int threads) {
  const std::vector<Task> tasks =
      cut_into_tasks(chunks, count, BLOCK_ROWS, shape.w.quantized ? NF4_BLOCK : kern.lanes, threads);
  parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t index) {
    const Task task = tasks[index];
    const Chunk& chunk = chunks.list[task.chunk];
    TaskScratch scratch(kern, form, BLOCK_ROWS, 1, shape.w.backward_floats(task.count));
    const Operand left = shape.w.backward(kern, form, chunk.expert, first + task.first, task.count, scratch.weight);
    block_product(form, scratch, &left, 1, task.count, shape.outputs, chunk, Right::of(dy));
    kern.scatter_transposed(reinterpret_cast<char*>(y + chunk.first * count + task.first), DType::f32, count,
                            scratch.result[0], chunk.pitch, chunk.count, task.count);
  });
}

// dy · W, row by row in float32 slices: their sums go to grad_x, their products with x to the gradient of row_scale. dy
// is `grad` with `by_rows`, else packed (null without rows).
void input_gradient(const Kernels& kern, const Form& form, const GroupedShape& shape, const Chunks& chunks,
                    const float* dy, const Rows& grad, bool by_rows, const InputGradient& want, int threads) {
  const int64_t slice =
      by_rows ? row_slice(shape.rows, shape.inputs) : Slices(shape.rows, shape.inputs, kern.lanes).width;
  Workspace workspace(Workspace::padded<float>(shape.rows * slice));
  float* y = workspace.take<float>(shape.rows * slice);
  for (int64_t first = 0; first < shape.inputs; first += slice) {
    const int64_t count = std::min(slice, shape.inputs - first);
    shape.zero_unowned(y, count);
    if (by_rows)
      product_of_rows(kern, chunks, grad, shape.outputs, shape.w, first, count, reinterpret_cast<char*>(y), DType::f32,
                      threads);
    else
      packed_product(kern, form, shape, chunks, dy, y, first, count, threads);
    if (want.row_scale)
      parallel_for((shape.valid_rows + 63) / 64, threads, [&](int64_t group) {
        for (int64_t n = group * 64; n < std::min(shape.valid_rows, (group + 1) * 64); ++n)
          want.row_scale[n] += kern.dot(reinterpret_cast<const char*>(y + n * count), DType::f32,
                                        want.x_rows->at(n, first), want.x_rows->dtype, count);
      });
    if (want.grad_x)
      sum_rows(want.grad_x->data, want.grad_x->dtype, shape.inputs, first, count, shape.tokens,
               reinterpret_cast<const char*>(y), DType::f32, count, want.token_rows, nullptr, want.scale, nullptr,
               threads);
  }
}

}  // namespace

void grouped_mm_backward(const TensorView& grad, const GroupedArguments& a, const TensorView* grad_x,
                         const TensorView* grad_w, const TensorView* grad_bias, const TensorView* grad_row_scale,
                         int threads) {
  const char* op = "grouped_mm_backward";
  const Kernels& kern = kernels();
  const GroupedShape shape(op, a);
  check_float(op, "grad", grad, {a.slot_row ? a.slot_row->shape[0] : shape.rows, shape.outputs});
  const Form& form = kern.form(a.w.quantized ? a.x.dtype : a.w.dtype(), a.x.dtype);
  // Rows as they lie, where the instruction set has products for them.
  const bool by_rows = kern.rows && &form == kern.pairs;
  const Chunks chunks = by_rows ? cut_into_row_chunks(shape.offsets, shape.experts)
                                : cut_into_chunks(kern, form, shape.offsets, shape.experts);
  threads = threads_for(threads, shape.time());

  // The token whose gradient a row gets; a row that no slot reads gets none.
  std::vector<int32_t> grad_token;
  std::vector<float> read;
  if (a.slot_row) {
    grad_token.assign(shape.rows, 0);
    read.assign(shape.rows, 0.0f);
    const int32_t* slot_row = a.slot_row->as<const int32_t>();
    const int64_t slots = a.slot_row->shape[1];
    for (int64_t slot = 0; slot < a.slot_row->numel(); ++slot) {
      if (slot_row[slot] < 0) continue;
      grad_token[slot_row[slot]] = static_cast<int32_t>(slot / slots);
      read[slot_row[slot]] = 1.0f;
    }
  }
  const Rows grad_rows{grad.data, grad.dtype, shape.outputs, a.slot_row ? grad_token.data() : nullptr,
                       a.slot_row ? read.data() : nullptr};
  const float* scale = a.row_scale ? a.row_scale->as<const float>() : nullptr;
  const int32_t* row_token = a.row_token ? a.row_token->as<const int32_t>() : nullptr;
  const Rows x_rows{a.x.data, a.x.dtype, shape.inputs, row_token, nullptr};

  const int64_t right_words = by_rows ? 0 : chunks.columns * form.words(shape.outputs);
  const int64_t left_bytes = by_rows ? 0 : chunks.columns * shape.outputs * item_size(form.left);
  Workspace workspace(Workspace::padded<float>(right_words) + Workspace::padded<char>(left_bytes));
  const Gradient dy{workspace.take<float>(right_words), workspace.take<char>(left_bytes)};
  if (!by_rows) pack_gradient(kern, form, shape, chunks, grad_rows, dy, threads);

  if (grad_x || grad_row_scale) {
    InputGradient want{grad_x, nullptr, scale, &x_rows, {nullptr, 0, nullptr, nullptr}};
    std::vector<int32_t> own_row;
    const RowsByToken by_token(row_token, row_token && grad_x ? shape.valid_rows : 0, row_token ? shape.tokens : 0);
    if (row_token && a.slot_row && a.slot_row->shape[0] == shape.tokens) {
      want.token_rows = {a.slot_row->as<const int32_t>(), a.slot_row->shape[1], nullptr, nullptr};
    } else if (row_token) {
      want.token_rows = by_token.rows();
    } else {
      own_row.assign(shape.rows, -1);
      for (int64_t n = 0; n < shape.valid_rows; ++n) own_row[n] = static_cast<int32_t>(n);
      want.token_rows = {own_row.data(), 1, nullptr, nullptr};
    }
    if (grad_row_scale) {
      want.row_scale = grad_row_scale->as<float>();
      std::fill(want.row_scale, want.row_scale + shape.rows, 0.0f);
      for (int64_t e = 0; a.bias && e < shape.experts; ++e)
        for (int64_t n = shape.offsets[e]; n < shape.offsets[e + 1]; ++n)
          want.row_scale[n] = (grad_rows.scale ? grad_rows.scale[n] : 1.0f) *
                              kern.dot(a.bias->row(e), a.bias->dtype, grad_rows.at(n, 0), grad.dtype, shape.outputs);
    }
    input_gradient(kern, form, shape, chunks, dy.right, grad_rows, by_rows, want, threads);
  }
  if (grad_w) {
    Rows scaled = x_rows;
    scaled.scale = scale;
    if (by_rows)
      outer_product(*kern.rows, shape.offsets, a.w.transposed ? scaled : grad_rows, a.w.transposed ? grad_rows : scaled,
                    *grad_w, false, false, threads);
    else
      weight_gradient(kern, form, chunks, dy.left, shape.outputs, scaled, shape.inputs, *grad_w, a.w.transposed, false,
                      threads);
  }
  if (!grad_bias) return;
  if (!by_rows) {
    bias_gradient(kern, form, chunks, dy.left, shape.outputs, scale, *grad_bias, threads);
    return;
  }
  std::vector<float> factor(shape.rows, 1.0f);
  for (int64_t n = 0; n < shape.rows; ++n)
    factor[n] = (scale ? scale[n] : 1.0f) * (grad_rows.scale ? grad_rows.scale[n] : 1.0f);
  bias_gradient_of_rows(kern, shape.offsets, grad_rows, factor.data(), *grad_bias, threads);
}

}  // namespace moe
