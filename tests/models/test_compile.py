"""torch.compile(fullgraph=True) of every model that compiles with transformers' own experts, forward and backward."""

from __future__ import annotations

import inspect
import time

import pytest
import torch
from model_compare import has_forward, inputs_for, randomize
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
        reason = str(error).partition("\n")[0]
        return f"{type(error).__name__}: {reason}"


def _check(case: Case, backend: str = "aot_eager") -> tuple[str, str]:
    """Return a verdict, and the reason for it: "compiles" where the model gives in one graph what it gives without.

    What does not compile with transformers' experts either, for the same reason, is not ours. "One graph" is then what
    dynamo traces whole, and the part that takes its gradient cannot follow. What inductor makes of the rest of a model
    is not ours either: the graph and its gradient are what matters.
    """
    model = build(case.model).eval()
    if not has_forward(model):
        return "not ours", "it has no forward"
    randomize(model)
    inputs = {n: v for n, v in inputs_for(case, model, 1).items() if n != "labels"}
    moe_kernels.patch(model)
    want = _step(model, model, inputs)
    got = _compiled(model, inputs, backend)
    if not isinstance(got, str):
        errors = [relative_error(a, b) for a, b in zip(got, want, strict=True)]
        # The sums of a whole model, which a compiler may order otherwise.
        right = max(errors) <= 10 * TOLERANCE[torch.float32]
        return "compiles" if right else "wrong", f"errors of output and gradients {errors}"
    model.set_experts_implementation("grouped_mm")
    if _compiled(model, inputs, backend) != got:
        return "wrong", got
    moe_kernels.patch(model)
    return "not ours" if isinstance(_compiled(model, inputs, "eager"), str) else "one graph", got


def _case(name: str) -> Case:
    (case,) = (case for case in cases() if case.config.__name__ == name)
    return case


@pytest.mark.parametrize("name", FEW)
def test_a_whole_model_compiles_without_graph_breaks(name):
    assert _check(_case(name))[0] == "compiles"


@pytest.mark.slow
def test_a_whole_model_by_inductor():
    assert _check(_case("GptOssConfig"), "inductor")[0] == "compiles"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_model_compiles_that_does_with_transformers_own_experts(part):
    verdicts: dict[str, list[str]] = {}
    for case in cases()[part::PARTS]:
        begin, name = time.process_time(), case.config.__name__
        verdict, reason = _check(case)
        print(f"{name}: {verdict}, {reason}, {time.process_time() - begin:.0f} s of CPU", flush=True)
        verdicts.setdefault(verdict, []).append(name)
    print({verdict: len(names) for verdict, names in verdicts.items()})
    assert "wrong" not in verdicts, verdicts["wrong"]
    assert len(verdicts.get("not ours", [])) < len(verdicts["compiles"]) / 4
