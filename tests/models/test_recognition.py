"""What recognize finds out about expert modules, asked in ways that models ask or might."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from moe_kernels.integrations.recognition import is_experts, recognize

# Every name of an activation in transformers that is one of the kernels'.
KNOWN = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
}
UNKNOWN = ("gelu_10", "hardswish", "leaky_relu", "linear", "mish", "quick_gelu", "relu6", "sigmoid", "tanh")


def _module(act_fn, apply_gate=None, **flags):
    class Odd(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.act_fn = act_fn
            if apply_gate is not None:
                self._apply_gate = apply_gate

        def forward(self, *arguments):
            # Recognition asks for the activation alone.
            raise AssertionError("nobody is to run the whole module")

    return use_experts_implementation(**flags)(Odd)(types.SimpleNamespace(_experts_implementation="eager"))


@pytest.mark.parametrize("gated", (True, False), ids=("gated", "plain"))
@pytest.mark.parametrize("name", KNOWN)
def test_activations_of_transformers_are_recognized(name, gated):
    module = _module(ACT2FN[name], has_gate=gated)
    assert is_experts(module)
    assert recognize(module)[:2] == ("gate_up_proj" if gated else "up_proj", False)
    assert recognize(module).activation == KNOWN[name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_others_are_not(name):
    for gated in (True, False):
        found = recognize(_module(ACT2FN[name], has_gate=gated))
        assert found.activation is None and "none of the kernels' activations" in found.reason


@pytest.mark.parametrize("limit", (7.0, 10.0, 100.0, 1e4))
def test_a_clamp_is_seen_however_far_out(limit):
    def gate(pre, interleaved):
        g, u = (pre[..., ::2], pre[..., 1::2]) if interleaved else pre.chunk(2, -1)
        return nn.functional.silu(g.clamp(max=limit)) * u.clamp(-limit, limit)

    for interleaved in (True, False):
        found = recognize(_module(None, lambda pre, i=interleaved: gate(pre, i)))
        assert (found.activation, found.limit, found.interleaved) == ("silu", limit, interleaved)


CLAMPS = {
    "up alone": lambda g, u: (g, u.clamp(-7.0, 7.0)),
    "gate alone": lambda g, u: (g.clamp(max=7.0), u),
    "gate from below as well": lambda g, u: (g.clamp(-7.0, 7.0), u.clamp(-7.0, 7.0)),
    "up from above": lambda g, u: (g.clamp(max=7.0), u.clamp(max=7.0)),
    "two limits": lambda g, u: (g.clamp(max=7.0), u.clamp(-8.0, 8.0)),
}


@pytest.mark.parametrize("clamp", CLAMPS.values(), ids=CLAMPS.keys())
def test_other_clamps_are_left_to_the_model(clamp):
    def gate(pre):
        g, u = clamp(*pre.chunk(2, -1))
        return nn.functional.silu(g) * u

    assert recognize(_module(None, gate)).activation is None


def test_the_clamped_form_of_gpt_oss_in_either_layout():
    def gate(pre, interleaved):
        g, u = (pre[..., ::2], pre[..., 1::2]) if interleaved else pre.chunk(2, -1)
        g, u = g.clamp(max=7.0), u.clamp(-7.0, 7.0)
        return (u + 1) * g * torch.sigmoid(1.702 * g)

    for interleaved in (True, False):
        found = recognize(_module(None, lambda pre, i=interleaved: gate(pre, i)))
        assert (found.activation, found.interleaved) == ("gpt_oss", interleaved)


def test_what_can_change_or_fails_is_left_to_the_model():
    found = recognize(_module(nn.PReLU(init=0.0)))
    assert found.activation is None and "parameters" in found.reason

    def fails(pre):
        raise KeyError("a configuration that is not there")

    found = recognize(_module(None, fails))
    assert found.activation is None and "KeyError" in found.reason
