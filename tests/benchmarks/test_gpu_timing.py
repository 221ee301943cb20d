"""The clock of the GPU benchmarks with a GPU that is not there, and the check of results."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from gpu import arms, check, shapes, timing
from gpu.experts import memory
from peers import Arm, Tokens

SMALL = shapes.Shape(4, 2, 32, 16)
CPU = torch.device("cpu")


class Gpu:
    """Stands for a device of type "cuda"."""

    type = "cuda"


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace what timing.py uses of torch.cuda; return the list of what happens."""
    happened: list[str] = []
    now = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            now[0] += 1.0
            self.at = now[0]

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    class Stream:
        def __init__(self, device: Any = None) -> None: ...

        def wait_stream(self, other: Any) -> None:
            happened.append("wait")

    class Graph:
        def replay(self) -> None:
            happened.append("replay")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: happened.append("sleep"))
    monkeypatch.setattr(timing, "_evict", lambda device: happened.append("evict"))
    return happened


def test_events_give_the_seconds(pretended: list[str]) -> None:
    measured = timing.measure(lambda: pretended.append("call"), Gpu(), limit=1e-9)
    assert (measured.seconds, measured.repeats) == (1e-3, 5)
    # The cache is full of something else, and the launches wait behind a pause.
    assert pretended[-16:] == ["evict", "sleep", "call"] * 5 + ["synchronize"]


def test_a_graph_of_several_calls_gives_the_seconds_of_one(pretended: list[str]) -> None:
    measured = timing.measure_graph([lambda: None] * 4, Gpu(), limit=1e-9)
    assert measured.seconds == pytest.approx(1e-3 / 4)
    assert pretended.count("replay") == measured.repeats + 3


def test_what_cannot_be_recorded_is_a_reason(pretended: list[str]) -> None:
    calls = iter(range(4))

    def call() -> None:
        # One to warm up and two on the side stream; the fourth is recorded.
        if next(calls) == 3:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with pytest.raises(timing.CaptureFailed, match="capturing$"):
        timing.measure_graph([call], Gpu())


def test_experts_are_halved_until_a_step_fits() -> None:
    shape = shapes.MODELS["DeepSeek-V3"]
    assert shapes.fitting(shape, 32768, None) == shape
    assert shapes.fitting(shape, 32768, 138 * 2**30).E == 256
    assert shapes.fitting(shape, 32768, 78 * 2**30).E == 128


def test_rotated_inputs_ask_for_all_experts() -> None:
    shape = shapes.Shape(16, 4, 8, 8)
    given = shapes.rotated(shape, 1, CPU)
    assert torch.cat([one.indices for one in given]).unique().tolist() == list(range(16))
    assert shapes.experts_hit(given) == 4


def _wrong_arms() -> dict[str, Any]:
    def scaled(arm: Arm) -> Any:
        return lambda tokens: arm.forward(tokens) * 1.05

    def last_row_lost(arm: Arm) -> Any:
        def forward(tokens: Tokens) -> torch.Tensor:
            out = arm.forward(tokens).clone()
            out[-1] = 0
            return out

        return forward

    def nan(arm: Arm) -> Any:
        return lambda tokens: arm.forward(tokens) * float("nan")

    return {"scaled": scaled, "last row lost": last_row_lost, "nan": nan}


@pytest.mark.parametrize("name", _wrong_arms())
def test_wrong_results_are_seen(name: str) -> None:
    gate_up, down = shapes.weights(SMALL, CPU)
    tokens = shapes.tokens(SMALL, 700, CPU)
    arm = arms.arm("reference", gate_up, down)
    check.check_forward(arm.forward(tokens), tokens, gate_up, down, 1.0)
    forward = _wrong_arms()[name](arm)
    with pytest.raises(check.Wrong, match="result"):
        check.check_forward(forward(tokens), tokens, gate_up, down, 1.0)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_gradients_of_interleaved_weights_are_compared_in_their_order(interleaved: bool) -> None:
    gate_up, down = (weight.requires_grad_() for weight in shapes.weights(SMALL, CPU))
    own = gate_up
    if interleaved:
        both = gate_up.detach().chunk(2, dim=1)
        own = torch.stack(both, dim=2).reshape(gate_up.shape).requires_grad_()
    tokens = shapes.tokens(SMALL, 40, CPU)
    x, routing = tokens.x.requires_grad_(), tokens.routing.requires_grad_()
    arm = arms.arm("reference", own, down, interleaved=interleaved)._replace(interleaved=interleaved)
    grad = torch.randn(40, SMALL.H).to(shapes.DTYPE)
    grads = torch.autograd.grad(arm.forward(tokens), (x, routing, own, down), grad)
    check.check_backward(grads, grad, tokens, gate_up, down, arm, 1.0)
    wrong = [*grads[:2], torch.roll(grads[2], 1, dims=1), grads[3]]
    with pytest.raises(check.Wrong, match="gradient of gate_up"):
        check.check_backward(wrong, grad, tokens, gate_up, down, arm, 1.0)


def test_memory_counts_what_autograd_keeps() -> None:
    from gpu.ceilings import Ceilings
    from gpu.context import Context
    from gpu.results import Row

    row = Row("memory", "OLMoE", 32, "reference")
    memory(Context(CPU, Ceilings(1.0, 1.0, 1.0), small=True), row)
    assert row.ratio is not None and 1.0 <= row.ratio <= 1.05
