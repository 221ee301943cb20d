// Walks every thread of the permute kernels on the host and compares with plain loops: no GPU is needed.
// Exit status 0 when all agree; otherwise one line for each difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "cuda/launch.h"
#include "cuda/permute.cuh"

using namespace moe;
using namespace moe::cuda;

static int failures = 0;
constexpr double FLOAT_UNIT = 5.97e-8;

static void expect(bool ok, const char* what, int64_t got, int64_t want) {
  if (ok) return;
  ++failures;
  std::printf("%s: expected %lld, got %lld\n", what, static_cast<long long>(want), static_cast<long long>(got));
}

struct Case {
  int64_t T, K, H, padding;
  bool sentinels;
};

// Rows with `padding` spare elements behind each, all of them NaN until written.
template <typename T>
struct Matrix {
  int64_t rows, columns, stride;
  std::vector<T> data;
  Matrix(int64_t r, int64_t c, int64_t padding)
      : rows(r), columns(c), stride(c + padding), data(r * (c + padding) + 1, from_float<T>(NAN)) {}
  T& at(int64_t r, int64_t c) { return data[r * stride + c]; }
};

template <typename T>
static Matrix<T> random_matrix(int64_t rows, int64_t columns, int64_t padding, std::mt19937& random) {
  Matrix<T> m(rows, columns, padding);
  std::normal_distribution<float> normal;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) m.at(r, c) = from_float<T>(normal(random));
  return m;
}

template <typename Body>
static void walk(const RowLaunch& l, Body body) {
  for (int64_t bx = 0; bx < l.grid_rows; ++bx)
    for (int64_t by = 0; by < l.grid_columns; ++by)
      for (int64_t ty = 0; ty < l.rows; ++ty)
        for (int64_t tx = 0; tx < l.columns; ++tx) body(bx * l.rows + ty, by * l.columns + tx);
}

// What rounding to a format may cost: relative above the smallest normal number, absolute below it.
struct Format {
  const char* name;
  double relative;
  double absolute;
};

constexpr Format FLOAT32{"float32", FLOAT_UNIT, 0.0};
constexpr Format FLOAT16{"float16", 4.89e-4, 2.99e-8};
constexpr Format BFLOAT16{"bfloat16", 3.91e-3, 0.0};

static bool near(float got, double want, const Format& format, double sum_error = 0.0) {
  return std::fabs(got - want) <= format.relative * std::fabs(want) + format.absolute + sum_error;
}

template <typename T, int WIDTH>
static void check_case(const Format& format, const Case& c, std::mt19937& random) {
  const int before = failures;
  const int64_t N = c.T * c.K;
  auto x = random_matrix<T>(c.T, c.H, c.padding, random);
  auto y = random_matrix<T>(N, c.H, c.padding, random);
  std::vector<int32_t> slot_row(N), row_token(N, 0), owned{0};
  std::vector<float> weights(N);
  for (int64_t slot = 0; slot < N; ++slot) {
    const bool gone = c.sentinels && random() % 3 == 0;
    slot_row[slot] = gone ? -1 : owned[0]++;
    weights[slot] = gone ? NAN : 1.0f / static_cast<float>(1 + slot % 5);
  }
  // Rows in any order will do: reverse them, so that row and slot differ.
  for (int64_t slot = 0; slot < N; ++slot)
    if (slot_row[slot] >= 0) {
      slot_row[slot] = owned[0] - 1 - slot_row[slot];
      row_token[slot_row[slot]] = static_cast<int32_t>(slot / c.K);
    }

  Matrix<T> rows(N, c.H, c.padding);
  PermuteArgs<T> p{{x.data.data(), x.stride}, {rows.data.data(), rows.stride}, row_token.data(), owned.data(), N, c.H};
  walk(row_launch(N, c.H), [&](int64_t row, int64_t column) { permute_thread(p, row, column); });
  int64_t wrong = 0;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t h = 0; h < c.H; ++h)
      wrong += to_float(rows.at(n, h)) != (n < owned[0] ? to_float(x.at(row_token[n], h)) : 0.0f);
  expect(wrong == 0, "permute, wrong elements", wrong, 0);

  for (bool weighted : {true, false}) {
    const float* w = weighted ? weights.data() : nullptr;
    auto weight = [&](int64_t slot) { return weighted ? static_cast<double>(weights[slot]) : 1.0; };

    Matrix<T> out(c.T, c.H, c.padding);
    UnpermuteArgs<T> u{{y.data.data(), y.stride}, {out.data.data(), out.stride}, slot_row.data(), w, c.T, c.K,
                       c.H / WIDTH};
    walk(row_launch(c.T, u.columns), [&](int64_t t, int64_t v) { unpermute_thread<T, WIDTH>(u, t, v); });
    wrong = 0;
    for (int64_t t = 0; t < c.T; ++t)
      for (int64_t h = 0; h < c.H; ++h) {
        double want = 0.0, sum_error = 0.0;
        for (int64_t slot = t * c.K; slot < (t + 1) * c.K; ++slot)
          if (slot_row[slot] >= 0) {
            const double term = weight(slot) * to_float(y.at(slot_row[slot], h));
            want += term;
            sum_error += std::fabs(term) * c.K * FLOAT_UNIT;
          }
        wrong += !near(to_float(out.at(t, h)), want, format, sum_error);
      }
    expect(wrong == 0, weighted ? "unpermute, wrong elements" : "unpermute without weights, wrong elements", wrong, 0);

    constexpr int THREADS = 128;
    Matrix<T> grad_rows(N, c.H, c.padding);
    UnpermuteBackwardArgs<T> b{{x.data.data(), x.stride}, {y.data.data(), y.stride},
                               {grad_rows.data.data(), grad_rows.stride}, slot_row.data(), w, nullptr, N, c.K,
                               c.H / WIDTH};
    wrong = 0;
    for (int64_t slot = 0; slot < N; ++slot) {
      float dot = 0.0f;
      for (int thread = 0; thread < THREADS; ++thread)
        dot += unpermute_backward_thread<T, WIDTH>(b, slot, thread, THREADS);
      const int64_t row = slot_row[slot], token = slot / c.K;
      double want = 0.0, size = 0.0;
      for (int64_t h = 0; h < c.H && row >= 0; ++h) {
        wrong += !near(to_float(grad_rows.at(row, h)), weight(slot) * to_float(x.at(token, h)), format);
        const double term = static_cast<double>(to_float(x.at(token, h))) * to_float(y.at(row, h));
        want += weighted ? term : 0.0;
        size += std::fabs(term);
      }
      // A thread adds H / 128 products or fewer, then 128 parts are added.
      wrong += !near(dot, want, FLOAT32, size * FLOAT_UNIT * (c.H / THREADS + 1 + THREADS));
    }
    for (int64_t n = owned[0]; n < N; ++n) wrong += !std::isnan(to_float(grad_rows.at(n, 0)));
    expect(wrong == 0, "unpermute backward, wrong elements", wrong, 0);
  }
  if (failures > before)
    std::printf("  in %s, width %d, T=%d K=%d H=%d\n", format.name, WIDTH, static_cast<int>(c.T), static_cast<int>(c.K),
                static_cast<int>(c.H));
}

template <typename Element, int WIDE>
static void check_type(const Format& format) {
  std::mt19937 random(0);
  for (int64_t T : {1, 3, 65})
    for (int64_t K : {1, 2, 8})
      for (bool sentinels : {false, true}) {
        for (int64_t H : {1, 7, 96}) check_case<Element, 1>(format, {T, K, H, 3, sentinels}, random);
        for (int64_t H : {8, 96, 2056}) check_case<Element, WIDE>(format, {T, K, H, 8, sentinels}, random);
      }
}

static TensorView view_at(uintptr_t address, int64_t rows, int64_t stride, DType dtype) {
  TensorView v;
  v.data = reinterpret_cast<char*>(address);
  v.dims = 2;
  v.shape[0] = rows;
  v.strides[0] = stride;
  v.strides[1] = 1;
  v.dtype = dtype;
  return v;
}

static void check_launch() {
  const TensorView aligned = view_at(256, 4, 96, DType::bf16), odd_stride = view_at(256, 4, 97, DType::bf16);
  const TensorView odd_address = view_at(264, 4, 96, DType::bf16), one_row = view_at(256, 1, 97, DType::bf16);
  expect(vector_bytes(192, {&aligned}) == 16, "aligned rows", vector_bytes(192, {&aligned}), 16);
  expect(vector_bytes(192, {&aligned, &odd_stride}) == 2, "odd stride", vector_bytes(192, {&aligned, &odd_stride}), 2);
  expect(vector_bytes(192, {&odd_address}) == 8, "address", vector_bytes(192, {&odd_address}), 8);
  expect(vector_bytes(192, {&one_row}) == 16, "one row", vector_bytes(192, {&one_row}), 16);
  expect(vector_bytes(196, {&aligned}) == 4, "row length", vector_bytes(196, {&aligned}), 4);
  for (int64_t rows : {int64_t{1}, int64_t{1000}, int64_t{std::numeric_limits<int32_t>::max()}})
    for (int64_t vectors : {1, 3, 12, 256, 257, 1792}) {
      const RowLaunch l = row_launch(rows, vectors);
      expect(int64_t{l.columns} * l.rows == 256, "threads of a block", int64_t{l.columns} * l.rows, 256);
      expect(int64_t{l.grid_rows} * l.rows >= rows, "rows covered", int64_t{l.grid_rows} * l.rows, rows);
      const int64_t columns = int64_t{l.grid_columns} * l.columns;
      expect(columns >= vectors, "columns covered", columns, vectors);
      expect(l.grid_rows <= 2147483647u && l.grid_columns <= 65535u, "grid limits", l.grid_rows, 2147483647);
    }
}

int main() {
  check_launch();
  check_type<float, 4>(FLOAT32);
  check_type<__half, 8>(FLOAT16);
  check_type<__nv_bfloat16, 8>(BFLOAT16);
  std::printf("%d differences\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
