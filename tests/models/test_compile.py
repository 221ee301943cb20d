"""torch.compile(fullgraph=True) of every model that compiles with transformers' own experts."""

from __future__ import annotations

import pytest
import torch
from model_compare import has_forward, inputs_for, randomize
from model_walk import Case, build, cases

import moe_kernels
from moe_kernels.testing import relative_error

# One that is fused, with biases, and one that is computed in steps.
FEW = ("GptOssConfig", "MuseSparkTextConfig")


def _compiled(model, inputs):
    """Return the output of the compiled model, or None where dynamo cannot follow it."""
    torch.compiler.reset()
    try:
        # The graph is what matters: what inductor makes of the rest of a model is not ours.
        out = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs, use_cache=False)
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    output = out.logits if "logits" in out else out[0]
    output.square().mean().backward()
    return output.detach(), ""


def _check(case: Case) -> str | None:
    """Return what is wrong; None where all is well; "" where transformers' own cannot be compiled."""
    model = build(case.model).eval()
    if not has_forward(model):
        return ""
    randomize(model)
    inputs = {n: v for n, v in inputs_for(case, model, 1).items() if n != "labels"}
    model.set_experts_implementation("batched_mm")
    theirs, _ = _compiled(model, inputs)
    if theirs is None:
        return ""
    model.zero_grad()
    moe_kernels.patch(model)
    ours, reason = _compiled(model, inputs)
    if ours is None:
        return reason
    error = relative_error(ours, theirs)
    return None if error < 1e-4 else f"error {error}"


@pytest.mark.parametrize("name", FEW)
def test_a_whole_model_compiles_without_graph_breaks(name):
    (case,) = (case for case in cases() if case.config.__name__ == name)
    assert _check(case) is None


@pytest.mark.slow
def test_every_model_compiles_that_does_with_transformers_own_experts():
    results = {case.config.__name__: _check(case) for case in cases()}
    skipped = [name for name, result in results.items() if result == ""]
    print(f"{len(results) - len(skipped)} of {len(results)} compile; transformers' own do not: {', '.join(skipped)}")
    assert not {name: result for name, result in results.items() if result}
    assert len(skipped) < len(results) / 2
