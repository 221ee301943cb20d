from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specmoe.speculation import Observation, RouteTrace
from specmoe.speculation.learned import (
    CONFIGURATIONS,
    LearnedPredictor,
    LearnedSettings,
    chances_of,
    configuration,
    load_learned,
    train_learned,
    training,
)
from specmoe.speculation.learned.augment import augmented, same_layer_partner
from specmoe.speculation.learned.data import Samples
from specmoe.speculation.learned.model import build
from specmoe.speculation.learned.training import _schedule

L, E, K = 4, 8, 2
NAMES = ("baseline", "enhanced", "improved", "extended", "multi-scale", "augmented", "ensemble")
TINY = LearnedSettings("baseline", width=16, heads=2, feed_forward=32, blocks=1, path=2, tokens=2, batch_size=64)


def linked_trace(sequences: int = 6, length: int = 20, seed: int = 0) -> RouteTrace:
    """A layer's experts are the ones before plus 1, or by chance others."""
    rng = np.random.default_rng(seed)
    experts = np.empty((sequences * length, L, K), dtype=np.uint8)
    for token in experts:
        token[0] = rng.permutation(E)[:K]
        for layer in range(1, L):
            token[layer] = (token[layer - 1] + 1) % E if rng.random() < 0.9 else rng.permutation(E)[:K]
    return RouteTrace(experts, np.arange(sequences + 1) * length, E)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("baseline", 2.1), ("enhanced", 24.5), ("improved", 8.4), ("extended", 8.4), ("multi-scale", 8.4)]
    + [("augmented", 8.4), ("ensemble", 3 * 2.1)],
)
def test_parameters_are_as_named(name: str, millions: float) -> None:
    model = build(24, 32, configuration(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_improved_one_has_its_sizes() -> None:
    s = CONFIGURATIONS["improved"]
    assert (s.width, s.heads, s.feed_forward, s.blocks) == (320, 10, 1280, 5)
    assert CONFIGURATIONS["extended"].path > s.path and CONFIGURATIONS["extended"].tokens > s.tokens
    assert set(CONFIGURATIONS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_takes_steps_in_bfloat16_without_nan(name: str) -> None:
    settings = replace(configuration(name, "cpu"), steps=3, batch_size=16, warmup=1)
    run = train_learned(linked_trace(), settings)
    assert run.steps == 3 and np.isfinite(run.loss)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


@pytest.mark.parametrize("name", ["baseline", "multi-scale", "ensemble", "augmented"])
def test_learns(name: str) -> None:
    s = CONFIGURATIONS[name]
    settings = replace(
        TINY,
        scales=s.scales,
        noise=s.noise,
        mask=s.mask / 3,
        members=s.members,
        steps=300,
        learning_rate=1e-2,
        warmup=10,
    )
    run = train_learned(linked_trace(20), settings)
    test = linked_trace(3, seed=9)
    chances = chances_of(run, test)
    best = np.argsort(-chances, axis=2)[..., :K]
    right = (best[..., None] == test.experts[:, :, None]).any(3)[:, 1:].mean()
    assert right > 0.8


def test_asking_layer_by_layer_is_the_batch() -> None:
    settings = replace(TINY, scales=(4,), steps=5)
    test = linked_trace(2, 9)
    run = train_learned(linked_trace(), settings, dtype=torch.float32)
    want = chances_of(run, test)
    predictor = LearnedPredictor(run, L, E)
    first = test.first_tokens
    for n, token in enumerate(test.experts):
        if first[n]:
            predictor.reset()
            assert predictor.predict(0) is None
        for layer in range(L):
            said = predictor.predict(layer)
            if said is not None:
                # The batch is computed in bfloat16.
                assert np.allclose(said, want[n, layer], atol=0.02)
            predictor.observe(Observation(layer, token[layer][None]))


def test_a_missing_position_is_no_expert() -> None:
    samples = Samples.of(linked_trace(), TINY)
    sets, _, exists = samples.cut(torch.tensor([0, 20, 1]), torch.tensor([0, 1, 3]), TINY)
    # A sequence's first token has no earlier ones, the first layer no path.
    assert exists.tolist() == [[False] * 4, [True, False, False, False], [True, True, True, False]]
    model = build(L, E, TINY).eval()
    layers, where = torch.tensor([0, 1, 3]), torch.zeros(3, 4, dtype=torch.long)
    changed = torch.where(exists[..., None], sets, torch.ones_like(sets))
    with torch.no_grad():
        assert torch.equal(model(sets, where, exists, layers), model(changed, where, exists, layers))


def test_layers_are_told_apart() -> None:
    model = build(L, E, TINY).eval()
    exists, where = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.long)
    with torch.no_grad():
        one, other = model(torch.zeros(2, 4, E), where, exists, torch.tensor([1, 2]))
    assert not torch.allclose(one, other)


def test_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = linked_trace()
    whole = train_learned(trace, replace(TINY, steps=8), dtype=torch.float32)
    file = tmp_path / "c.pt"

    # A run that is killed after its checkpoint: the next save never comes.
    real = training._write

    def once(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_write", once)
    with pytest.raises(KeyboardInterrupt):
        train_learned(trace, replace(TINY, steps=8), checkpoint=file, save_every=3, dtype=torch.float32)
    monkeypatch.undo()
    assert load_learned(file).steps == 3
    again = train_learned(trace, replace(TINY, steps=8), checkpoint=file, resume=True, dtype=torch.float32)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert load_learned(file).steps == 8


def test_resume_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    trace = linked_trace()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        train_learned(trace, TINY, checkpoint=tmp_path / "absent.pt", resume=True)
    file = tmp_path / "c.pt"
    train_learned(trace, replace(TINY, steps=1), checkpoint=file)
    with pytest.raises(ValueError, match="expected improved"):
        train_learned(trace, replace(TINY, name="improved"), checkpoint=file, resume=True)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected a checkpoint"):
        load_learned(file)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of baseline, .* got huge"):
        configuration("huge")
    with pytest.raises(ValueError, match="expected one of cpu, full"):
        configuration("baseline", "fast")


def test_augmentation_keeps_shapes_and_layers() -> None:
    rng = np.random.default_rng(0)
    layers = torch.from_numpy(rng.integers(0, L, 50))
    partner = same_layer_partner(layers, rng)
    assert torch.equal(layers[partner], layers) and sorted(partner.tolist()) != list(range(50))
    sets = torch.from_numpy(rng.random((50, 4, E)).astype(np.float32))
    exists, target = torch.ones(50, 4, dtype=torch.bool), torch.rand(50, E)
    changed = augmented(sets, exists, target, layers, rng, configuration("augmented"))
    assert [x.shape for x in changed] == [sets.shape, exists.shape, target.shape]
    assert not changed[1].all() and (changed[2] >= 0).all() and (changed[2] <= 1).all()


def test_the_schedule_of_a_run_that_its_minutes_end() -> None:
    settings = replace(configuration("enhanced", "cpu"), minutes=10.0)
    # Steps of six seconds: a hundred of warming up would be the whole run.
    rate = [_schedule(step, 6.0 * step, settings) for step in range(101)]
    assert rate[0] < 0.02 and max(rate) > 0.95 and np.argmax(rate) == 10
    assert all(a >= b for a, b in zip(rate[10:], rate[11:], strict=False)) and 0.01 < rate[100] < 0.03
    # Steps that are quick enough: as many as are set, and the cosine over the steps.
    quick = [_schedule(step, 0.01 * step, settings) for step in (0, 50, 99, 100, 8000, 16_000)]
    assert quick == pytest.approx([0.01, 0.51, 1.0, 1.0, 0.51, 0.02], abs=0.01)
