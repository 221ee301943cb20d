#include "cpu/route_predictor.h"

#include <cmath>
#include <cstring>
#include <string>

#include "common/error.h"

// The loops are plain, so that the compiler makes vectors of them; this asks it for several instruction sets. The
// choice is made by the loader, before a sanitizer is ready for it.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOE_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define MOE_CLONES
#endif

namespace moe {
namespace {

constexpr float EPSILON = 1e-5f;
constexpr float FLOOR = 0.02f;  // as in speculation/fused/similar.py
constexpr int64_t LANES = 16;

std::vector<uint16_t> rounded(const float* values, int64_t count) {
  std::vector<uint16_t> out(count);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, 4);
    out[i] = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
  return out;
}

inline __attribute__((always_inline)) float widened(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// out += factor * row.
inline __attribute__((always_inline)) void add_row(float* __restrict out, const uint16_t* __restrict row, float factor,
                                                   int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += factor * widened(row[i]);
}

inline __attribute__((always_inline)) void add_row(float* __restrict out, const float* __restrict row, float factor,
                                                   int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += factor * row[i];
}

// One over the root mean square.
inline __attribute__((always_inline)) float inverse_rms(const float* x, int64_t count) {
  float lanes[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) lanes[j] += x[i + j] * x[i + j];
  float sum = 0;
  for (; i < count; ++i) sum += x[i] * x[i];
  for (float lane : lanes) sum += lane;
  return 1.0f / std::sqrt(sum / count + EPSILON);
}

// exp without a branch, relative error below 1e-6: 2^n times a polynomial of the rest.
inline __attribute__((always_inline)) float exponential(float x) {
  x = x < -80.0f ? -80.0f : x > 80.0f ? 80.0f : x;
  const float n = static_cast<float>(static_cast<int32_t>(x * 1.44269504f + (x < 0 ? -0.5f : 0.5f)));
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

}  // namespace

RoutePredictor::RoutePredictor(int64_t layers, int64_t experts, int64_t width, int64_t hidden, int64_t window,
                               float fade, float sharpness, const RouteState& state)
    : layers_(layers),
      experts_(experts),
      width_(width),
      hidden_(hidden),
      window_(window),
      fade_(fade),
      sharpness_(sharpness),
      state_(state),
      weights_(layers),
      soft_(window),
      scratch_(hidden + 6 * experts) {
  if (layers < 1 || experts < 1 || width < 1 || hidden < 1 || window < 1)
    throw Error("RoutePredictor: expected sizes of at least 1");
}

void RoutePredictor::load(int64_t layer, const float* enter_votes, const float* up, const float* up_bias,
                          const float* down, const float* out, const float* plain_votes, const float* step) {
  if (layer < 0 || layer >= layers_) throw Error("RoutePredictor: layer out of range: " + std::to_string(layer));
  const int64_t E = experts_, W = width_, H = hidden_;
  Layer& to = weights_[layer];
  to.enter_votes = rounded(enter_votes, E * W);
  to.up = rounded(up, W * H);
  to.up_bias.assign(up_bias, up_bias + H);
  to.down = rounded(down, H * W);
  to.out = rounded(out, W * 2 * E);
  to.plain_votes = rounded(plain_votes, 2 * E * 2 * E);
  to.step = rounded(step, E * 2 * (W + (layers_ - 1 - layer) * 2 * E));
}

MOE_CLONES void RoutePredictor::forward(int64_t layer, int64_t count) {
  const int64_t E = experts_, W = width_, H = hidden_, M = window_;
  const Layer& w = weights_[layer];
  float* const stream = state_.stream;
  float* const hidden = scratch_.data();
  float* const votes = hidden + H;        // (2, E): of use, of weights
  float* const features = votes + 2 * E;  // (2E)
  float* const read = features + 2 * E;   // (2E)
  float* const soft = soft_.data();
  const float* const start = state_.start + layer * M;
  for (int64_t j = 0; j < count; ++j) soft[j] = exponential(start[j] + state_.alike[j]);
  for (int64_t i = 0; i < 2 * E; ++i) votes[i] = read[i] = 0;
  float all = 1, all_sharp = 1;
  for (int64_t j = 0; j < count; ++j) {
    const float a = soft[j], b = a * a;
    all += a;
    all_sharp += b;
    add_row(votes, state_.members + (layer * M + j) * E, a, E);
    add_row(votes + E, state_.weights + (layer * M + j) * E, b, E);
  }
  for (int64_t e = 0; e < E; ++e) {
    votes[e] /= all;
    features[e] = std::log(votes[e] + FLOOR);
    features[E + e] = votes[E + e] / all_sharp;
  }
  add_row(stream, state_.enter + layer * W, 1.0f, W);
  for (int64_t e = 0; e < E; ++e)
    if (votes[e] != 0) add_row(stream, w.enter_votes.data() + e * W, votes[e], W);
  for (int64_t i = 0; i < H; ++i) hidden[i] = 0;
  for (int64_t i = 0; i < W; ++i) add_row(hidden, w.up.data() + i * H, stream[i], H);
  const float inverse = inverse_rms(stream, W);
  for (int64_t i = 0; i < H; ++i) {
    const float value = hidden[i] * inverse + w.up_bias[i];
    if (value > 0) add_row(stream, w.down.data() + i * W, value, W);
  }
  for (int64_t i = 0; i < W; ++i) add_row(read, w.out.data() + i * 2 * E, stream[i], 2 * E);
  const float second = inverse_rms(stream, W);
  float* const scores = state_.scores + layer * 2 * E;
  for (int64_t i = 0; i < 2 * E; ++i) scores[i] += second * read[i];
  for (int64_t i = 0; i < 2 * E; ++i) add_row(scores, w.plain_votes.data() + i * 2 * E, features[i], 2 * E);
}

MOE_CLONES void RoutePredictor::read(int64_t layer) {
  const float* const scores = state_.scores + layer * 2 * experts_;
  const float* const shift = state_.shift + layer * experts_;
  for (int64_t e = 0; e < experts_; ++e)
    state_.chances[e] = 1.0f / (1.0f + exponential(-(scores[e] * state_.scale[layer] + shift[e])));
}

MOE_CLONES void RoutePredictor::take(int64_t layer, int64_t count, int64_t top_k) {
  const int64_t E = experts_, W = width_, M = window_;
  const int64_t later = (layers_ - 1 - layer) * 2 * E;
  float squares = 0;
  for (int64_t k = 0; k < top_k; ++k) {
    const int64_t expert = state_.experts[k];
    if (expert < 0 || expert >= E) continue;
    const float weight = state_.given[k];
    squares += weight * weight;
    const uint16_t* const row = weights_[layer].step.data() + expert * 2 * (W + later);
    for (int64_t half = 0; half < 2; ++half) {
      const float factor = half ? 4.0f * weight : 1.0f;
      add_row(state_.stream, row + half * (W + later), factor, W);
      add_row(state_.scores + (layer + 1) * 2 * E, row + half * (W + later) + W, factor, later);
    }
  }
  const float length = std::sqrt(squares);
  for (int64_t j = 0; j < count; ++j) state_.alike[j] *= fade_;
  for (int64_t k = 0; k < top_k; ++k) {
    const int64_t expert = state_.experts[k];
    if (expert < 0 || expert >= E || length < 1e-6f) continue;
    add_row(state_.alike, state_.keys + (layer * E + expert) * M, sharpness_ * state_.given[k] / length, count);
  }
}

}  // namespace moe
