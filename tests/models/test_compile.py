"""torch.compile(fullgraph=True) of every model that compiles with transformers' own experts, forward and backward."""

from __future__ import annotations

import inspect
import time

import pytest
import torch
from model_compare import THEIRS, has_forward, inputs_for, randomize
from model_walk import Case, build, cases
from torch import Tensor
from transformers import PreTrainedModel

import moe_kernels
from moe_kernels.testing import TOLERANCE, relative_error

# One that is fused, with biases, and one that is computed in steps.
FEW = ("GptOssConfig", "MuseSparkTextConfig")
# The whole walk takes minutes: it can be run in parts.
PARTS = 4


def _step(called, model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the output of a forward, and all gradients of its mean square in one row."""
    model.zero_grad()
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    out = called(**inputs, **options)
    output = out.logits if "logits" in out else out[0]
    output.square().mean().backward()
    return output.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _compiled(model: PreTrainedModel, inputs: dict[str, Tensor], backend: str) -> tuple[Tensor, Tensor] | str:
    """Do the same in one graph; or return why that is not possible."""
    torch.compiler.reset()
    try:
        return _step(torch.compile(model, fullgraph=True, backend=backend), model, inputs)
    # Whatever dynamo, or the graph that it made, cannot do.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _check(case: Case, backend: str = "aot_eager") -> tuple[bool, str]:
    """Return whether the model compiles with our experts and gives what it gives uncompiled; and why not.

    The reason is empty where it does not compile with transformers' experts either, and then it is not ours. The graph
    is what matters, and its gradient: what inductor makes of the rest of a model is not ours.
    """
    model = build(case.model).eval()
    if not has_forward(model):
        return False, ""
    randomize(model)
    inputs = {n: v for n, v in inputs_for(case, model, 1).items() if n != "labels"}
    moe_kernels.patch(model)
    want = _step(model, model, inputs)
    got = _compiled(model, inputs, backend)
    if isinstance(got, str):
        for name in THEIRS:
            model.set_experts_implementation(name)
            if not isinstance(_compiled(model, inputs, backend), str):
                return False, got
        return False, ""
    errors = [relative_error(a, b) for a, b in zip(got, want, strict=True)]
    # The sums of a whole model, which a compiler may order otherwise.
    return max(errors) <= 10 * TOLERANCE[torch.float32], f"errors of output and gradients {errors}"


def _case(name: str) -> Case:
    (case,) = (case for case in cases() if case.config.__name__ == name)
    return case


@pytest.mark.parametrize("name", FEW)
def test_a_whole_model_compiles_without_graph_breaks(name):
    compiles, reason = _check(_case(name))
    assert compiles, reason


@pytest.mark.slow
def test_a_whole_model_by_inductor():
    compiles, reason = _check(_case("GptOssConfig"), "inductor")
    assert compiles, reason


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_model_compiles_that_does_with_transformers_own_experts(part):
    wrong, count, not_ours = {}, 0, []
    for case in cases()[part::PARTS]:
        begin, name = time.process_time(), case.config.__name__
        compiles, reason = _check(case)
        print(f"{name}: {'compiles' if compiles else reason or 'not'}, {time.process_time() - begin:.0f} s", flush=True)
        count += compiles
        if reason and not compiles:
            wrong[name] = reason
        elif not compiles:
            not_ours.append(name)
    print(f"{count} compile; with transformers' own experts these do not either: {', '.join(not_ours)}")
    assert not wrong, wrong
    assert count > len(not_ours)
