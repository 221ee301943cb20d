from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specmoe.speculation import RouteTrace, load_routes, save_routes


def small_trace(
    lengths: tuple[int, ...] = (3, 5, 2, 4), layers: int = 3, experts: int = 6, top_k: int = 2
) -> RouteTrace:
    rng = np.random.default_rng(0)
    ids = np.stack([[rng.permutation(experts)[:top_k] for _ in range(layers)] for _ in range(sum(lengths))])
    return RouteTrace(ids.astype(np.uint8), np.cumsum([0, *lengths]), experts)


def test_saved_trace_is_read_back(tmp_path: Path) -> None:
    trace = small_trace(experts=9)
    save_routes(trace, tmp_path / "t.npz")
    back = load_routes(tmp_path / "t.npz")
    assert back.num_experts == 9
    assert np.array_equal(back.experts, trace.experts) and np.array_equal(back.starts, trace.starts)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_number_of_experts_is_inferred(tmp_path: Path) -> None:
    trace = small_trace()
    np.savez(tmp_path / "t.npz", experts=trace.experts, trace_start=trace.starts, dataset=np.array(["a"] * 4))
    assert load_routes(tmp_path / "t.npz").num_experts == int(trace.experts.max()) + 1


def test_sequences_layers_and_take() -> None:
    trace = small_trace()
    assert len(trace) == 4
    assert np.array_equal(trace.sequence(1), trace.experts[3:8])
    assert np.array_equal(trace.layers(1, 2).experts, trace.experts[:, 1:3])
    taken = trace.take(np.array([2, 0]))
    assert taken.starts.tolist() == [0, 2, 5]
    assert np.array_equal(taken.sequence(1), trace.sequence(0))


def test_split_is_by_sequence() -> None:
    trace = small_trace(lengths=(3,) * 20)
    kept, held_out = trace.split(0.25, seed=3)
    assert (len(kept), len(held_out)) == (15, 5)
    ours = {trace.sequence(i).tobytes() for i in range(20)}
    left = {kept.sequence(i).tobytes() for i in range(15)}
    right = {held_out.sequence(i).tobytes() for i in range(5)}
    assert left | right == ours and not left & right
    again = trace.split(0.25, seed=3)[1]
    assert np.array_equal(again.experts, held_out.experts)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_split_refuses(share: float) -> None:
    with pytest.raises(ValueError, match="split: expected"):
        small_trace().split(share)
    with pytest.raises(ValueError, match="at least 2 sequences"):
        small_trace(lengths=(4,)).split(0.5)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="trace: no file at"):
        load_routes(tmp_path / "absent.npz")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"], ids=["empty", "text", "cut"])
def test_unreadable_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(ValueError, match="expected a NumPy .npz file"):
        load_routes(tmp_path / "t.npz")


def test_array_file_that_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="expected"):
        load_routes(tmp_path / "t.npz")


def test_damaged_archive(tmp_path: Path) -> None:
    save_routes(small_trace(lengths=(500, 500)), tmp_path / "t.npz")
    data = bytearray((tmp_path / "t.npz").read_bytes())
    data[200] ^= 0xFF
    (tmp_path / "t.npz").write_bytes(data)
    with pytest.raises(ValueError, match="cannot be read"):
        load_routes(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"experts": np.zeros((2, 1, 1), np.uint8)}, r"none named \['trace_start'\]"),
        ({"experts": np.zeros((2, 1), np.uint8), "trace_start": np.array([0, 2])}, r"experts: expected integers"),
        ({"experts": np.zeros((2, 1, 1)), "trace_start": np.array([0, 2])}, r"experts: expected integers"),
        ({"experts": np.zeros((0, 1, 1), np.uint8), "trace_start": np.array([0, 0])}, r"experts: expected integers"),
        ({"experts": np.zeros((2, 1, 1), np.uint8), "trace_start": np.array([0, 3])}, r"rising bounds from 0 to N=2"),
        ({"experts": np.zeros((2, 1, 1), np.uint8), "trace_start": np.array([0, 2, 1])}, r"rising bounds"),
        (
            {"experts": np.full((2, 1, 1), 7, np.uint8), "trace_start": np.array([0, 2]), "num_experts": np.int64(4)},
            r"expected ids in \[0, E=4\), got up to 7",
        ),
    ],
    ids=["no-starts", "two-dims", "floats", "empty", "short", "falling", "too-many-experts"],
)
def test_wrong_content(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_routes(tmp_path / "t.npz")
