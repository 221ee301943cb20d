// One token's way through the fused predictor of expert routes (python/specmoe/speculation/fused), layer by layer.
//
// Letters: L layers, E experts, K experts per token, W stream width, H hidden, M window of earlier tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace moe {

// Buffers of the caller, float32 and contiguous, that stay where they are: what a token reads and changes.
struct RouteState {
  float* stream;           // (W)
  float* scores;           // (L, 2E)
  const float* enter;      // (L, W), what the token before adds to the stream
  const float* start;      // (L, M), similarity before the first layer, less the distance
  float* alike;            // (M), similarity of the path so far
  const float* members;    // (L, M, E), use of the earlier tokens
  const float* weights;    // (L, M, E), their routing weights
  const float* keys;       // (L, E, M), their directions
  const float* scale;      // (L)
  const float* shift;      // (L, E)
  float* chances;          // (E), written by forward
  const int64_t* experts;  // (K), read by take
  const float* given;      // (K), routing weights, read by take
};

// Weights are kept in bfloat16: half the bytes to read, which is what a token costs.
class RoutePredictor {
 public:
  // Sizes, and the constants of the similarity.
  RoutePredictor(int64_t layers, int64_t experts, int64_t width, int64_t hidden, int64_t window, float fade,
                 float sharpness, const RouteState& state);

  // Copies one layer's weights, float32 row-major: enter_votes (E, W), up (W, H), up_bias (H), down (H, W),
  // out (W, 2E), plain_votes (2E, 2E), step (E, 2, W + (L - 1 - layer) * 2E).
  void load(int64_t layer, const float* enter_votes, const float* up, const float* up_bias, const float* down,
            const float* out, const float* plain_votes, const float* step);

  // Runs a layer's perceptron with `count` earlier tokens; changes stream and the layer's scores.
  void forward(int64_t layer, int64_t count);

  // Writes the probabilities of a layer whose scores are complete.
  void read(int64_t layer);

  // Adds a layer's routing to stream, later scores and similarities.
  void take(int64_t layer, int64_t count, int64_t top_k);

 private:
  struct Layer {
    std::vector<uint16_t> enter_votes, up, down, out, plain_votes, step;
    std::vector<float> up_bias;
  };

  int64_t layers_, experts_, width_, hidden_, window_;
  float fade_, sharpness_;
  RouteState state_;
  std::vector<Layer> weights_;
  std::vector<float> soft_, scratch_;
};

}  // namespace moe
