// Every native entry, forward and backward, without Python: for sanitizers and emulators. Buffers are exactly as long
// as their tensors and outputs begin as NaN, so that a stray access or an element left out shows; one thread, three
// threads and several callers at once must give the same bits. `--list` prints the usable instruction sets; otherwise
// prints the one in use and "ok". The numbers themselves are checked by foreign_isa.cpp and the Python tests.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/error.h"
#include "cpu/decoding.h"
#include "cpu/dispatch.h"
#include "cpu/grouped_lora.h"
#include "cpu/ops.h"
#include "cpu/packing.h"
#include "cpu/rates.h"

using namespace moe;

namespace {

// A tensor with its memory.
struct Tensor {
  std::vector<char> bytes;
  TensorView view;

  Tensor(std::initializer_list<int64_t> shape, DType dtype) {
    view.dtype = dtype;
    for (int64_t size : shape) view.shape[view.dims++] = size;
    int64_t stride = 1;
    for (int i = view.dims - 1; i >= 0; stride *= view.shape[i--]) view.strides[i] = stride;
    bytes.assign(static_cast<size_t>(bytes_of(dtype, view.numel())), static_cast<char>(0xff));  // NaN, or -1
    view.data = bytes.data();
  }
  Tensor(const Tensor& other) : bytes(other.bytes), view(other.view) { view.data = bytes.data(); }
  Tensor& operator=(const Tensor&) = delete;
};

// The shape and dtype of another tensor, without its values.
Tensor like(const Tensor& other) {
  Tensor made(other);
  made.bytes.assign(made.bytes.size(), static_cast<char>(0xff));
  return made;
}

Tensor normal(std::initializer_list<int64_t> shape, DType dtype, std::mt19937& random) {
  Tensor made(shape, dtype);
  std::normal_distribution<float> distribution;
  for (int64_t i = 0; i < made.view.numel(); ++i) {
    const float value = distribution(random);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // float16: sizes from 1/16 to 1, which is all that is needed here.
    const uint16_t half = static_cast<uint16_t>((random() & 0x83ff) | ((11 + random() % 4) << 10));
    const uint16_t brain = static_cast<uint16_t>(bits >> 16);
    char* at = made.bytes.data() + i * item_size(dtype);
    if (dtype == DType::f32) std::memcpy(at, &value, 4);
    if (dtype == DType::bf16) std::memcpy(at, &brain, 2);
    if (dtype == DType::f16) std::memcpy(at, &half, 2);
  }
  return made;
}

bool all_finite(const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.view.numel(); ++i) {
    const char* at = tensor.bytes.data() + i * item_size(tensor.view.dtype);
    uint32_t wide;
    uint16_t narrow;
    if (tensor.view.dtype == DType::f32 && (std::memcpy(&wide, at, 4), (wide & 0x7f800000) == 0x7f800000)) return false;
    std::memcpy(&narrow, at, 2);
    if (tensor.view.dtype == DType::bf16 && (narrow & 0x7f80) == 0x7f80) return false;
    if (tensor.view.dtype == DType::f16 && (narrow & 0x7c00) == 0x7c00) return false;
  }
  return true;
}

struct Case {
  int64_t T, E, K, H, I;
  DType dtype;
  bool transposed;
  bool sentinels;
};

std::string name(const Case& c) {
  static const char* const dtypes[] = {"f32", "bf16", "f16"};
  return "T" + std::to_string(c.T) + "-E" + std::to_string(c.E) + "-K" + std::to_string(c.K) + "-H" +
         std::to_string(c.H) + "-I" + std::to_string(c.I) + "-" + dtypes[static_cast<int>(c.dtype)] +
         (c.transposed ? "-transposed" : "") + (c.sentinels ? "-sentinels" : "");
}

Tensor weights(const Case& c, int64_t rows, int64_t columns, std::mt19937& random) {
  return c.transposed ? normal({c.E, columns, rows}, c.dtype, random) : normal({c.E, rows, columns}, c.dtype, random);
}

// Runs everything once and returns all outputs, in a fixed order.
std::vector<Tensor> run(const Case& c, int threads) {
  std::mt19937 random(0);
  std::vector<Tensor> outputs;
  const int64_t N = c.T * c.K;

  Tensor logits = normal({c.T, c.E}, c.dtype, random), grad_routing = normal({c.T, c.K}, DType::f32, random);
  Tensor grad_mean = normal({c.E}, DType::f32, random), one = normal({}, DType::f32, random);
  Tensor routing({c.T, c.K}, DType::f32), indices({c.T, c.K}, DType::i32);
  Tensor counts({c.E}, DType::f32), mean({c.E}, DType::f32);
  Tensor z({}, DType::f32), entropy({}, DType::f32), grad_logits({c.T, c.E}, c.dtype);
  const GatingOptions options{c.K, false, 1, 1, true, 1.0f};
  topk_gating(logits.view, nullptr, nullptr, nullptr, options, routing.view, indices.view, counts.view, mean.view,
              z.view, entropy.view, threads);
  topk_gating_backward(grad_routing.view, grad_mean.view, one.view, one.view, logits.view, nullptr, nullptr,
                       routing.view, indices.view, false, true, 1.0f, grad_logits.view, threads);
  if (c.sentinels)
    for (int64_t i = 0; i < N; i += 3) indices.view.as<int32_t>()[i] = static_cast<int32_t>(c.E);

  Tensor offsets({c.E + 1}, DType::i32), row_token({N}, DType::i32);
  Tensor slot_row({c.T, c.K}, DType::i32);
  route_plan(indices.view, offsets.view, row_token.view, slot_row.view);

  Tensor x = normal({c.T, c.H}, c.dtype, random), grad = normal({c.T, c.H}, c.dtype, random);
  Tensor rows({N, c.H}, c.dtype), back({c.T, c.H}, c.dtype);
  Tensor grad_rows({N, c.H}, c.dtype), grad_weights({c.T, c.K}, DType::f32);
  permute(x.view, offsets.view, row_token.view, rows.view, threads);
  unpermute(rows.view, slot_row.view, &routing.view, back.view, threads);
  unpermute_backward(grad.view, rows.view, slot_row.view, &routing.view, grad_rows.view, &grad_weights.view, threads);

  Tensor up = weights(c, 2 * c.I, c.H, random), down = weights(c, c.H, c.I, random);
  Tensor up_bias = normal({c.E, 2 * c.I}, c.dtype, random), down_bias = normal({c.E, c.H}, c.dtype, random);
  Tensor product({N, 2 * c.I}, c.dtype), grad_product = normal({N, 2 * c.I}, c.dtype, random);
  Tensor grad_x = like(x), grad_up = like(up), grad_up_bias = like(up_bias);
  const Weight up_weight(up.view, c.transposed), down_weight(down.view, c.transposed);
  const GroupedArguments gathered{x.view, up_weight, offsets.view, &row_token.view, &up_bias.view, nullptr, nullptr};
  grouped_mm(gathered, nullptr, product.view, threads);
  grouped_mm_backward(grad_product.view, gathered, &grad_x.view, &grad_up.view, &grad_up_bias.view, nullptr, threads);
  for (Tensor* made : {&product, &grad_x, &grad_up, &grad_up_bias}) outputs.push_back(*made);

  Tensor out({c.T, c.H}, c.dtype), pre({N, 2 * c.I}, c.dtype);
  Tensor again({c.T, c.H}, c.dtype);
  const ExpertWeights experts{up_weight, down_weight, &up_bias.view, &down_bias.view, Activation::silu, false};
  const Saved saved{pre.view, offsets.view, row_token.view, slot_row.view};
  fused_experts(x.view, indices.view, routing.view, experts, out.view, &saved, threads);
  fused_experts(x.view, indices.view, routing.view, experts, again.view, nullptr, threads);
  Tensor grad_up_out = like(up), grad_up_bias_out = like(up_bias);
  Tensor grad_down = like(down), grad_down_bias = like(down_bias);
  Tensor grad_routing_out = like(routing), grad_x_out = like(x);
  fused_experts_backward(grad.view, x.view, routing.view, experts, saved,
                         {&grad_x_out.view, &grad_routing_out.view, &grad_up_out.view, &grad_down.view,
                          &grad_up_bias_out.view, &grad_down_bias.view},
                         threads);
  for (Tensor* made : {&logits, &routing, &counts, &grad_logits, &rows, &back, &grad_weights, &out, &again,
                       &grad_up_out, &grad_down, &grad_up_bias_out, &grad_down_bias, &grad_routing_out, &grad_x_out})
    outputs.push_back(*made);
  return outputs;
}

// A stack (E, O, H) of random codes and small factors.
struct Quantized {
  Tensor data, scale, nested_scale, nested_code;
  QuantizedView view;

  Quantized(DType dtype, bool nested, int64_t E, int64_t O, int64_t H, std::mt19937& random)
      : data({E, O, dtype == DType::nf4 ? H / 2 : H}, dtype == DType::nf4 ? DType::u8 : DType::i8),
        scale(nested                ? Tensor({E * O * H / 64}, DType::u8)
              : dtype == DType::nf4 ? Tensor({E * O * H / 64}, DType::f32)
                                    : Tensor({E, O}, DType::f32)),
        nested_scale({(E * O * H / 64 + 255) / 256}, DType::f32),
        nested_code({256}, DType::f32) {
    for (char& byte : data.bytes) byte = static_cast<char>(random());
    if (nested)
      for (char& byte : scale.bytes) byte = static_cast<char>(random());
    for (Tensor* factors : {&scale, &nested_scale, &nested_code})
      if (factors->view.dtype == DType::f32)
        for (int64_t i = 0; i < factors->view.numel(); ++i) factors->view.as<float>()[i] = 0.01f;
    view = {dtype, data.view, scale.view, nested, nested_scale.view, nested_code.view, 0.01f, H};
  }
};

// Experts with quantized weights, forward and backward.
std::vector<Tensor> run_quantized(DType format, bool nested, bool dynamic, DType dtype, int threads) {
  constexpr int64_t T = 37, E = 4, K = 2, H = 128, I = 64, N = T * K;
  std::mt19937 random(0);
  Quantized up(format, nested, E, 2 * I, H, random), down(format, nested, E, H, I, random);
  Tensor x = normal({T, H}, dtype, random), grad = normal({T, H}, dtype, random);
  Tensor routing = normal({T, K}, DType::f32, random), indices({T, K}, DType::i32);
  for (int64_t i = 0; i < N; ++i) indices.view.as<int32_t>()[i] = static_cast<int32_t>((i / K + i % K) % E);
  Tensor out({T, H}, dtype), pre({N, 2 * I}, dtype), offsets({E + 1}, DType::i32), row_token({N}, DType::i32);
  Tensor slot_row({T, K}, DType::i32), grad_x({T, H}, dtype), grad_routing({T, K}, DType::f32);
  const Weight up_weight(up.view), down_weight(down.view);
  const LimitedActivation clamped{Activation::silu, 0.5f};
  const ExpertWeights experts{up_weight, down_weight, nullptr, nullptr, clamped, false, dynamic};
  const Saved saved{pre.view, offsets.view, row_token.view, slot_row.view};
  fused_experts(x.view, indices.view, routing.view, experts, out.view, &saved, threads);
  fused_experts_backward(grad.view, x.view, routing.view, {up_weight, down_weight, nullptr, nullptr, clamped, false},
                         saved, {&grad_x.view, &grad_routing.view, nullptr, nullptr, nullptr, nullptr}, threads);
  return {out, grad_x, grad_routing};
}

// The low-rank deltas of groups with different ranks, and rows without a group.
std::vector<Tensor> run_lora(DType dtype, int threads) {
  constexpr int64_t N = 61, G = 5, H = 70, O = 33, R = 7;
  std::mt19937 random(0);
  Tensor x = normal({N, H}, dtype, random), base = normal({N, O}, dtype, random), grad = normal({N, O}, dtype, random);
  Tensor a = normal({G, R, H}, dtype, random), b = normal({G, O, R}, dtype, random);
  Tensor scaling = normal({G}, DType::f32, random), groups({N}, DType::i32), ranks({G}, DType::i32);
  for (int64_t i = 0; i < N; ++i) groups.view.as<int32_t>()[i] = static_cast<int32_t>(random() % (G + 1)) - 1;
  for (int64_t g = 0; g < G; ++g) ranks.view.as<int32_t>()[g] = static_cast<int32_t>(g + 3);
  Tensor out({N, O}, dtype), grad_x({N, H}, dtype), grad_a({G, R, H}, dtype), grad_b({G, O, R}, dtype);
  Tensor grad_scaling({G}, DType::f32);
  const LoraArguments arguments{x.view, a.view, b.view, groups.view, scaling.view, &ranks.view};
  grouped_lora(arguments, &base.view, out.view, threads);
  grouped_lora_backward(grad.view, arguments, {&grad_x.view, &grad_a.view, &grad_b.view, &grad_scaling.view}, threads);
  return {out, grad_x, grad_a, grad_b, grad_scaling};
}

// RMSNorm, and a new column between others of which some rows see only a part.
std::vector<Tensor> run_decoding(DType dtype, int threads) {
  constexpr int64_t B = 5, H = 6, N = 2, D = 32, C = 41, P = 9, COLUMN = 37;
  std::mt19937 random(0);
  Tensor q = normal({B, H * D}, dtype, random), k = normal({B, N * D}, dtype, random);
  Tensor v = normal({B, N * D}, dtype, random), keys = normal({B, N, C, D}, dtype, random);
  Tensor values = normal({B, N, C, D}, dtype, random), weight = normal({D}, DType::f32, random);
  Tensor cos = normal({P, D}, DType::f32, random), sin = normal({P, D}, DType::f32, random);
  Tensor positions({B}, DType::i64), starts({B}, DType::i64), out({B, H * D}, dtype), normalized({B * N, D}, dtype);
  for (int64_t b = 0; b < B; ++b) {
    positions.view.as<int64_t>()[b] = b * 2;
    starts.view.as<int64_t>()[b] = b * COLUMN / (B - 1);
  }
  const NormWeight norm{weight.view, 1e-6f, true};
  decode_attention({q.view, k.view, v.view, &norm, nullptr, cos.view, sin.view, positions.view, starts.view, keys.view,
                    values.view, COLUMN, 33, 0.2f},
                   out.view, threads);
  TensorView rows = k.view;
  rows.shape[0] = B * N, rows.shape[1] = rows.strides[0] = D;
  rms_norm(rows, norm, &rows, normalized.view, threads);
  return {out, keys, values, normalized};
}

// Packed values that lie at the end of where they are unpacked to, and one outside of the window.
std::vector<Tensor> run_packing(int) {
  constexpr int64_t BLOCKS = 8, VALUES = BLOCKS * 64, STORED = 8 + VALUES / 256 * 6 + BLOCKS * 96;
  std::mt19937 random(0);
  Tensor out({VALUES * 2}, DType::u8);
  TensorView stored = out.view;
  stored.shape[0] = STORED, stored.data += VALUES * 2 - STORED;
  for (int64_t i = 0; i < STORED; ++i) stored.data[i] = static_cast<char>(random());
  const uint32_t head[3] = {112, 1, VALUES - 1};
  std::memcpy(stored.data, head, sizeof head);
  unpack_bf16(stored, out.view);
  return {out};
}

bool same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].bytes != b[i].bytes) return false;
  return a.size() == b.size();
}

// `call` takes a number of threads and returns the outputs.
template <typename Call>
bool check(const std::string& what, bool finite, Call&& call) {
  const std::vector<Tensor> alone = call(1);
  for (size_t i = 0; i < alone.size(); ++i) {
    if (!finite || all_finite(alone[i])) continue;
    std::printf("%s: output %zu has an element that is not finite\n", what.c_str(), i);
    return false;
  }
  if (same(alone, call(3))) return true;
  std::printf("%s: three threads give other bits than one\n", what.c_str());
  return false;
}

bool callers_at_once(const Case& c) {
  const std::vector<Tensor> alone = run(c, 1);
  std::vector<int> equal(3, 0);
  std::vector<std::thread> callers;
  for (size_t i = 0; i < equal.size(); ++i)
    callers.emplace_back([&, i] { equal[i] = same(alone, run(c, 1 + static_cast<int>(i))); });
  for (std::thread& caller : callers) caller.join();
  for (int ok : equal)
    if (!ok) std::printf("%s: another caller changes the bits\n", name(c).c_str());
  return equal == std::vector<int>(3, 1);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "--list") {
    for (const std::string& isa : usable_isas()) std::printf("%s\n", isa.c_str());
    return 0;
  }
  std::printf("%s\n", kernels().name);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (bool transposed : {false, true}) {
      for (const Case& c :
           {Case{0, 4, 2, 8, 8, dtype, transposed, false}, Case{1, 4, 2, 16, 8, dtype, transposed, false},
            Case{7, 4, 2, 33, 19, dtype, transposed, false}, Case{40, 3, 3, 130, 70, dtype, transposed, false},
            Case{70, 8, 3, 70, 45, dtype, transposed, true}, Case{200, 2, 1, 300, 33, dtype, transposed, true}})
        // With no tokens, means over them are not finite.
        if (!check(name(c), c.T > 0, [&](int threads) { return run(c, threads); })) return 1;
    }
    if (!check("decoding", true, [&](int threads) { return run_decoding(dtype, threads); })) return 1;
    if (!check("lora", true, [&](int threads) { return run_lora(dtype, threads); })) return 1;
    for (int form = 0; form < 4; ++form) {
      const auto call = [&](int threads) {
        return run_quantized(form < 2 ? DType::nf4 : DType::i8, form == 1, form == 3, dtype, threads);
      };
      if (!check("quantized, form " + std::to_string(form), true, call)) return 1;
    }
    if (!callers_at_once({70, 8, 3, 70, 45, dtype, false, true})) return 1;
  }
  if (!check("packing", false, run_packing)) return 1;
  Tensor buffer({int64_t{4} << 20}, DType::f32);
  if (!(read_rate(buffer.view, 2) > 0.0)) return 1;
  for (const std::string& kind : product_kinds())
    if (!(product_rate(kind, 2) > 0.0)) return 1;
  try {
    product_rate("none", 1);
    return 1;
  } catch (const Error&) {
  }
  std::printf("ok\n");
  return 0;
}
