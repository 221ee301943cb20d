"""A model whose experts are on disk gives the bits of the model whose experts are in memory."""

from __future__ import annotations

import copy
import mmap
import os
import signal
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from moe_kernels import available_backends
from specmoe.offload import ExpertStore, Offload, StoreError, build_model_store, offload, record_routes
from specmoe.offload.engine import moe_blocks
from specmoe.speculation import Oracle
from specmoe.transformer import SpecMoeConfig, SpecMoeForCausalLM

# The sizes are too small for threads to pay, and busy ones slow the reader lanes down.
pytestmark = pytest.mark.usefixtures("one_thread")

BACKENDS = [name for name in ("reference", "cpu") if available_backends()[name] is None]
LAYERS, EXPERTS, TOP_K = 3, 6, 2


def make_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = dict(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=20,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        gated_experts=True,
        initializer_range=0.3,
    )
    return SpecMoeForCausalLM(SpecMoeConfig(**{**options, **changes})).eval()


def generate(model: Any, prompt: torch.Tensor, tokens: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    output = model.generate(
        prompt,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return output.sequences, torch.stack(output.logits)


def same_bits(got: tuple[torch.Tensor, torch.Tensor], want: tuple[torch.Tensor, torch.Tensor]) -> bool:
    as_bits = (got[1].view(torch.int32), want[1].view(torch.int32))
    return torch.equal(got[0], want[0]) and torch.equal(*as_bits)


def budget(slots: int) -> int:
    # 2 * 20 * 32 and 32 * 20 floats, padded to pages.
    return slots * 8192


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"gated_experts": False, "hidden_act": "gelu"}, {"router_score": "sigmoid", "shared_intermediate_size": 8}],
    ids=["gated", "ungated", "sigmoid-shared"],
)
@pytest.mark.parametrize("slots", [EXPERTS, 9])
def test_generation_is_bit_identical(
    tmp_path: Path, prompt: torch.Tensor, backend: str, options: dict[str, Any], slots: int
) -> None:
    model = make_model(moe_backend=backend, **options)
    with record_routes(model) as passes:
        expected = generate(model, prompt)
    with offload(model, tmp_path / "s", memory=budget(slots)) as engine:
        oracle = Oracle(passes, EXPERTS)
        for predictor, gated, keep in (
            ("next_gate", True, True),
            ("next_gate", False, True),
            ("previous_token", False, True),
            (oracle, False, True),
            (None, True, True),
            (None, True, False),
        ):
            engine.configure(predictor, gated=gated, keep=keep)
            assert same_bits(generate(model, prompt), expected)
            stats = engine.tier.settle()
            assert stats.requests == stats.hits + stats.misses + stats.late > 0
            assert stats.peak_bytes <= engine.tier.pool.nbytes <= budget(slots)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="only the native backend gives a token the same bits in any batch")
@pytest.mark.parametrize("slots", [TOP_K, 3, 4, 5])
@pytest.mark.parametrize("predictor", ["next_gate", None])
def test_prefill_with_more_experts_than_slots_is_bit_identical(
    tmp_path: Path, slots: int, predictor: str | None
) -> None:
    model = make_model(moe_backend="cpu")
    prompt = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = generate(model, prompt)
    with offload(model, tmp_path / "s", memory=budget(slots), predictor=predictor) as engine:
        assert engine.tier.slots == slots
        assert same_bits(generate(model, prompt), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(tmp_path: Path, prompt: torch.Tensor, dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    expected, _ = generate(model, prompt)
    with offload(model, tmp_path / "s", memory=budget(8)):
        assert torch.equal(generate(model, prompt)[0], expected)


def test_weights_are_freed_and_restored(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = generate(model, prompt)
    engine = offload(model, tmp_path / "s", memory=budget(6))
    originals = [module.original for module in engine._modules]
    assert all(parameter.numel() == 0 for original in originals for parameter in original.parameters())
    assert not any("gate_up_proj" in name for name, _ in model.named_parameters())
    with pytest.raises(RuntimeError, match="call restore"):
        model.state_dict()
    engine.restore()
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert same_bits(generate(model, prompt), expected)


def test_recall_of_the_oracle_is_full(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    with record_routes(model) as passes:
        generate(model, prompt)
    assert len(passes) == 8 and all(len(layers) == LAYERS for layers in passes)
    assert passes[0][0].shape == (9, TOP_K) and passes[1][0].shape == (1, TOP_K)
    with offload(model, tmp_path / "s", memory=budget(10), predictor=Oracle(passes, EXPERTS), gated=False) as engine:
        generate(model, prompt)
        stats = engine.tier.settle()
    # Nothing announces the very first layer; after it a demand may still overtake a guess that has not begun.
    assert stats.misses + stats.late + stats.prefetched > 0
    assert stats.precision is not None and stats.precision > 0.9


def test_closed_offload_says_so(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    engine = offload(model, tmp_path / "s", memory=budget(6))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="the offload was closed"):
        generate(model, prompt)


def test_gradients_are_refused(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    with offload(model, tmp_path / "s", memory=budget(6)), pytest.raises(RuntimeError, match="no gradients"):
        model(prompt, labels=prompt)


def test_budget_below_one_token_is_refused(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    expected = generate(model, prompt)
    with pytest.raises(ValueError, match=r"memory: expected at least 16.0 KiB \(16384 bytes\), for the 2 experts"):
        offload(model, tmp_path / "s", memory=budget(2) - 1)
    assert same_bits(generate(model, prompt), expected)


def test_unknown_predictor_is_refused_and_the_model_stays_whole(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    expected = generate(model, prompt)
    with pytest.raises(ValueError, match="predictor: expected one of .* got 'crystal_ball'"):
        offload(model, tmp_path / "s", memory=budget(6), predictor="crystal_ball")
    assert same_bits(generate(model, prompt), expected)


def test_store_of_another_model_is_refused(tmp_path: Path) -> None:
    model, other = make_model(), make_model(initializer_range=0.2)
    build_model_store(other, tmp_path / "s").close()
    with pytest.raises(StoreError, match="made from another model"):
        offload(model, tmp_path / "s", memory=budget(6))
    with pytest.raises(StoreError, match="gate_up_proj: expected"):
        offload(make_model(intermediate_size=24), tmp_path / "s", memory=budget(6))


def test_models_without_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected decoder blocks with a MoELayer .* got none in Linear"):
        offload(torch.nn.Linear(2, 2), tmp_path / "s", memory=budget(6))


def test_damage_on_disk_is_raised_with_the_experts_name(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    with offload(model, tmp_path / "s", memory=budget(6), predictor="next_gate", gated=False) as engine:
        used = _first_expert(model, prompt, engine)
        blob = engine.store.layout.blobs[engine.store.layout.keys[used]]
        data = bytearray((tmp_path / "s").read_bytes())
        data[blob.offset + 100] ^= 1
        (tmp_path / "s").write_bytes(data)
        engine.configure("next_gate")
        with pytest.raises(StoreError, match=rf"expert \(layer 0, expert {used}\) cannot be read: checksum"):
            generate(model, prompt)


def _first_expert(model: Any, prompt: torch.Tensor, engine: Offload) -> int:
    with record_routes(model) as passes:
        model.generate(prompt, max_new_tokens=1, do_sample=False, pad_token_id=0)
    return int(passes[0][0].min())


def test_interrupt_while_generating_leaves_nothing(
    tmp_path: Path, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    with pytest.raises(KeyboardInterrupt), offload(model, tmp_path / "s", memory=budget(6)) as engine:
        monkeypatch.setattr(engine.tier, "wait", _interrupt)
        generate(model, prompt)
    assert not [t for t in threading.enumerate() if t.name.startswith("specmoe-lane")]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    ExpertStore.open(tmp_path / "s", verify="all").close()


def _interrupt(keys: Any) -> list[int]:
    raise KeyboardInterrupt


def test_two_models_share_a_store(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    twin = copy.deepcopy(model)
    expected = generate(model, prompt)
    with (
        build_model_store(model, tmp_path / "s") as store,
        offload(model, store, memory=budget(6)),
        offload(twin, store, memory=budget(12)),
    ):
        assert same_bits(generate(model, prompt), expected)
        assert same_bits(generate(twin, prompt), expected)


def test_scores_rank_as_the_router_does() -> None:
    for score in ("softmax", "sigmoid"):
        model = make_model(router_score=score)
        block = moe_blocks(model)[1]
        residual = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            scores = block.scores(residual)
            _, gating = block.moe.route(block.norm(residual))
        best = np.sort(scores.topk(TOP_K).indices.numpy(), axis=1)
        assert np.array_equal(best, np.sort(gating.indices.numpy(), axis=1))


def test_every_expert_of_a_layer_may_be_used_at_once(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model(num_experts_per_tok=EXPERTS)
    expected = generate(model, prompt)
    with offload(model, tmp_path / "s", memory=budget(EXPERTS), gated=False):
        assert same_bits(generate(model, prompt), expected)


def test_after_closing_the_slots_hold_no_memory(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    expected = generate(model, prompt)
    engine = offload(model, tmp_path / "s", memory=budget(6))
    generate(model, prompt)
    assert engine.tier.pool.raw.any()
    engine.restore()
    if hasattr(mmap, "MADV_DONTNEED"):
        assert not engine.tier.pool.raw.any()
    assert same_bits(generate(model, prompt), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_at_once(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    with offload(model, tmp_path / "s", memory=budget(6)) as engine:
        reading, writing = os.pipe()
        # A lane may hold it at the moment of the fork.
        with engine.tier._lock:
            child = os.fork()
            if child == 0:
                _tell(writing, model, prompt, engine)
        os.close(writing)
        with os.fdopen(reading) as answer:
            assert answer.read() == "offload: it belongs to the process before fork: offload the model again"
        assert os.waitpid(child, 0)[1] == 0
        generate(model, prompt)


def _tell(answer: int, model: Any, prompt: torch.Tensor, engine: Offload) -> NoReturn:
    """Write what a forked child is told, and end it; if it hangs, the alarm does."""
    signal.alarm(20)
    try:
        generate(model, prompt)
    except RuntimeError as error:
        engine.close()
        os.write(answer, str(error).encode())
    os._exit(0)


def test_an_interrupt_after_a_demand_leaves_nothing_held(
    tmp_path: Path, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    expected = generate(model, prompt)
    with offload(model, tmp_path / "s", memory=budget(6)) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine.pipeline.gate, "record_demand", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                generate(model, prompt)
        engine.configure("next_gate")
        assert same_bits(generate(model, prompt), expected)
