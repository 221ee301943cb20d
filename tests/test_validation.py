"""Each bad argument of each op: one error that names the argument, what was expected and what came."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import MoELayer, fused_experts, grouped_mm, permute, route, topk_gating, unpermute
from moe_kernels.quantized_weights import quantize_int8, quantize_nf4
from moe_kernels.testing import expert_inputs

META = torch.device("meta")


def _refused(call, words, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} not in {message!r}"


GATING = {
    "shape": (dict(logits=torch.zeros(3)), ["logits", "shape (T, E)", "(3,)"]),
    "dtype": (dict(logits=torch.zeros(3, 4).int()), ["logits", "float32", "int32"]),
    "k > E": (dict(k=5), ["k", "[1, 4]", "5"]),
    "k = 0": (dict(k=0), ["k", "[1, 4]", "0"]),
    "score": (dict(score="tanh"), ["score", "'softmax'", "'sigmoid'", "'tanh'"]),
    "bias": (dict(bias=torch.zeros(3)), ["bias", "(E=4)", "(3,)"]),
    "bias device": (dict(bias=torch.zeros(4, device=META)), ["bias", "device cpu", "meta"]),
    "groups": (dict(num_groups=3), ["num_groups", "divisor of E=4", "3"]),
    "top_groups": (dict(num_groups=2, top_groups=3), ["top_groups", "[1, 2]", "3"]),
    "k > kept": (dict(num_groups=4, top_groups=1), ["k", "at most the 1 experts", "2"]),
    "noise": (dict(noise=torch.zeros(3, 3)), ["noise", "(T=3, E=4)", "(3, 3)"]),
    "mask": (dict(mask=torch.zeros(3)), ["mask", "bool", "float32"]),
}


@pytest.mark.parametrize("change,words", GATING.values(), ids=GATING.keys())
def test_topk_gating(change, words):
    arguments = {"logits": torch.zeros(3, 4), "k": 2} | change
    wrong_type = "dtype" in words[1:] or words[-1] in ("int32", "float32")
    _refused(lambda: topk_gating(**arguments), ["topk_gating", *words], TypeError if wrong_type else ValueError)


def test_route():
    _refused(lambda: route(torch.zeros(3, dtype=torch.int32), 4), ["route", "indices", "(T, K)", "(3,)"])
    _refused(lambda: route(torch.zeros(3, 2), 4), ["indices", "int32", "float32"], TypeError)
    _refused(lambda: route(torch.tensor([[0, -2]]), 4), ["indices", "negative", "-2"])
    _refused(lambda: route(torch.zeros(3, 2, dtype=torch.int32), 0), ["num_experts", "0"])
    _refused(lambda: route([[0]], 4), ["indices", "a tensor", "list"], TypeError)


def test_permute_and_unpermute():
    plan = route(torch.zeros(3, 2, dtype=torch.int32), 4)
    _refused(lambda: permute(torch.zeros(4, 5), plan), ["permute", "slot_row", "(T=4, K)", "(3, 2)"])
    _refused(lambda: permute(torch.zeros(3, 5, device=META), plan), ["permute", "offsets", "device meta", "cpu"])
    _refused(lambda: permute(torch.zeros(3, 5).int(), plan), ["permute", "x", "int32"], TypeError)
    _refused(lambda: unpermute(torch.zeros(5, 5), plan), ["unpermute", "rows", "(N=6, H)", "(5, 5)"])
    _refused(lambda: unpermute(torch.zeros(6, 5), plan, torch.ones(3, 3)), ["weights", "(T=3, K=2)", "(3, 3)"])


MM = {
    "x": (dict(x=torch.zeros(6)), ["x", "(N, H)", "(6,)"]),
    "w": (dict(w=torch.zeros(4, 3, 6)), ["w", "H=5", "(4, 3, 6)"]),
    "transposed": (dict(transposed=True), ["w", "(E, H=5, O)", "(4, 3, 5)"]),
    "w dtype": (dict(w=torch.zeros(4, 3, 5).half()), ["w", "float32", "float16"]),
    "w device": (dict(w=torch.zeros(4, 3, 5, device=META)), ["w", "device cpu", "meta"]),
    "offsets": (dict(offsets=torch.zeros(4, dtype=torch.int32)), ["offsets", "(E+1=5)", "(4,)"]),
    "offsets dtype": (dict(offsets=torch.zeros(5)), ["offsets", "int32", "float32"]),
    "bias": (dict(bias=torch.zeros(3)), ["bias", "(E=4, O=3)", "(3,)"]),
    "row_scale": (dict(row_scale=torch.zeros(5)), ["row_scale", "(N=6)", "(5,)"]),
    "slot_row": (dict(slot_row=torch.zeros(3, 3, dtype=torch.int32)), ["slot_row", "N=6", "9"]),
    "base": (dict(base=torch.zeros(3, 3)), ["base", "(N=6, O=3)", "(3, 3)"]),
}


@pytest.mark.parametrize("change,words", MM.values(), ids=MM.keys())
def test_grouped_mm(change, words):
    arguments = {"x": torch.zeros(6, 5), "w": torch.zeros(4, 3, 5), "offsets": torch.zeros(5, dtype=torch.int32)}
    wrong_type = words[-1].startswith("float")
    _refused(lambda: grouped_mm(**arguments | change), ["grouped_mm", *words], TypeError if wrong_type else ValueError)


EXPERTS = {
    "x": (dict(x=torch.zeros(3, 5, 1)), ["x", "(T, H)", "(3, 5, 1)"]),
    "x dtype": (dict(x=torch.zeros(3, 6).long()), ["x", "float32", "int64"]),
    "indices": (dict(indices=torch.zeros(2, 2, dtype=torch.int32)), ["indices", "(T=3, K)", "(2, 2)"]),
    "indices dtype": (dict(indices=torch.zeros(3, 2)), ["indices", "int32", "float32"]),
    "negative": (dict(indices=torch.full((3, 2), -1)), ["indices", "negative", "-1"]),
    "weights": (dict(weights=torch.zeros(3, 3)), ["weights", "(T=3, K=2)", "(3, 3)"]),
    "down": (dict(down=torch.zeros(8, 128, 64)), ["down", "(E, H=6, I)", "(8, 128, 64)"]),
    "gate_up": (dict(gate_up=torch.zeros(4, 9, 6)), ["gate_up", "8 rows", "or 4", "9"]),
    "gate_up E": (dict(gate_up=torch.zeros(3, 8, 6)), ["gate_up", "E=4", "(3, 8, 6)"]),
    "gate_up dtype": (dict(gate_up=torch.zeros(4, 8, 6).half()), ["gate_up", "float32", "float16"]),
    "gate_up device": (dict(gate_up=torch.zeros(4, 8, 6, device=META)), ["gate_up", "device cpu", "meta"]),
    "activation": (dict(activation="swish"), ["activation", "'silu'", "'swish'"]),
    "negative limit": (dict(limit=-1.0), ["limit", "above 0", "-1.0"]),
    "NaN limit": (dict(limit=float("nan")), ["limit", "above 0", "nan"]),
    "limit of gpt_oss": (dict(limit=7.0, activation="gpt_oss"), ["limit", "None", "'gpt_oss'", "7.0"]),
    "gateless limit": (dict(gate_up=torch.zeros(4, 4, 6), limit=7.0), ["limit", "without a gate", "7.0"]),
    "gateless gpt_oss": (dict(gate_up=torch.zeros(4, 4, 6), activation="gpt_oss"), ["activation", "'gpt_oss'"]),
    "interleaved": (dict(gate_up=torch.zeros(4, 4, 6), interleaved=True), ["interleaved", "False", "True"]),
    "bias": (dict(gate_up_bias=torch.zeros(4, 4)), ["gate_up_bias", "(E=4, O=8)", "(4, 4)"]),
    "down bias": (dict(down_bias=torch.zeros(6)), ["down_bias", "(E=4, O=6)", "(6,)"]),
}


@pytest.mark.parametrize("change,words", EXPERTS.values(), ids=EXPERTS.keys())
def test_fused_experts(change, words):
    inputs = expert_inputs(3, 4, 2, 6, 4).to(torch.float32)._asdict()
    wrong_type = words[-1] in ("int64", "float16", "float32")
    arguments = inputs | change
    _refused(lambda: fused_experts(**arguments), ["fused_experts", *words], TypeError if wrong_type else ValueError)


NF4, INT8 = quantize_nf4(torch.zeros(4, 64, 64)), quantize_int8(torch.zeros(4, 64, 64))
QUANTIZED = {
    "formats": (dict(down=INT8), ["down", "the format of gate_up, nf4", "int8"]),
    "a tensor": (dict(down=torch.zeros(4, 64, 64)), ["down", "the format of gate_up, nf4", "a tensor"]),
    "a quantized one": (dict(gate_up=torch.zeros(4, 64, 64)), ["down", "the format of gate_up, a tensor", "nf4"]),
    "transposed": (dict(transposed=True), ["transposed", "False for quantized weights", "True"]),
    "dynamic": (dict(dynamic=True), ["dynamic", "not int8 but nf4", "True"]),
    "down": (dict(down=quantize_nf4(torch.zeros(4, 32, 64))), ["down", "(E, H=64, I)", "(4, 32, 64)"]),
    "gate_up": (dict(gate_up=quantize_nf4(torch.zeros(4, 96, 64))), ["gate_up", "128 rows", "or 64", "96"]),
    "gate_up E": (dict(gate_up=quantize_nf4(torch.zeros(3, 128, 64))), ["gate_up", "E=4", "(3, 128, 64)"]),
    "device": (dict(gate_up=NF4.to(META)), ["gate_up", "device cpu", "meta"]),
    "bias dtype": (dict(down_bias=torch.zeros(4, 64).half()), ["down_bias", "float32", "float16"]),
    "neither": (dict(gate_up=[1.0], down=torch.zeros(4, 64, 64)), ["gate_up", "a quantized weight", "list"]),
}


@pytest.mark.parametrize("change,words", QUANTIZED.values(), ids=QUANTIZED.keys())
def test_quantized_experts(change, words):
    inputs = expert_inputs(3, 4, 2, 64, 64, gated=False).to(torch.float32)._asdict()
    arguments = inputs | {"gate_up": NF4, "down": NF4} | change
    error = TypeError if words[-1] in ("float16", "list") else ValueError
    _refused(lambda: fused_experts(**arguments), ["fused_experts", *words], error)


QUANTIZED_MM = {
    "shape": (dict(x=torch.zeros(6, 32)), ["w", "H=32", "(4, 64, 64)"]),
    "transposed": (dict(transposed=True), ["transposed", "False for quantized weights", "True"]),
    "dynamic": (dict(dynamic=True), ["dynamic", "not int8 but nf4", "True"]),
    "dynamic tensor": (dict(w=torch.zeros(4, 64, 64), dynamic=True), ["dynamic", "not int8 but a tensor", "True"]),
    "device": (dict(w=INT8.to(META)), ["w", "device cpu", "meta"]),
    "bias": (dict(bias=torch.zeros(3)), ["bias", "(E=4, O=64)", "(3,)"]),
}


@pytest.mark.parametrize("change,words", QUANTIZED_MM.values(), ids=QUANTIZED_MM.keys())
def test_quantized_grouped_mm(change, words):
    arguments = {"x": torch.zeros(6, 64), "w": NF4, "offsets": torch.zeros(5, dtype=torch.int32)}
    _refused(lambda: grouped_mm(**arguments | change), ["grouped_mm", *words])


LAYER = {
    "top_k": (dict(top_k=9), ["top_k", "[1, 8]", "9"]),
    "hidden_size": (dict(hidden_size=0), ["hidden_size", "0"]),
    "activation": (dict(activation="tanh"), ["activation", "'silu'", "'tanh'"]),
    "gateless gpt_oss": (dict(activation="gpt_oss", gated=False), ["activation", "'gpt_oss'"]),
    "score": (dict(score="softmin"), ["score", "'sigmoid'", "'softmin'"]),
    "drop_policy": (dict(drop_policy="random"), ["drop_policy", "'position'", "'random'"]),
    "routing": (dict(routing="hash"), ["routing", "'token_choice'", "'hash'"]),
    "capacity_factor": (dict(capacity_factor=0.0), ["capacity_factor", "positive", "0.0"]),
    "noise_std": (dict(noise_std=-1.0), ["noise_std", "at least 0", "-1.0"]),
}


@pytest.mark.parametrize("change,words", LAYER.values(), ids=LAYER.keys())
def test_layer(change, words):
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_experts": 8, "top_k": 2}
    _refused(lambda: MoELayer(**sizes | change), ["MoELayer", *words])


def test_layer_input():
    layer = MoELayer(16, 8, 4, 2)
    _refused(lambda: layer(torch.zeros(3, 15)), ["MoELayer", "x", "H=16", "(3, 15)"])
    _refused(lambda: layer(torch.zeros(3, 16), mask=torch.ones(2).bool()), ["MoELayer", "mask", "(3,)", "(2,)"])


def test_layer_input_dtype():
    _refused(lambda: MoELayer(16, 8, 4, 2)(torch.zeros(3, 16).half()), ["grouped_mm", "w", "float16"], TypeError)
