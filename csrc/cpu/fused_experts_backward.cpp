// fused_experts, backward: one pass back through the activation, then the products for each gradient.
#include "experts_rows.h"
#include "tokens.h"
#include "weight_gradient.h"

namespace moe {
namespace {

// What the pass back through the activation leaves, chunk-wise, times the routing weight: the pre-activation's gradient
// as right operand [word of wide][row] and as left operand [wide][row], and the activation as left operand
// [inner][row].
struct Inner {
  float* grad_right;
  char* grad_left;
  char* act_left;
  float* partial;  // (inner / PARTIAL, N): Σ dA' ∘ A, without the routing weight
};

void activation_backward(const Kernels& kern, const Form& form, const ExpertShape& shape, const ExpertWeights& experts,
                         const Rows& grad, const TensorView& pre, const Chunks& chunks, const float* row_weight,
                         const Inner& inner, int threads) {
  const std::vector<Task> tasks = cut_into_tasks(chunks, shape.inner, PARTIAL, PARTIAL, threads);
  const int64_t N = shape.rows();
  const Rows pre_rows{pre.data, pre.dtype, shape.wide, nullptr, nullptr};
  const bool interleaved = experts.interleaved;
  parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t index) {
    const Task task = tasks[index];
    const Chunk& chunk = chunks.list[task.chunk];
    const int64_t pitch = chunk.pitch, step = interleaved ? 2 * pitch : pitch;
    TaskScratch scratch(kern, form, PARTIAL, 4, shape.down.backward_floats(task.count));
    const Operand left = shape.down.backward(kern, form, chunk.expert, task.first, task.count, scratch.weight);
    block_product(form, scratch, &left, 1, task.count, shape.hidden, chunk, Right::gathered(grad));

    // The pre-activation is read into the place of its gradient.
    const int64_t gate_row = interleaved ? 2 * task.first : task.first, up_row = shape.inner + gate_row;
    const int64_t gate_count = interleaved ? 2 * task.count : task.count;
    float* gate = scratch.result[2];
    float* up = interleaved ? gate + pitch : nullptr;
    const Rows chunk_pre = pre_rows.from(chunk.first);
    kern.gather_transposed(gate, pitch, chunk_pre, chunk.count, gate_row, gate_count);
    const bool halves = shape.gated && !interleaved;
    if (halves) {
      up = scratch.result[3];
      kern.gather_transposed(up, pitch, chunk_pre, chunk.count, up_row, task.count);
    }
    float* act = scratch.result[1];
    float* grad_act = scratch.result[0];
    float* partial = scratch.extra;
    float* factor = partial + CHUNK_ROWS;
    std::fill(partial, partial + pitch, 0.0f);
    std::fill(factor, factor + pitch, 0.0f);
    std::copy(row_weight + chunk.first, row_weight + chunk.first + chunk.count, factor);
    for (int64_t m = 0; m < task.count; ++m) {
      float* up_m = up ? up + m * step : nullptr;
      kern.activate_backward(experts.activation, act + m * pitch, gate + m * step, up_m, grad_act + m * pitch, pitch);
      kern.add_products(partial, grad_act + m * pitch, act + m * pitch, pitch);
      kern.multiply(act + m * pitch, act + m * pitch, factor, pitch);
      kern.multiply(gate + m * step, gate + m * step, factor, pitch);
      if (up_m) kern.multiply(up_m, up_m, factor, pitch);
    }
    const int64_t before = chunk.columns_before, item = item_size(form.left);
    const auto put = [&](const float* block, int64_t row, int64_t count) {
      pack_block(form, inner.grad_right, chunk, shape.wide, row, block, count);
      kern.store(inner.grad_left + (before * shape.wide + row * pitch) * item, form.left, block, count * pitch);
    };
    put(gate, gate_row, gate_count);
    if (halves) put(up, up_row, task.count);
    kern.store(inner.act_left + (before * shape.inner + task.first * pitch) * item, form.left, act, task.count * pitch);
    std::copy(partial, partial + chunk.count, inner.partial + task.first / PARTIAL * N + chunk.first);
  });
}

void weights_gradient(const Kernels& kern, const ExpertShape& shape, const ExpertWeights& experts, const Rows& grad,
                      const int32_t* offsets, const int32_t* slot_row, const float* partial, const TensorView& out,
                      int threads) {
  const int64_t N = shape.rows(), blocks = (shape.inner + PARTIAL - 1) / PARTIAL;
  std::vector<float> by_row(offsets[shape.count]);
  parallel_for(shape.count, experts.down_bias ? threads : 1, [&](int64_t e) {
    for (int64_t n = offsets[e]; n < offsets[e + 1]; ++n) {
      float sum = 0.0f;
      for (int64_t b = 0; b < blocks; ++b) sum += partial[b * N + n];
      if (experts.down_bias)
        sum += kern.dot(experts.down_bias->row(e), experts.down_bias->dtype, grad.at(n, 0), grad.dtype, shape.hidden);
      by_row[n] = sum;
    }
  });
  for (int64_t slot = 0; slot < N; ++slot) out.as<float>()[slot] = slot_row[slot] < 0 ? 0.0f : by_row[slot_row[slot]];
}

void input_gradient(const Kernels& kern, const Form& form, const ExpertShape& shape, const Chunks& chunks,
                    const float* grad_pre, const TokenRows& token_rows, float* y, int64_t slice, const TensorView& out,
                    int threads) {
  for (int64_t first = 0; first < shape.hidden; first += slice) {
    const int64_t count = std::min(slice, shape.hidden - first);
    const std::vector<Task> tasks =
        cut_into_tasks(chunks, count, BLOCK_ROWS, shape.gate_up.quantized ? NF4_BLOCK : kern.lanes, threads);
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t index) {
      const Task task = tasks[index];
      const Chunk& chunk = chunks.list[task.chunk];
      TaskScratch scratch(kern, form, BLOCK_ROWS, 1, shape.gate_up.backward_floats(task.count));
      const Operand left =
          shape.gate_up.backward(kern, form, chunk.expert, first + task.first, task.count, scratch.weight);
      block_product(form, scratch, &left, 1, task.count, shape.wide, chunk, Right::of(grad_pre));
      kern.scatter_transposed(reinterpret_cast<char*>(y + chunk.first * count + task.first), DType::f32, count,
                              scratch.result[0], chunk.pitch, chunk.count, task.count);
    });
    sum_rows(out.data, out.dtype, shape.hidden, first, count, shape.tokens, reinterpret_cast<const char*>(y),
             DType::f32, count, token_rows, nullptr, nullptr, nullptr, threads);
  }
}

// All of it where products take rows as they lie.
void backward_by_rows(const Kernels& kern, const ExpertShape& shape, const ExpertWeights& experts, const Rows& grad,
                      const Rows& x, const Saved& saved, const std::vector<float>& row_weight,
                      const ExpertGradients& gradients, int threads) {
  const int32_t* offsets = saved.offsets.as<const int32_t>();
  const int32_t* slot_row = saved.slot_row.as<const int32_t>();
  const int64_t N = shape.rows(), slice = row_slice(N, shape.hidden);
  const int64_t grad_bytes = N * shape.wide * 2, act_bytes = N * shape.inner * 2;
  // A row's part of dx is rounded to bfloat16 where dx is, as the forward does with its results.
  const DType y_dtype = gradients.x && gradients.x->dtype == DType::bf16 ? DType::bf16 : DType::f32;
  const int64_t partials = (shape.inner + PARTIAL - 1) / PARTIAL * N;
  const int64_t y_bytes = gradients.x ? N * slice * item_size(y_dtype) : 0;
  Workspace workspace(Workspace::padded<char>(grad_bytes) + Workspace::padded<char>(act_bytes) +
                      Workspace::padded<float>(partials) + Workspace::padded<char>(y_bytes));
  const InnerRows inner{workspace.take<char>(grad_bytes), workspace.take<char>(act_bytes),
                        workspace.take<float>(partials)};
  char* y = workspace.take<char>(y_bytes);
  const Chunks chunks = cut_into_row_chunks(offsets, shape.count);
  const Rows grad_pre{inner.grad_pre, DType::bf16, shape.wide, nullptr, nullptr};
  const Rows act{inner.act, DType::bf16, shape.inner, nullptr, nullptr};

  activation_backward_by_rows(kern, shape, experts, grad, saved.pre, chunks, row_weight.data(), inner, threads);
  if (gradients.weights)
    weights_gradient(kern, shape, experts, grad, offsets, slot_row, inner.partial, *gradients.weights, threads);
  if (gradients.x)
    input_gradient_by_rows(kern, shape, chunks, inner.grad_pre, slot_row, y, y_dtype, slice, *gradients.x, threads);
  if (gradients.gate_up) {
    const bool across = shape.gate_up.transposed;
    outer_product(*kern.rows, offsets, across ? x : grad_pre, across ? grad_pre : x, *gradients.gate_up, gradients.add,
                  gradients.stream, threads);
  }
  if (gradients.down) {
    const bool across = shape.down.transposed;
    outer_product(*kern.rows, offsets, across ? act : grad, across ? grad : act, *gradients.down, gradients.add,
                  gradients.stream, threads);
  }
  if (gradients.gate_up_bias) bias_gradient_of_rows(kern, offsets, grad_pre, nullptr, *gradients.gate_up_bias, threads);
  if (gradients.down_bias) bias_gradient_of_rows(kern, offsets, grad, row_weight.data(), *gradients.down_bias, threads);
}

}  // namespace

void fused_experts_backward(const TensorView& grad, const TensorView& x, const TensorView& weights,
                            const ExpertWeights& experts, const Saved& saved, const ExpertGradients& gradients,
                            int threads) {
  const char* op = "fused_experts_backward";
  const Kernels& kern = kernels();
  const ExpertShape shape(op, x, experts, weights.shape[1]);
  const int64_t N = shape.rows();
  check_float(op, "grad", grad, {shape.tokens, shape.hidden});
  check_type(op, "weights", weights, DType::f32, {shape.tokens, shape.slots});
  check_float(op, "pre", saved.pre, {N, shape.wide});
  check_type(op, "offsets", saved.offsets, DType::i32, {shape.count + 1});
  check_type(op, "row_token", saved.row_token, DType::i32, {N});
  check_type(op, "slot_row", saved.slot_row, DType::i32, {shape.tokens, shape.slots});
  check_offsets(op, saved.offsets, N);
  const int32_t* offsets = saved.offsets.as<const int32_t>();
  check_row_token(op, saved.row_token, offsets[shape.count], shape.tokens);
  check_slot_row(op, saved.slot_row, offsets[shape.count]);
  const int32_t* row_token = saved.row_token.as<const int32_t>();
  const int32_t* slot_row = saved.slot_row.as<const int32_t>();

  std::vector<float> row_weight(N, 0.0f);
  for (int64_t slot = 0; slot < N; ++slot)
    if (slot_row[slot] >= 0) row_weight[slot_row[slot]] = weights.as<const float>()[slot];
  const double size = static_cast<double>(shape.wide) * static_cast<double>(shape.hidden);
  threads = threads_for(threads, product_time(size, size * static_cast<double>(N)));
  const Rows grad_rows{grad.data, grad.dtype, shape.hidden, row_token, nullptr};
  const Rows x_rows{x.data, x.dtype, shape.hidden, row_token, nullptr};
  const DType type = shape.down.quantized ? x.dtype : shape.down.dtype();
  if (kern.rows && type == DType::bf16) {
    backward_by_rows(kern, shape, experts, grad_rows, x_rows, saved, row_weight, gradients, threads);
    return;
  }

  // A word may not hold a gate's last value and an up's first.
  const Form& form = shape.inner % 2 ? *kern.floats : kern.form(type, x.dtype);
  const Chunks chunks = cut_into_chunks(kern, form, offsets, shape.count);
  const Slices slices(N, shape.hidden, kern.lanes);
  const int64_t partials = (shape.inner + PARTIAL - 1) / PARTIAL * N;
  const int64_t right_words = chunks.columns * form.words(shape.wide), item = item_size(form.left);
  const int64_t left_bytes = chunks.columns * shape.wide * item;
  const int64_t act_bytes = chunks.columns * shape.inner * item;
  Workspace workspace(Workspace::padded<float>(right_words) + Workspace::padded<char>(left_bytes) +
                      Workspace::padded<char>(act_bytes) + Workspace::padded<float>(partials) +
                      Workspace::padded<float>(slices.floats));
  const Inner inner{workspace.take<float>(right_words), workspace.take<char>(left_bytes),
                    workspace.take<char>(act_bytes), workspace.take<float>(partials)};
  float* y = workspace.take<float>(slices.floats);
  activation_backward(kern, form, shape, experts, grad_rows, saved.pre, chunks, row_weight.data(), inner, threads);
  if (gradients.weights)
    weights_gradient(kern, shape, experts, grad_rows, offsets, slot_row, inner.partial, *gradients.weights, threads);
  if (gradients.x)
    input_gradient(kern, form, shape, chunks, inner.grad_right, {slot_row, shape.slots, nullptr, nullptr}, y,
                   slices.width, *gradients.x, threads);
  if (gradients.gate_up)
    weight_gradient(kern, form, chunks, inner.grad_left, shape.wide, x_rows, shape.hidden, *gradients.gate_up,
                    shape.gate_up.transposed, gradients.add, threads);
  if (gradients.down)
    // down is (H, I) where gate_up is (2I, H): its gradient comes out with rows and columns exchanged.
    weight_gradient(kern, form, chunks, inner.act_left, shape.inner, grad_rows, shape.hidden, *gradients.down,
                    !shape.down.transposed, gradients.add, threads);
  if (gradients.gate_up_bias)
    bias_gradient(kern, form, chunks, inner.grad_left, shape.wide, nullptr, *gradients.gate_up_bias, threads);
  if (gradients.down_bias)
    bias_gradient_of_rows(kern, offsets, grad_rows, row_weight.data(), *gradients.down_bias, threads);
}

}  // namespace moe
