// The kernels without Python, for a processor that this machine only emulates: the expert MLP against double precision,
// and every 16-bit pattern through load and store. Prints the instruction set and "ok".
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <random>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/ops.h"

using namespace moe;

namespace {

TensorView view(const void* data, std::initializer_list<int64_t> shape, DType dtype) {
  TensorView v;
  v.data = static_cast<char*>(const_cast<void*>(data));
  v.dtype = dtype;
  for (int64_t size : shape) v.shape[v.dims++] = size;
  int64_t stride = 1;
  for (int i = v.dims - 1; i >= 0; stride *= v.shape[i--]) v.strides[i] = stride;
  return v;
}

double gelu(double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }

// Relative error of the expert MLP, E=4, K=2.
double expert_error(int T, bool transposed, std::mt19937& random) {
  constexpr int E = 4, K = 2, H = 70, I = 45;
  std::normal_distribution<float> normal;
  std::vector<float> x(T * H), up(E * 2 * I * H), down(E * H * I), weights(T * K), out(T * H);
  for (std::vector<float>* values : {&x, &up, &down, &weights})
    for (float& value : *values) value = normal(random);
  std::vector<int32_t> indices(T * K);
  for (int t = 0; t < T; ++t) {
    indices[t * K] = static_cast<int32_t>(random() % E);
    indices[t * K + 1] = (indices[t * K] + 1) % E;
  }
  const TensorView up_view = transposed ? view(up.data(), {E, H, 2 * I}, DType::f32) : view(up.data(), {E, 2 * I, H}, DType::f32);
  const TensorView down_view = transposed ? view(down.data(), {E, I, H}, DType::f32) : view(down.data(), {E, H, I}, DType::f32);
  fused_experts(view(x.data(), {T, H}, DType::f32), view(indices.data(), {T, K}, DType::i32),
                view(weights.data(), {T, K}, DType::f32),
                {Weight(up_view, transposed), Weight(down_view, transposed), nullptr, nullptr, Activation::gelu, false},
                view(out.data(), {T, H}, DType::f32), nullptr, 3);

  const auto up_at = [&](int e, int j, int h) -> double {
    return transposed ? up[(e * H + h) * 2 * I + j] : up[(e * 2 * I + j) * H + h];
  };
  double error = 0.0, size = 0.0;
  for (int t = 0; t < T; ++t) {
    std::vector<double> want(H, 0.0);
    for (int k = 0; k < K; ++k) {
      const int e = indices[t * K + k];
      for (int i = 0; i < I; ++i) {
        double gate = 0.0, linear = 0.0;
        for (int h = 0; h < H; ++h) {
          gate += up_at(e, i, h) * x[t * H + h];
          linear += up_at(e, I + i, h) * x[t * H + h];
        }
        for (int h = 0; h < H; ++h)
          want[h] += weights[t * K + k] * gelu(gate) * linear * (transposed ? down[(e * I + i) * H + h] : down[(e * H + h) * I + i]);
      }
    }
    for (int h = 0; h < H; ++h) {
      error += (out[t * H + h] - want[h]) * (out[t * H + h] - want[h]);
      size += want[h] * want[h];
    }
  }
  return std::sqrt(error / size);
}

bool patterns_survive(DType dtype) {
  for (int i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    uint16_t back = 0;
    float value = 0.0f;
    kernels().load(&value, reinterpret_cast<const char*>(&bits), dtype, 1);
    kernels().store(reinterpret_cast<char*>(&back), dtype, &value, 1);
    if (bits != back && !std::isnan(value)) {
      std::printf("pattern %04x came back as %04x\n", bits, back);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  std::printf("%s\n", kernels().name);
  std::mt19937 random(0);
  for (int T : {1, 3, 9, 40}) {
    for (bool transposed : {false, true}) {
      const double error = expert_error(T, transposed, random);
      if (error < 1e-6) continue;
      std::printf("T=%d transposed=%d: relative error %g\n", T, transposed, error);
      return 1;
    }
  }
  if (!patterns_survive(DType::f16) || !patterns_survive(DType::bf16)) return 1;
  std::printf("ok\n");
  return 0;
}
