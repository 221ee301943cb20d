#include "decoding.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "blocks.h"
#include "common/error.h"

namespace moe {
namespace {

// Of a row's values: the widest vector has 16.
constexpr int64_t QUANTUM = 16;

void check_quantum(const char* op, const char* name, int64_t size, int64_t quantum) {
  if (size % quantum != 0 || size == 0)
    throw Error(std::string(op) + ": " + name + ": expected a multiple of " + std::to_string(quantum) + ", got " +
                std::to_string(size));
}

void check_norm(const char* op, const char* name, const NormWeight* norm, int64_t size) {
  if (norm) check_type(op, name, norm->weight, DType::f32, {size});
}

}  // namespace

void rms_norm(const TensorView& x, const NormWeight& norm, const TensorView* base, const TensorView& out,
              int threads) {
  const char* op = "rms_norm";
  check_float(op, "x", x, {-1, -1});
  const int64_t rows = x.shape[0], size = x.shape[1];
  check_quantum(op, "x", size, QUANTUM);
  check_norm(op, "weight", &norm, size);
  if (base) check_type(op, "base", *base, x.dtype, {rows, size});
  check_type(op, "out", out, x.dtype, {rows, size});
  const int used = threads_for(threads, static_cast<double>(rows * size) / 8.0);
  constexpr int64_t ROWS = 16;
  parallel_for((rows + ROWS - 1) / ROWS, used, [&](int64_t block) {
    for (int64_t n = block * ROWS; n < std::min(rows, (block + 1) * ROWS); ++n)
      kernels().rms_norm(out.row(n), x.row(n), base ? base->row(n) : nullptr, x.dtype, norm.weight.as<const float>(),
                         norm.eps, norm.rounds_first, size);
  });
}

void decode_attention(const DecodeAttention& a, const TensorView& out, int threads) {
  const char* op = "decode_attention";
  check_float(op, "q", a.q, {-1, -1});
  const TensorView& keys = a.keys;
  if (keys.dims != 4) throw Error("decode_attention: keys: expected 4 dimensions, got " + describe(keys));
  const int64_t rows = a.q.shape[0], key_heads = keys.shape[1], columns = keys.shape[2], size = keys.shape[3];
  check_quantum(op, "head size", size, 2 * QUANTUM);
  if (key_heads < 1) throw Error("decode_attention: keys: expected at least one head, got " + describe(keys));
  const DType dtype = a.q.dtype;
  check_type(op, "keys", keys, dtype, {rows, -1, -1, -1});
  check_type(op, "values", a.values, dtype, {rows, key_heads, columns, size});
  check_type(op, "k", a.k, dtype, {rows, key_heads * size});
  check_type(op, "v", a.v, dtype, {rows, key_heads * size});
  check_type(op, "cos", a.cos, DType::f32, {-1, size});
  check_type(op, "sin", a.sin, DType::f32, {a.cos.shape[0], size});
  check_type(op, "positions", a.positions, DType::i64, {rows});
  check_type(op, "starts", a.starts, DType::i64, {rows});
  check_type(op, "out", out, dtype, {rows, a.q.shape[1]});
  check_norm(op, "q_norm", a.q_norm, size);
  check_norm(op, "k_norm", a.k_norm, size);
  check_quantum(op, "q", a.q.shape[1], key_heads * size);
  if (a.column < 0 || a.column >= columns || a.window < 1)
    throw Error("decode_attention: column: expected one of " + std::to_string(columns) +
                " and a window of at least 1, got " + std::to_string(a.column) + " and " + std::to_string(a.window));
  for (int64_t b = 0; b < rows; ++b) {
    const int64_t position = a.positions.as<const int64_t>()[b], start = a.starts.as<const int64_t>()[b];
    if (position < 0 || position >= a.cos.shape[0] || start < 0 || start > a.column)
      throw Error("decode_attention: row " + std::to_string(b) + ": expected a position below " +
                  std::to_string(a.cos.shape[0]) + " and a start of at most " + std::to_string(a.column) + ", got " +
                  std::to_string(position) + " and " + std::to_string(start));
  }
  const int64_t heads = a.q.shape[1] / (key_heads * size), row_bytes = size * item_size(dtype);
  const int64_t seen = std::min(a.window, a.column + 1);
  const int used = threads_for(threads, static_cast<double>(rows * a.q.shape[1] * seen) / 8.0);
  const Kernels& kern = kernels();
  parallel_for(rows * key_heads, used, [&](int64_t task) {
    const int64_t b = task / key_heads, n = task % key_heads;
    const int64_t position = a.positions.as<const int64_t>()[b];
    const float *cos = a.cos.as<const float>() + position * size, *sin = a.sin.as<const float>() + position * size;
    const auto ready = [&](char* row, const NormWeight* norm) {
      if (norm)
        kern.rms_norm(row, row, nullptr, dtype, norm->weight.as<const float>(), norm->eps, norm->rounds_first, size);
      kern.turn(row, dtype, cos, sin, size);
    };
    char *k = a.k.row(b) + n * row_bytes, *q = a.q.row(b) + n * heads * row_bytes;
    ready(k, a.k_norm);
    for (int64_t h = 0; h < heads; ++h) ready(q + h * row_bytes, a.q_norm);
    const int64_t cache = (b * key_heads + n) * columns * row_bytes;
    std::memcpy(keys.data + cache + a.column * row_bytes, k, static_cast<size_t>(row_bytes));
    std::memcpy(a.values.data + cache + a.column * row_bytes, a.v.row(b) + n * row_bytes,
                static_cast<size_t>(row_bytes));
    const int64_t first = std::max(a.starts.as<const int64_t>()[b], a.column + 1 - seen);
    const int64_t count = a.column + 1 - first, padded = (count + QUANTUM - 1) / QUANTUM * QUANTUM;
    float* scores = static_cast<float*>(thread_scratch(static_cast<size_t>(heads * padded) * sizeof(float)));
    kern.attend(out.row(b) + n * heads * row_bytes, q, dtype, heads, size, keys.data + cache + first * row_bytes,
                a.values.data + cache + first * row_bytes, count, a.scale, scores);
  });
}

}  // namespace moe
