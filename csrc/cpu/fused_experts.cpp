// fused_experts, forward: up-projection with the activation, down-projection, sum over each token's slots.
#include "experts_shape.h"
#include "tokens.h"

namespace moe {
namespace {

// act [chunk][word of i][row] = activation of the pre-activation, which also goes to `pre` (N, wide) where wanted.
// Where the form packs whole rows only, x comes packed, and act goes to rows (N, I) in float32.
void up_projection(const Kernels& kern, const Form& form, const ExpertShape& shape, const ExpertWeights& experts,
                   const Right& x, const Chunks& chunks, float* act, const TensorView* pre, int threads) {
  // Interleaved gate and up rows are one block of twice the rows, separate halves are two blocks.
  const int pieces = shape.gated && !experts.interleaved ? 2 : 1;
  const int64_t fold = experts.interleaved ? 2 : 1, largest = BLOCK_ROWS / (shape.gated ? 2 : 1);
  const std::vector<Task> tasks =
      cut_into_tasks(chunks, shape.inner, largest, std::max(kern.lanes, form.quantum), threads);
  for_each_task(tasks, threads, [&](const Task& task, const Task* next) {
    const Chunk& chunk = chunks.list[task.chunk];
    const int64_t pitch = chunk.pitch, height = fold * task.count;
    const int64_t factors = shape.gate_up.forward_floats(height);
    TaskScratch scratch(kern, form, BLOCK_ROWS / pieces, pieces, pieces * factors);
    const int64_t first[2] = {fold * task.first, shape.inner + task.first};
    Operand left[2];
    for (int p = 0; p < pieces; ++p)
      left[p] = shape.gate_up.forward(kern, chunk.expert, first[p], height, scratch.weight + p * factors);
    if (next && next->first != task.first)
      left[pieces - 1].next = shape.gate_up.address(chunks.list[next->chunk].expert, fold * next->first);
    if (pieces == 2) left[0].next = left[1].base;
    block_product(form, scratch, left, pieces, height, shape.hidden, chunk, x);
    for (int p = 0; p < pieces; ++p) {
      float* block = scratch.result[p];
      if (experts.gate_up_bias) add_row_bias(kern, block, pitch, height, *experts.gate_up_bias, chunk.expert, first[p]);
      if (pre)
        kern.scatter_transposed(pre->row(chunk.first) + first[p] * item_size(pre->dtype), pre->dtype, shape.wide, block,
                                pitch, chunk.count, height);
    }
    float* to = scratch.result[0];
    if (!experts.interleaved) {
      kern.activate(experts.activation, to, scratch.result[0], scratch.result[1], task.count * pitch);
    } else {
      for (int64_t m = 0; m < task.count; ++m) {
        const float* gate = scratch.result[0] + 2 * m * pitch;
        kern.activate(experts.activation, to + m * pitch, gate, gate + pitch, pitch);
      }
    }
    if (!form.whole())
      pack_block(form, act, chunk, shape.inner, task.first, to, task.count);
    else
      kern.scatter_transposed(reinterpret_cast<char*>(act + chunk.first * shape.inner + task.first), DType::f32,
                              shape.inner, to, pitch, chunk.count, task.count);
  });
}

// y (N, slice) = down-projection of act, for the features [first, first + count).
void down_projection(const Kernels& kern, const Form& form, const ExpertShape& shape, const ExpertWeights& experts,
                     const Chunks& chunks, const float* act, float* y, int64_t first, int64_t count, int threads) {
  const std::vector<Task> tasks = cut_into_tasks(chunks, count, BLOCK_ROWS, kern.lanes, threads);
  for_each_task(tasks, threads, [&](const Task& task, const Task* next) {
    const Chunk& chunk = chunks.list[task.chunk];
    TaskScratch scratch(kern, form, BLOCK_ROWS, 1, shape.down.forward_floats(task.count));
    const int64_t row = first + task.first;
    Operand left = shape.down.forward(kern, chunk.expert, row, task.count, scratch.weight);
    if (next && next->first != task.first)
      left.next = shape.down.address(chunks.list[next->chunk].expert, first + next->first);
    block_product(form, scratch, &left, 1, task.count, shape.inner, chunk, Right::of(act));
    if (experts.down_bias)
      add_row_bias(kern, scratch.result[0], chunk.pitch, task.count, *experts.down_bias, chunk.expert, row);
    kern.scatter_transposed(reinterpret_cast<char*>(y + chunk.first * count + task.first), DType::f32, count,
                            scratch.result[0], chunk.pitch, chunk.count, task.count);
  });
}

}  // namespace

void fused_experts(const TensorView& x, const TensorView& indices, const TensorView& weights,
                   const ExpertWeights& experts, const TensorView& out, const Saved* saved, int threads) {
  const char* op = "fused_experts";
  const Kernels& kern = kernels();
  const ExpertShape shape(op, x, experts, indices.shape[1]);
  const Form& form = kern.form(experts.down.dtype(), x.dtype, experts.dynamic);
  check_type(op, "indices", indices, indices.dtype == DType::i64 ? DType::i64 : DType::i32, {shape.tokens, -1});
  check_type(op, "weights", weights, DType::f32, {shape.tokens, shape.slots});
  check_float(op, "out", out, {shape.tokens, shape.hidden});
  const int64_t N = shape.rows();
  if (saved) {
    check_float(op, "pre", saved->pre, {N, shape.wide});
    check_type(op, "offsets", saved->offsets, DType::i32, {shape.count + 1});
    check_type(op, "row_token", saved->row_token, DType::i32, {N});
    check_type(op, "slot_row", saved->slot_row, DType::i32, {shape.tokens, shape.slots});
  }

  std::vector<int32_t> own_plan(saved ? 0 : shape.count + 1 + 2 * N);
  int32_t* offsets = saved ? saved->offsets.as<int32_t>() : own_plan.data();
  int32_t* row_token = saved ? saved->row_token.as<int32_t>() : own_plan.data() + shape.count + 1;
  int32_t* slot_row = saved ? saved->slot_row.as<int32_t>() : row_token + N;
  route(indices, shape.count, offsets, row_token, slot_row);
  const Chunks chunks = cut_into_chunks(kern, form, offsets, shape.count);
  if (saved) zero_rows(saved->pre, offsets[shape.count], N, threads);

  const Slices slices(N, shape.hidden, kern.lanes);
  const int64_t act_words = chunks.columns * form.words(shape.inner);
  // x is packed before, once for all blocks of a weight, unless that would take too much memory. Forms for whole rows
  // always do so, and keep the activation as rows until they are complete.
  constexpr int64_t PACKED_BEFORE = int64_t{64} << 20;
  const bool before = form.whole() || chunks.columns * form.words(shape.hidden) <= PACKED_BEFORE;
  const int64_t x_words = before ? chunks.columns * form.words(shape.hidden) : 0;
  const int64_t act_floats = form.whole() ? N * shape.inner : 0;
  Workspace workspace(Workspace::padded<float>(act_words) + Workspace::padded<float>(x_words) +
                      Workspace::padded<float>(act_floats) + Workspace::padded<float>(slices.floats));
  float* act = workspace.take<float>(act_words);
  float* x_packed = workspace.take<float>(x_words);
  float* act_rows = workspace.take<float>(act_floats);
  float* y = workspace.take<float>(slices.floats);

  double hit = 0.0;
  for (size_t e = 0; e + 1 < chunks.begin.size(); ++e) hit += chunks.begin[e + 1] > chunks.begin[e];
  const double size = static_cast<double>(shape.wide) * static_cast<double>(shape.hidden);
  threads = threads_for(threads, product_time(size * hit, size * static_cast<double>(N)));

  const Rows tokens{x.data, x.dtype, shape.hidden, row_token, nullptr};
  const TensorView* pre = saved ? &saved->pre : nullptr;
  if (before) pack_rows(form, chunks, tokens, shape.hidden, x_packed, threads);
  const Right right = before ? Right::of(x_packed) : Right::gathered(tokens);
  up_projection(kern, form, shape, experts, right, chunks, form.whole() ? act_rows : act, pre, threads);
  if (form.whole())
    pack_rows(form, chunks, {reinterpret_cast<const char*>(act_rows), DType::f32, shape.inner, nullptr, nullptr},
              shape.inner, act, threads);
  const TokenRows token_rows{slot_row, shape.slots, nullptr, nullptr};
  for (int64_t first = 0; first < shape.hidden; first += slices.width) {
    const int64_t count = std::min(slices.width, shape.hidden - first);
    down_projection(kern, form, shape, experts, chunks, act, y, first, count, threads);
    sum_rows(out.data, out.dtype, shape.hidden, first, count, shape.tokens, reinterpret_cast<const char*>(y),
             DType::f32, count, token_rows, weights.as<const float>(), nullptr, nullptr, threads);
  }
}

}  // namespace moe
