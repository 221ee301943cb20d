// fused_experts, forward: up-projection with the activation, down-projection, sum over each token's slots.
#include "experts_shape.h"
#include "tokens.h"

namespace moe {
namespace {

// Bytes of results that are kept for all rows at a time, at most; results larger than a cache are written past it.
constexpr int64_t WHOLE_RESULTS = int64_t{256} << 20, STREAMED_RESULTS = int64_t{8} << 20;

// Words of the activation that the down-projection takes at a time: 1.25 MiB, of 2 MiB of second-level cache.
constexpr int64_t ACT_WORDS = int64_t{320} << 10;

// The down-projection's results by row, before they are summed by token.
struct Results {
  char* data;
  DType dtype;
  int64_t stride;
  bool streamed;

  Results from(int64_t column) const { return {data + column * item_size(dtype), dtype, stride, streamed}; }
};

// The two products of an expert's MLP, block by block of weight rows.
struct Projections {
  const Kernels& kern;
  const Form& form;
  const ExpertShape& shape;
  const ExpertWeights& experts;
  const TensorView* pre;  // (N, wide), where the pre-activation is wanted

  // Interleaved gate and up rows are one block of twice the rows, separate halves are two blocks.
  int pieces() const { return shape.gated && !experts.interleaved ? 2 : 1; }
  int64_t fold() const { return experts.interleaved ? 2 : 1; }
  int64_t largest() const { return BLOCK_ROWS / (shape.gated ? 2 : 1); }

  // act [chunk][word of i][row] = activation of the pre-activation for the features [first, first + count). Where the
  // form packs whole rows only, x comes packed, and act goes to rows (N, I) in float32. `next`: rows read after these.
  void up(const Chunk& chunk, int64_t first_row, int64_t count, const Right& x, float* act, const char* next) const {
    const int64_t pitch = chunk.pitch, height = fold() * count;
    const int64_t factors = shape.gate_up.forward_floats(height);
    TaskScratch scratch(kern, form, BLOCK_ROWS / pieces(), pieces(), pieces() * factors);
    const int64_t first[2] = {fold() * first_row, shape.inner + first_row};
    Operand left[2];
    for (int p = 0; p < pieces(); ++p)
      left[p] = shape.gate_up.forward(kern, chunk.expert, first[p], height, scratch.weight + p * factors);
    left[pieces() - 1].next = next;
    if (pieces() == 2) left[0].next = left[1].base;
    block_product(form, scratch, left, pieces(), height, shape.hidden, chunk, x);
    for (int p = 0; p < pieces(); ++p) {
      float* block = scratch.result[p];
      if (experts.gate_up_bias) add_row_bias(kern, block, pitch, height, *experts.gate_up_bias, chunk.expert, first[p]);
      if (pre)
        kern.scatter_transposed(pre->row(chunk.first) + first[p] * item_size(pre->dtype), pre->dtype, shape.wide, block,
                                pitch, chunk.count, height);
    }
    // A few features at a time, so that they are packed before they leave the first-level cache.
    const int64_t few = std::max<int64_t>(form.quantum, 4096 / std::max<int64_t>(pitch, 1) / 8 * 8);
    const int64_t at_once = form.whole() ? count : std::max<int64_t>(few / form.quantum * form.quantum, 8);
    float* to = scratch.result[0];
    for (int64_t from = 0; from < count; from += at_once) {
      const int64_t end = std::min(count, from + at_once);
      if (!experts.interleaved) {
        float* part = to + from * pitch;
        const float* up = shape.gated ? scratch.result[1] + from * pitch : nullptr;
        kern.activate(experts.activation, part, part, up, (end - from) * pitch);
      } else {
        for (int64_t m = from; m < end; ++m) {
          const float* gate = to + 2 * m * pitch;
          kern.activate(experts.activation, to + m * pitch, gate, gate + pitch, pitch);
        }
      }
      if (!form.whole()) pack_block(form, act, chunk, shape.inner, first_row + from, to + from * pitch, end - from);
    }
    if (form.whole())
      kern.scatter_transposed(reinterpret_cast<char*>(act + chunk.first * shape.inner + first_row), DType::f32,
                              shape.inner, to, pitch, chunk.count, count);
  }

  // y(row, 0 … count) = down-projection of act for the features [first, first + count).
  void down(const Chunk& chunk, int64_t first, int64_t count, const float* act, const Results& y,
            const char* next) const {
    TaskScratch scratch(kern, form, BLOCK_ROWS, 1, shape.down.forward_floats(count));
    Operand left = shape.down.forward(kern, chunk.expert, first, count, scratch.weight);
    left.next = next;
    block_product(form, scratch, &left, 1, count, shape.inner, chunk, Right::of(act));
    if (experts.down_bias)
      add_row_bias(kern, scratch.result[0], chunk.pitch, count, *experts.down_bias, chunk.expert, first);
    const auto put = y.streamed ? kern.stream_transposed : kern.scatter_transposed;
    put(y.data + chunk.first * y.stride * item_size(y.dtype), y.dtype, y.stride, scratch.result[0], chunk.pitch,
        chunk.count, count);
  }
};

// One task per (chunk, block of weight rows).
void up_projection(const Projections& mlp, const Right& x, const Chunks& chunks, float* act, int threads) {
  const std::vector<Task> tasks =
      cut_into_tasks(chunks, mlp.shape.inner, mlp.largest(), std::max(mlp.kern.lanes, mlp.form.quantum), threads);
  for_each_task(tasks, threads, [&](const Task& task, const Task* next) {
    const char* ahead = nullptr;
    if (next && next->first != task.first)
      ahead = mlp.shape.gate_up.address(chunks.list[next->chunk].expert, mlp.fold() * next->first);
    mlp.up(chunks.list[task.chunk], task.first, task.count, x, act, ahead);
  });
}

// y (N, count), for the features [first, first + count).
void down_projection(const Projections& mlp, const Chunks& chunks, const float* act, const Results& y, int64_t first,
                     int64_t count, int threads) {
  const std::vector<Task> tasks = cut_into_tasks(chunks, count, BLOCK_ROWS, mlp.kern.lanes, threads);
  for_each_task(tasks, threads, [&](const Task& task, const Task* next) {
    const char* ahead = nullptr;
    if (next && next->first != task.first)
      ahead = mlp.shape.down.address(chunks.list[next->chunk].expert, first + next->first);
    mlp.down(chunks.list[task.chunk], first + task.first, task.count, act, y.from(task.first), ahead);
  });
}

// The whole MLP of a chunk in one task: x and the activation stay in the thread's own cache. y is (N, H).
void whole_chunks(const Projections& mlp, const Rows& tokens, const Chunks& chunks, const std::vector<int32_t>& order,
                  const Results& y, int threads) {
  const ExpertShape& shape = mlp.shape;
  parallel_for(static_cast<int64_t>(order.size()), threads, [&](int64_t index) {
    Chunk chunk = chunks.list[order[index]];
    chunk.columns_before = 0;
    const int64_t x_words = chunk.pitch * mlp.form.words(shape.hidden);
    const int64_t act_words = chunk.pitch * mlp.form.words(shape.inner);
    Workspace workspace(Workspace::padded<float>(x_words) + Workspace::padded<float>(act_words));
    float* x = workspace.take<float>(x_words);
    float* act = workspace.take<float>(act_words);
    mlp.form.pack_columns(x, mlp.form.ldb(shape.hidden, chunk.pitch), tokens.from(chunk.first), chunk.count, 0,
                          shape.hidden);
    for (int64_t first = 0; first < shape.inner; first += mlp.largest())
      mlp.up(chunk, first, std::min(mlp.largest(), shape.inner - first), Right::of(x), act,
             first + mlp.largest() < shape.inner
                 ? shape.gate_up.address(chunk.expert, mlp.fold() * (first + mlp.largest()))
                 : shape.down.address(chunk.expert, 0));
    // As many columns at a time as the second-level cache holds.
    const int64_t column = mlp.form.words(shape.inner), panel = mlp.form.panel;
    const int64_t cuts = panel * std::max<int64_t>(1, (act_words + ACT_WORDS - 1) / ACT_WORDS);
    const int64_t width = (chunk.count + cuts - 1) / cuts * panel;
    for (int64_t n = 0; n < chunk.count; n += width) {
      Chunk part = chunk;
      part.first += n;
      part.count = std::min(width, chunk.count - n);
      part.pitch = pitch_of(mlp.kern, mlp.form, part.count);
      for (int64_t first = 0; first < shape.hidden; first += BLOCK_ROWS)
        mlp.down(part, first, std::min(BLOCK_ROWS, shape.hidden - first), act + n * column, y.from(first),
                 first + BLOCK_ROWS < shape.hidden ? shape.down.address(chunk.expert, first + BLOCK_ROWS) : nullptr);
    }
  });
}

// The chunks, the longest first, if so many threads come to an end at about the same time with whole ones.
std::vector<int32_t> balanced_order(const Chunks& chunks, int threads) {
  // Reading an expert's weights once takes about as long as their products with so many columns.
  constexpr int64_t READING = 128;
  std::vector<int32_t> order(chunks.list.size());
  for (size_t c = 0; c < order.size(); ++c) order[c] = static_cast<int32_t>(c);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return chunks.list[a].pitch > chunks.list[b].pitch; });
  std::vector<int64_t> busy(threads, 0);
  int64_t total = 0;
  for (const int32_t c : order) {
    const int64_t cost = READING + chunks.list[c].pitch;
    *std::min_element(busy.begin(), busy.end()) += cost;
    total += cost;
  }
  const int64_t longest = *std::max_element(busy.begin(), busy.end());
  if (longest * threads > total + total / 20) order.clear();
  return order;
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
  const Chunks chunks = cut_into_chunks(kern, form, offsets, shape.count, shape.hidden);
  if (saved) zero_rows(saved->pre, offsets[shape.count], N, threads);

  double hit = 0.0;
  for (size_t e = 0; e + 1 < chunks.begin.size(); ++e) hit += chunks.begin[e + 1] > chunks.begin[e];
  const double size = static_cast<double>(shape.wide) * static_cast<double>(shape.hidden);
  threads = threads_for(threads, product_time(size * hit, size * static_cast<double>(N)));

  const Projections mlp{kern, form, shape, experts, saved ? &saved->pre : nullptr};
  const Rows tokens{x.data, x.dtype, shape.hidden, row_token, nullptr};
  const TokenRows token_rows{slot_row, shape.slots, nullptr, nullptr};
  // Results are rounded to bfloat16 where the output is, on the forms that are so fast that writing them counts.
  const DType type = chunks.kept && out.dtype == DType::bf16 ? DType::bf16 : DType::f32;
  const auto combine = [&](const Results& y, int64_t first, int64_t count) {
    sum_rows(out.data, out.dtype, shape.hidden, first, count, shape.tokens, y.data, y.dtype, y.stride, token_rows,
             weights.as<const float>(), nullptr, nullptr, threads);
  };

  prefer_huge_pages(out.data, static_cast<size_t>(out.numel() * item_size(out.dtype)));
  const int64_t bytes = N * shape.hidden * item_size(type);
  if (chunks.kept && bytes <= WHOLE_RESULTS) {
    const std::vector<int32_t> order = balanced_order(chunks, threads);
    if (!order.empty()) {
      Workspace workspace(Workspace::padded<char>(bytes));
      const Results y{workspace.take<char>(bytes), type, shape.hidden, bytes > STREAMED_RESULTS};
      whole_chunks(mlp, tokens, chunks, order, y, threads);
      combine(y, 0, shape.hidden);
      return;
    }
  }

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
  char* y_data = reinterpret_cast<char*>(workspace.take<float>(slices.floats));

  if (before) pack_rows(form, chunks, tokens, shape.hidden, x_packed, threads);
  const Right right = before ? Right::of(x_packed) : Right::gathered(tokens);
  up_projection(mlp, right, chunks, form.whole() ? act_rows : act, threads);
  if (form.whole())
    pack_rows(form, chunks, {reinterpret_cast<const char*>(act_rows), DType::f32, shape.inner, nullptr, nullptr},
              shape.inner, act, threads);
  for (int64_t first = 0; first < shape.hidden; first += slices.width) {
    const int64_t count = std::min(slices.width, shape.hidden - first);
    const Results y{y_data, type, count, false};
    down_projection(mlp, chunks, act, y, first, count, threads);
    combine(y, first, count);
  }
}

}  // namespace moe
