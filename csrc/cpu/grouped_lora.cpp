// grouped_lora, forward and backward: rows routed by group, then the shrink x·Aᵀ in float32 and the expand h·Bᵀ.
#include "grouped_lora.h"

#include <algorithm>
#include <string>
#include <vector>

#include "blocks.h"
#include "common/error.h"
#include "ops.h"

namespace moe {
namespace {

TensorView contiguous(const void* data, DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view;
  view.data = static_cast<char*>(const_cast<void*>(data));
  view.dtype = dtype;
  for (int64_t size : shape) view.shape[view.dims++] = size;
  int64_t stride = 1;
  for (int i = view.dims - 1; i >= 0; --i) {
    view.strides[i] = stride;
    stride *= view.shape[i];
  }
  return view;
}

// Rows sorted by group, as `route` sorts slots by expert.
struct SortedRows {
  explicit SortedRows(int64_t groups) : offsets(groups + 1, 0) {}
  TensorView offsets_view() const { return contiguous(offsets.data(), DType::i32, {int64_t(offsets.size())}); }
  TensorView row_token_view() const { return contiguous(row_token.data(), DType::i32, {int64_t(row_token.size())}); }
  TensorView slot_row_view() const { return contiguous(slot_row.data(), DType::i32, {int64_t(slot_row.size()), 1}); }

  std::vector<int32_t> offsets;    // (G+1)
  std::vector<int32_t> row_token;  // (N): the row of x
  std::vector<int32_t> slot_row;   // (N): where that row of x went, or -1
};

// Rows of one group that a thread works on together: their part of x stays in the second-level cache, and what packing
// B costs is small beside the products.
constexpr int64_t PART_ROWS = 96;
// Parts are multiples of the tiles' rows.
constexpr int64_t PART_QUANTUM = 12;
// Floats of B that are packed at a time: a half of the first-level cache.
constexpr int64_t PACKED = 6 * 1024;

struct Part {
  int64_t group, first, count;  // rows as sorted
};

struct Lora {
  Lora(const char* op, const LoraArguments& args)
      : args(args),
        groups(args.a.shape[0]),
        rank(args.a.shape[1]),
        inputs(args.x.shape[1]),
        outputs(args.b.shape[1]),
        rows(args.x.shape[0]),
        sorted(groups) {
    check_float(op, "x", args.x, {-1, -1});
    check_strided(op, "A", args.a, {-1, -1, inputs});
    if (args.a.dtype != args.x.dtype || (args.a.strides[2] != 1 && inputs > 1))
      throw Error(std::string(op) + ": A: expected the type of x and a unit stride along H, got " + describe(args.a));
    check_strided(op, "B", args.b, {groups, -1, rank});
    if (args.b.dtype != args.x.dtype)
      throw Error(std::string(op) + ": B: expected the type of x, got " + describe(args.b));
    check_type(op, "groups", args.groups, args.groups.dtype == DType::i64 ? DType::i64 : DType::i32, {rows});
    check_type(op, "scaling", args.scaling, DType::f32, {groups});
    if (args.ranks) {
      check_type(op, "ranks", *args.ranks, DType::i32, {groups});
      for (int64_t g = 0; g < groups; ++g)
        if (rank_of(g) < 0 || rank_of(g) > rank)
          throw Error(std::string(op) + ": ranks: expected values in [0, R=" + std::to_string(rank) + "], got " +
                      std::to_string(rank_of(g)));
    }
    sorted.row_token.resize(rows);
    sorted.slot_row.resize(rows);
    const TensorView slots = contiguous(args.groups.data, args.groups.dtype, {rows, 1});
    route(slots, groups, sorted.offsets.data(), sorted.row_token.data(), sorted.slot_row.data());
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = sorted.offsets[g], count = sorted.offsets[g + 1] - first;
      if (count == 0) continue;
      ++hit;
      const int64_t pieces = (count + PART_ROWS - 1) / PART_ROWS, even = (count + pieces - 1) / pieces;
      const int64_t size = (even + PART_QUANTUM - 1) / PART_QUANTUM * PART_QUANTUM;
      for (int64_t at = 0; at < count; at += size) parts.push_back({g, first + at, std::min(size, count - at)});
    }
  }

  int64_t rank_of(int64_t g) const { return args.ranks ? args.ranks->as<const int32_t>()[g] : rank; }
  TensorView low(const float* h) const { return contiguous(h, DType::f32, {rows, rank}); }
  int threads_for_products(int threads, int64_t width) const {
    const double size = static_cast<double>(rank) * static_cast<double>(width);
    const double moved = static_cast<double>(rows) * static_cast<double>(width) / 8.0;
    return threads_for(threads,
                       moved + product_time(size * static_cast<double>(hit), size * static_cast<double>(rows)));
  }

  // h (N, R) = x · A[g]ᵀ, sorted; columns from the group's rank on are not written.
  void shrink(float* h, const Part& part, Upcoming upcoming) const {
    const Operand a{args.a.row(part.group), args.a.dtype, args.a.strides[1], 1, nullptr, 0};
    const Rows x{args.x.data, args.x.dtype, inputs, sorted.row_token.data(), nullptr};
    kernels().shrink(h + part.first * rank, rank, x.from(part.first), part.count, a, rank_of(part.group), inputs,
                     upcoming);
  }
  void shrink(float* h, int threads) const {
    parallel_for(static_cast<int64_t>(parts.size()), threads_for_products(threads, inputs),
                 [&](int64_t index) { shrink(h, parts[index], {}); });
  }

  // to = scaling[g] · from, row by row, zero in the padding: nothing of it is multiplied, NaN would survive that.
  void scale(float* to, const float* from, const Part& part) const {
    const float factor = args.scaling.as<const float>()[part.group];
    const int64_t kept = rank_of(part.group);
    for (int64_t n = part.first; n < part.first + part.count; ++n) {
      for (int64_t r = 0; r < kept; ++r) to[n * rank + r] = factor * from[n * rank + r];
      std::fill(to + n * rank + kept, to + (n + 1) * rank, 0.0f);
    }
  }
  void scale(float* to, const float* from) const {
    for (const Part& part : parts) scale(to, from, part);
  }

  // out[:, first : first + count] = h · w[g] (+ base), back in the order of x: B (G, O, R) for the delta, A (G, R, H)
  // `transposed` for dx.
  void expand(const float* h, const TensorView& w, bool transposed, const TensorView* base, const TensorView& out,
              const Part& part, int64_t first, int64_t count) const {
    const Kernels& kern = kernels();
    const int64_t kept = rank_of(part.group);
    const Operand all{w.row(part.group), w.dtype, w.strides[transposed ? 2 : 1], w.strides[transposed ? 1 : 2],
                      nullptr,           0};
    const RowsOut rows_out{out.data, base ? base->data : nullptr, out.dtype, out.shape[1], sorted.row_token.data()};
    const int64_t panels = std::max<int64_t>(PACKED / std::max<int64_t>(kept, 1) / kern.expand_columns, 1);
    const int64_t step = panels * kern.expand_columns;
    const int64_t floats = step * ((kept + 15) / 16 * 16);
    float* packed = static_cast<float*>(thread_scratch(static_cast<size_t>(floats) * sizeof(float)));
    for (int64_t at = first; at < first + count; at += step) {
      const int64_t columns = std::min(step, first + count - at);
      kern.pack_expand(packed, all.at(at, 0), columns, kept);
      kern.expand(rows_out.from(part.first), at, h + part.first * rank, rank, part.count, packed, kept, columns);
    }
  }
  // The same for all parts and columns, and what rows without a group get.
  void expand(const float* h, const TensorView& w, bool transposed, const TensorView* base, const TensorView& out,
              int threads) const {
    const int64_t width = out.shape[1], columns = kernels().expand_columns, wanted = threads > 1 ? 4 * threads : 1;
    const int64_t count = static_cast<int64_t>(parts.size());
    // Fewer parts than threads could use are cut along the columns.
    int64_t block = std::max<int64_t>(width, 1);
    while (block > columns && count * ((width + block - 1) / block) < wanted)
      block = (block / 2 + columns - 1) / columns * columns;
    const int64_t blocks = (width + block - 1) / block;
    fill_others(base, out);
    parallel_for(count * blocks, threads_for_products(threads, width), [&](int64_t index) {
      const int64_t first = index % blocks * block;
      expand(h, w, transposed, base, out, parts[index / blocks], first, std::min(block, width - first));
    });
  }

  // Rows without a group have no delta.
  void fill_others(const TensorView* base, const TensorView& out) const {
    const size_t bytes = static_cast<size_t>(out.shape[1] * item_size(out.dtype));
    for (int64_t n = 0; n < rows; ++n) {
      if (sorted.slot_row[n] >= 0) continue;
      if (!base)
        std::memset(out.row(n), 0, bytes);
      else if (base->data != out.data)
        std::memcpy(out.row(n), base->row(n), bytes);
    }
  }

  const LoraArguments& args;
  int64_t groups, rank, inputs, outputs, rows;  // G, R, H, O, N
  SortedRows sorted;
  std::vector<Part> parts;
  int64_t hit = 0;  // groups that have rows
};

}  // namespace

void grouped_lora(const LoraArguments& args, const TensorView* base, const TensorView& out, int threads) {
  const char* op = "grouped_lora";
  const Lora lora(op, args);
  check_float(op, "out", out, {lora.rows, lora.outputs});
  if (base) check_type(op, "base", *base, out.dtype, {lora.rows, lora.outputs});
  prefer_huge_pages(out.data, static_cast<size_t>(out.numel() * item_size(out.dtype)));
  Workspace workspace(Workspace::padded<float>(lora.rows * lora.rank));
  float* h = workspace.take<float>(lora.rows * lora.rank);
  const int64_t count = static_cast<int64_t>(lora.parts.size());
  const int used = lora.threads_for_products(threads, lora.inputs + lora.outputs);
  if (count < 2 * used) {
    lora.shrink(h, threads);
    lora.scale(h, h);
    lora.expand(h, args.b, false, base, out, threads);
    return;
  }
  // Enough parts for all threads: each is finished at once.
  lora.fill_others(base, out);
  parallel_for(count, used, [&](int64_t index) {
    const Part& part = lora.parts[index];
    const char* b = args.b.row(part.group);
    lora.shrink(h, part, {b, b + item_size(args.b.dtype) * lora.rank * lora.outputs});
    lora.scale(h, h, part);
    lora.expand(h, args.b, false, base, out, part, 0, lora.outputs);
  });
}

void grouped_lora_backward(const TensorView& grad, const LoraArguments& args, const LoraGradients& gradients,
                           int threads) {
  const char* op = "grouped_lora_backward";
  const Lora lora(op, args);
  const int64_t rank = lora.rank, size = lora.rows * rank;
  check_float(op, "grad", grad, {lora.rows, lora.outputs});
  if (gradients.x) check_float(op, "grad_x", *gradients.x, {lora.rows, args.x.shape[1]});
  if (gradients.a) check_float(op, "grad_A", *gradients.a, {lora.groups, rank, args.x.shape[1]});
  if (gradients.b) check_float(op, "grad_B", *gradients.b, {lora.groups, lora.outputs, rank});
  if (gradients.scaling) check_type(op, "grad_scaling", *gradients.scaling, DType::f32, {lora.groups});

  // h is made again: its products are a fifth of this function's.
  Workspace workspace(3 * Workspace::padded<float>(size));
  float* h = workspace.take<float>(size);
  float* scaled = workspace.take<float>(size);
  float* dh = workspace.take<float>(size);
  lora.shrink(h, threads);
  lora.scale(scaled, h);
  const TensorView offsets = lora.sorted.offsets_view(), row_token = lora.sorted.row_token_view();
  const TensorView slot_row = lora.sorted.slot_row_view(), dh_view = lora.low(dh);
  const bool need_dh = gradients.x || gradients.a || gradients.scaling;
  grouped_mm_backward(grad, {lora.low(scaled), Weight(args.b, false), offsets, nullptr, nullptr, nullptr, &slot_row},
                      need_dh ? &dh_view : nullptr, gradients.b, nullptr, nullptr, threads);
  // dh is before the scaling here; a column of it comes from one column of B, so the padding has not spread.
  for (int64_t g = 0; gradients.scaling && g < lora.groups; ++g) {
    double sum = 0.0;
    for (int64_t n = lora.sorted.offsets[g]; n < lora.sorted.offsets[g + 1]; ++n)
      for (int64_t r = 0; r < lora.rank_of(g); ++r)
        sum += static_cast<double>(h[n * rank + r]) * static_cast<double>(dh[n * rank + r]);
    gradients.scaling->as<float>()[g] = static_cast<float>(sum);
  }
  if (!gradients.x && !gradients.a) return;
  lora.scale(dh, dh);
  if (gradients.x) lora.expand(dh, args.a, true, nullptr, *gradients.x, threads);
  if (gradients.a)
    grouped_mm_backward(dh_view, {args.x, Weight(args.a, false), offsets, &row_token, nullptr, nullptr, nullptr},
                        nullptr, gradients.a, nullptr, nullptr, threads);
}

}  // namespace moe
