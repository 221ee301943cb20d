// grouped_lora, forward and backward: rows routed by group, then two grouped products with the float32 shrink between.
#include "grouped_lora.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/scratch.h"
#include "ops.h"
#include "plan.h"

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

struct Lora {
  Lora(const char* op, const LoraArguments& args)
      : args(args),
        groups(args.a.shape[0]),
        rank(args.a.shape[1]),
        outputs(args.b.shape[1]),
        rows(args.x.shape[0]),
        sorted(groups) {
    check_float(op, "x", args.x, {-1, -1});
    check_strided(op, "A", args.a, {-1, -1, args.x.shape[1]});
    check_strided(op, "B", args.b, {groups, -1, rank});
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
  }

  int64_t rank_of(int64_t g) const { return args.ranks ? args.ranks->as<const int32_t>()[g] : rank; }
  TensorView low(const float* h) const { return contiguous(h, DType::f32, {rows, rank}); }

  // h (N, R) = x · A[g]ᵀ, sorted; the padding of mixed ranks has whatever A's padding gives.
  void shrink(float* h, int threads) const {
    const TensorView offsets = sorted.offsets_view(), row_token = sorted.row_token_view();
    grouped_mm({args.x, Weight(args.a, false), offsets, &row_token, nullptr, nullptr, nullptr}, nullptr, low(h),
               threads);
  }

  // to = scaling[g] · from, row by row, zero in the padding: nothing of it is multiplied, NaN would survive that.
  void scale(float* to, const float* from) const {
    for (int64_t g = 0; g < groups; ++g) {
      const float factor = args.scaling.as<const float>()[g];
      const int64_t kept = rank_of(g);
      for (int64_t n = sorted.offsets[g]; n < sorted.offsets[g + 1]; ++n) {
        for (int64_t r = 0; r < kept; ++r) to[n * rank + r] = factor * from[n * rank + r];
        std::fill(to + n * rank + kept, to + (n + 1) * rank, 0.0f);
      }
    }
  }

  // out = h · w[g] (+ base), back in the order of x: B (G, O, R) for the delta, A (G, R, H) `transposed` for dx.
  void expand(const float* h, const TensorView& w, bool transposed, const TensorView* base, const TensorView& out,
              int threads) const {
    std::set<int64_t> ranks;
    for (int64_t g = 0; args.ranks && g < groups; ++g)
      if (sorted.offsets[g] < sorted.offsets[g + 1]) ranks.insert(rank_of(g));
    if (ranks.empty() || (ranks.size() == 1 && *ranks.begin() == rank)) {
      const TensorView offsets = sorted.offsets_view(), slot_row = sorted.slot_row_view();
      grouped_mm({low(h), Weight(w, transposed), offsets, nullptr, nullptr, nullptr, &slot_row}, base, out, threads);
      return;
    }
    // The padding may hold anything, so each rank that occurs is a product of its own, with w cut to it.
    for (int64_t r : ranks) {
      TensorView cut = w;
      cut.shape[transposed ? 1 : 2] = r;
      expand_rank(h, r, cut, transposed, base, out, threads);
      base = &out;
    }
  }

  const LoraArguments& args;
  int64_t groups, rank, outputs, rows;  // G, R, O, N
  SortedRows sorted;

 private:
  // expand for the groups of rank r; the other rows get base alone.
  void expand_rank(const float* h, int64_t r, const TensorView& w, bool transposed, const TensorView* base,
                   const TensorView& out, int threads) const {
    SortedRows part(groups);
    std::vector<int32_t> part_row(rows, -1);
    for (int64_t g = 0; g < groups; ++g) {
      part.offsets[g + 1] = part.offsets[g];
      if (rank_of(g) != r) continue;
      for (int64_t n = sorted.offsets[g]; n < sorted.offsets[g + 1]; ++n) part_row[n] = part.offsets[g + 1]++;
    }
    part.slot_row.assign(rows, -1);
    for (int64_t n = 0; n < rows; ++n)
      if (sorted.slot_row[n] >= 0) part.slot_row[n] = part_row[sorted.slot_row[n]];
    const int64_t part_rows = part.offsets[groups];
    Workspace workspace(Workspace::padded<float>(part_rows * r));
    float* cut = workspace.take<float>(part_rows * r);
    for (int64_t n = 0; n < rows; ++n)
      if (part_row[n] >= 0) std::copy(h + n * rank, h + n * rank + r, cut + part_row[n] * r);
    const TensorView x = contiguous(cut, DType::f32, {part_rows, r});
    const TensorView offsets = part.offsets_view(), slot_row = part.slot_row_view();
    grouped_mm({x, Weight(w, transposed), offsets, nullptr, nullptr, nullptr, &slot_row}, base, out, threads);
  }
};

}  // namespace

void grouped_lora(const LoraArguments& args, const TensorView* base, const TensorView& out, int threads) {
  const char* op = "grouped_lora";
  const Lora lora(op, args);
  check_float(op, "out", out, {lora.rows, lora.outputs});
  if (base) check_float(op, "base", *base, {lora.rows, lora.outputs});
  Workspace workspace(Workspace::padded<float>(lora.rows * lora.rank));
  float* h = workspace.take<float>(lora.rows * lora.rank);
  lora.shrink(h, threads);
  lora.scale(h, h);
  lora.expand(h, args.b, false, base, out, threads);
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
