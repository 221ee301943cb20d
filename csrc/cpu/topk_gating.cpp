// topk_gating: scores, choice, weights and the statistics of the auxiliary losses, in one pass over the logits.
#include <cmath>
#include <limits>

#include "blocks.h"
#include "common/error.h"
#include "ops.h"

namespace moe {
namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
// DeepSeek-V3's guard against a zero sum of sigmoid scores.
constexpr float SIGMOID_EPSILON = 1e-20f;
// Tokens whose statistics are summed together: fixed, so that the order of the sums is.
constexpr int64_t TOKENS = 64;

int64_t whole_vectors(int64_t count, int64_t lanes) { return (count + lanes - 1) / lanes * lanes; }

// The best of a list of values, in descending order, ties to the one that came first.
struct Best {
  Best(float* values, int32_t* indices, int64_t most) : values(values), indices(indices), most(most) {}

  void offer(float value, int64_t index) {
    if (count == most) {
      if (!(value > values[count - 1])) return;
    } else {
      ++count;
    }
    int64_t at = count - 1;
    for (; at > 0 && values[at - 1] < value; --at) {
      values[at] = values[at - 1];
      indices[at] = indices[at - 1];
    }
    values[at] = value;
    indices[at] = static_cast<int32_t>(index);
  }

  float* values;
  int32_t* indices;
  int64_t most;
  int64_t count = 0;
};

// One token's buffers, in the thread's scratch.
struct Row {
  Row(const Kernels& kern, int64_t experts)
      : padded(whole_vectors(experts, kern.lanes)),
        logits(static_cast<float*>(thread_scratch(static_cast<size_t>(6 * padded) * sizeof(float)))),
        p(logits + padded),
        score(p + padded),
        choice(score + padded),
        best(choice + padded),
        index(reinterpret_cast<int32_t*>(best + padded)) {}

  int64_t padded;
  float *logits, *p, *score, *choice, *best;
  int32_t* index;
};

void load_logits(const Kernels& kern, Row& row, const TensorView& logits, const TensorView* noise, int64_t t) {
  const int64_t E = logits.shape[1];
  kern.load(row.logits, logits.row(t), logits.dtype, E);
  if (noise) kern.add_scaled(row.logits, 1.0f, noise->row(t), noise->dtype, E);
  std::fill(row.logits + E, row.logits + row.padded, -INF);
}

bool is_broken(const RowStatistics& statistics) { return std::isnan(statistics.entropy); }

void choose(Row& row, const float* bias, int64_t experts, const GatingOptions& options, const float* scores,
            int32_t* chosen) {
  for (int64_t e = 0; e < experts; ++e) {
    const float l = row.logits[e];
    row.choice[e] = bias && !std::isinf(l) ? scores[e] + bias[e] : l;
  }
  Best best(row.best, chosen, options.k);
  if (options.num_groups == 1) {
    for (int64_t e = 0; e < experts; ++e) best.offer(row.choice[e], e);
    return;
  }
  const int64_t size = experts / options.num_groups;
  Best groups(row.best, row.index, options.top_groups);
  for (int64_t g = 0; g < options.num_groups; ++g) {
    float two[2];
    int32_t where[2];
    Best top(two, where, bias ? std::min<int64_t>(2, size) : 1);
    for (int64_t e = g * size; e < (g + 1) * size; ++e) top.offer(row.choice[e], e);
    groups.offer(top.count == 2 ? two[0] + two[1] : two[0], g);
  }
  // Experts in ascending order, so that ties go to the lower index.
  std::sort(row.index, row.index + options.top_groups);
  for (int64_t i = 0; i < options.top_groups; ++i)
    for (int64_t e = row.index[i] * size; e < (row.index[i] + 1) * size; ++e) best.offer(row.choice[e], e);
}

void weigh(const Kernels& kern, Row& row, const GatingOptions& options, const float* scores, const int32_t* chosen,
           float* weights) {
  const int64_t k = options.k;
  if (options.renormalize && !options.sigmoid) {
    // The same as dividing by the sum, without the underflow of experts that only the bias made win.
    const int64_t padded = whole_vectors(k, kern.lanes);
    for (int64_t i = 0; i < k; ++i) row.choice[i] = row.logits[chosen[i]];
    std::fill(row.choice + k, row.choice + padded, -INF);
    kern.softmax(row.best, row.choice, padded);
    for (int64_t i = 0; i < k; ++i) weights[i] = row.best[i] * options.scale;
    return;
  }
  float sum = 0.0f;
  for (int64_t i = 0; i < k; ++i) sum += scores[chosen[i]];
  for (int64_t i = 0; i < k; ++i) {
    const float score = scores[chosen[i]];
    weights[i] = (options.renormalize ? score / (sum + SIGMOID_EPSILON) : score) * options.scale;
  }
}

// Statistics of up to TOKENS tokens.
struct Partial {
  double squared_lse = 0.0, entropy = 0.0;
  int64_t tokens = 0;
};

}  // namespace

void topk_gating(const TensorView& logits, const TensorView* bias, const TensorView* noise, const TensorView* mask,
                 const GatingOptions& options, const TensorView& weights, const TensorView& indices,
                 const TensorView& counts, const TensorView& mean_probability, const TensorView& z,
                 const TensorView& entropy, int threads) {
  const char* op = "topk_gating";
  const Kernels& kern = kernels();
  const int64_t T = logits.shape[0], E = logits.shape[1], K = options.k;
  check_float(op, "logits", logits, {-1, -1});
  if (bias) check_type(op, "bias", *bias, DType::f32, {E});
  if (noise) check_float(op, "noise", *noise, {T, E});
  if (mask) check_type(op, "mask", *mask, DType::boolean, {T});
  check_type(op, "weights", weights, DType::f32, {T, K});
  check_type(op, "indices", indices, DType::i32, {T, K});
  check_type(op, "counts", counts, DType::f32, {E});
  check_type(op, "mean_probability", mean_probability, DType::f32, {E});
  const bool grouped = options.num_groups > 0 && options.top_groups > 0 && options.top_groups <= options.num_groups &&
                       E % options.num_groups == 0;
  if (!grouped || K < 1 || K > options.top_groups * (E / options.num_groups))
    throw Error("topk_gating: k: expected 1 to the number of experts in the kept groups, got " + std::to_string(K));

  const int64_t blocks = (T + TOKENS - 1) / TOKENS;
  std::vector<Partial> partial(blocks);
  std::vector<float> mass(static_cast<size_t>(blocks * E), 0.0f);
  parallel_for(blocks, threads_for(threads, static_cast<double>(T * E) * 1.5), [&](int64_t block) {
    Row row(kern, E);
    for (int64_t t = block * TOKENS; t < std::min(T, (block + 1) * TOKENS); ++t) {
      int32_t* chosen = indices.as<int32_t>() + t * K;
      float* weight = weights.as<float>() + t * K;
      load_logits(kern, row, logits, noise, t);
      const RowStatistics statistics = kern.softmax(row.p, row.logits, row.padded);
      if (is_broken(statistics)) {
        for (int64_t i = 0; i < K; ++i) {
          chosen[i] = static_cast<int32_t>(i);
          weight[i] = NOT_A_NUMBER;
        }
      } else {
        if (options.sigmoid) kern.sigmoid(row.score, row.logits, row.padded);
        const float* scores = options.sigmoid ? row.score : row.p;
        choose(row, bias ? bias->as<const float>() : nullptr, E, options, scores, chosen);
        weigh(kern, row, options, scores, chosen, weight);
      }
      if (mask && !mask->as<const uint8_t>()[t]) continue;
      Partial& sum = partial[block];
      sum.squared_lse += static_cast<double>(statistics.logsumexp) * statistics.logsumexp;
      sum.entropy += statistics.entropy;
      ++sum.tokens;
      kern.add_products(mass.data() + block * E, row.p, nullptr, E);
    }
  });

  Partial total;
  std::vector<double> mean(E, 0.0);
  for (int64_t block = 0; block < blocks; ++block) {
    total.squared_lse += partial[block].squared_lse;
    total.entropy += partial[block].entropy;
    total.tokens += partial[block].tokens;
    for (int64_t e = 0; e < E; ++e) mean[e] += mass[block * E + e];
  }
  const double valid = static_cast<double>(std::max<int64_t>(total.tokens, 1));
  float* count = counts.as<float>();
  std::vector<int64_t> chosen_count(E, 0);
  for (int64_t t = 0; t < T; ++t) {
    if (mask && !mask->as<const uint8_t>()[t]) continue;
    for (int64_t i = 0; i < K; ++i) ++chosen_count[indices.as<const int32_t>()[t * K + i]];
  }
  for (int64_t e = 0; e < E; ++e) {
    count[e] = static_cast<float>(chosen_count[e]);
    mean_probability.as<float>()[e] = static_cast<float>(mean[e] / valid);
  }
  *z.as<float>() = static_cast<float>(total.squared_lse / valid);
  *entropy.as<float>() = static_cast<float>(total.entropy / valid);
}

namespace {

// grad_i += p_i ((g_P,i - <p, g_P>) + 2 lse g_z - g_H (log p_i + H)) / M
void statistics_backward(const Kernels& kern, const Row& row, const RowStatistics& statistics, const float* gp,
                         float gz, float gh, float valid, int64_t experts, float* grad) {
  const float inner = kern.dot(reinterpret_cast<const char*>(row.p), DType::f32, reinterpret_cast<const char*>(gp),
                               DType::f32, experts);
  const bool infinite = std::isinf(statistics.logsumexp);
  for (int64_t e = 0; e < experts; ++e) {
    const float p = row.p[e];
    float log_p = 0.0f;
    if (p > 0.0f) log_p = infinite ? std::log(p) : row.logits[e] - statistics.logsumexp;
    const float sum =
        (gp[e] - inner) * p + 2.0f * statistics.logsumexp * p * gz - gh * p * (log_p + statistics.entropy);
    grad[e] = sum / valid;
  }
}

}  // namespace

void topk_gating_backward(const TensorView& grad_weights, const TensorView& grad_mean_probability,
                          const TensorView& grad_z, const TensorView& grad_entropy, const TensorView& logits,
                          const TensorView* noise, const TensorView* mask, const TensorView& weights,
                          const TensorView& indices, bool sigmoid, bool renormalize, float scale,
                          const TensorView& grad_logits, int threads) {
  const char* op = "topk_gating_backward";
  const Kernels& kern = kernels();
  const int64_t T = logits.shape[0], E = logits.shape[1], K = indices.shape[1];
  check_float(op, "logits", logits, {-1, -1});
  check_type(op, "grad_weights", grad_weights, DType::f32, {T, K});
  check_type(op, "grad_mean_probability", grad_mean_probability, DType::f32, {E});
  check_type(op, "grad_z", grad_z, DType::f32, {});
  check_type(op, "grad_entropy", grad_entropy, DType::f32, {});
  if (noise) check_float(op, "noise", *noise, {T, E});
  if (mask) check_type(op, "mask", *mask, DType::boolean, {T});
  check_type(op, "weights", weights, DType::f32, {T, K});
  check_type(op, "indices", indices, DType::i32, {T, K});
  check_type(op, "grad_logits", grad_logits, logits.dtype, {T, E});
  for (int64_t n = 0; n < T * K; ++n)
    if (indices.as<const uint32_t>()[n] >= static_cast<uint64_t>(E))
      throw Error("topk_gating_backward: indices: expected experts below E=" + std::to_string(E));

  int64_t valid = T;
  if (mask) {
    valid = 0;
    for (int64_t t = 0; t < T; ++t) valid += mask->as<const uint8_t>()[t] != 0;
  }
  const float M = static_cast<float>(std::max<int64_t>(valid, 1));
  const float gz = *grad_z.as<const float>(), gh = *grad_entropy.as<const float>();
  const float* gp = grad_mean_probability.as<const float>();
  parallel_for((T + TOKENS - 1) / TOKENS, threads_for(threads, static_cast<double>(T * E) * 3.0), [&](int64_t block) {
    Row row(kern, E);
    for (int64_t t = block * TOKENS; t < std::min(T, (block + 1) * TOKENS); ++t) {
      float* grad = row.choice;
      load_logits(kern, row, logits, noise, t);
      const RowStatistics statistics = kern.softmax(row.p, row.logits, row.padded);
      if (mask && !mask->as<const uint8_t>()[t])
        std::fill(grad, grad + E, 0.0f);
      else
        statistics_backward(kern, row, statistics, gp, gz, gh, M, E, grad);

      const int32_t* chosen = indices.as<const int32_t>() + t * K;
      const float* weight = weights.as<const float>() + t * K;
      float* g = row.best;
      float centre = 0.0f, sum = 0.0f;
      if (sigmoid) kern.sigmoid(row.score, row.logits, row.padded);
      for (int64_t i = 0; i < K; ++i) {
        g[i] = grad_weights.as<const float>()[t * K + i] * scale;
        if (sigmoid) sum += row.score[chosen[i]];
        if (renormalize)
          centre += g[i] * (scale != 0.0f ? weight[i] / scale : 0.0f);
        else if (!sigmoid)
          centre += g[i] * row.p[chosen[i]];
      }
      if (!sigmoid && !renormalize) {
        float* full = row.score;
        std::fill(full, full + E, 0.0f);
        for (int64_t i = 0; i < K; ++i) full[chosen[i]] = g[i];
        for (int64_t e = 0; e < E; ++e) grad[e] += row.p[e] * (full[e] - centre);
      }
      for (int64_t i = 0; i < K && (sigmoid || renormalize); ++i) {
        const int32_t e = chosen[i];
        const float s = row.score[e];
        if (!sigmoid)
          grad[e] += (scale != 0.0f ? weight[i] / scale : 0.0f) * (g[i] - centre);
        else if (renormalize)
          grad[e] += (g[i] - centre) * s * (1.0f - s) / (sum + SIGMOID_EPSILON);
        else
          grad[e] += g[i] * s * (1.0f - s);
      }
      kern.store(grad_logits.row(t), grad_logits.dtype, grad, E);
    }
  });
}

}  // namespace moe
