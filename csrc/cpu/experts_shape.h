// Sizes and checks that forward and backward of fused_experts share.
#pragma once

#include "blocks.h"
#include "common/error.h"
#include "ops.h"

namespace moe {

struct ExpertShape {
  ExpertShape(const char* op, const TensorView& x, const ExpertWeights& experts, int64_t slots)
      : tokens(x.shape[0]),
        slots(slots),
        hidden(x.shape[1]),
        gate_up(experts.gate_up),
        down(experts.down),
        count(down.experts()),
        inner(down.columns()),
        wide(gate_up.rows()),
        gated(wide == 2 * inner && inner > 0) {
    check_float(op, "x", x, {-1, -1});
    check_weight(op, "gate_up", gate_up, count, gated ? 2 * inner : inner, hidden);
    check_weight(op, "down", down, count, hidden, inner);
    if (gate_up.dtype() != down.dtype()) throw Error(std::string(op) + ": down: expected gate_up's dtype");
    if (experts.gate_up_bias) check_float(op, "gate_up_bias", *experts.gate_up_bias, {count, wide});
    if (experts.down_bias) check_float(op, "down_bias", *experts.down_bias, {count, hidden});
    if (experts.activation.kind == Activation::gpt_oss && !gated && inner > 0)
      throw Error(std::string(op) + ": activation: expected one without a gate, got 'gpt_oss'");
  }

  int64_t rows() const { return tokens * slots; }

  int64_t tokens, slots, hidden;
  const Weight &gate_up, &down;
  int64_t count, inner, wide;  // E, I, and 2I or I
  bool gated;
};

}  // namespace moe
