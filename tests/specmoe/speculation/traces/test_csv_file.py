from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specmoe.speculation import RouteTrace, load_routes
from specmoe.speculation.traces.csv_file import save_csv

HEADER = "turn,phase,step,layer,slot,expert,weight\n"


def write(path: Path, rows: list[str]) -> Path:
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_tokens_are_ordered_and_layers_numbered_anew(tmp_path: Path) -> None:
    rows = [
        "5,decode,0,3,0,7,0.6",
        "5,decode,0,3,1,2,0.4",
        "5,decode,0,1,1,0,0.1",
        "5,decode,0,1,0,1,0.9",
        "5,prefill,9,1,0,3,0.5",
        "5,prefill,9,1,1,4,0.5",
        "5,prefill,9,3,0,5,0.7",
        "5,prefill,9,3,1,6,0.3",
        "2,decode,1,1,0,0,1",
        "2,decode,1,1,1,1,0",
        "2,decode,1,3,0,2,1",
        "2,decode,1,3,1,3,0",
    ]
    trace = load_routes(write(tmp_path / "t.csv", rows))
    assert trace.num_experts == 8 and trace.starts.tolist() == [0, 1, 3]
    assert trace.experts[0].tolist() == [[0, 1], [2, 3]]
    assert trace.experts[1].tolist() == [[3, 4], [5, 6]]
    assert trace.experts[2].tolist() == [[1, 0], [7, 2]]
    assert trace.weights is not None and trace.weights[2].tolist() == pytest.approx(np.array([[0.9, 0.1], [0.6, 0.4]]))


def test_a_slot_without_a_row_is_none(tmp_path: Path) -> None:
    trace = load_routes(
        write(tmp_path / "t.csv", ["0,decode,0,0,0,3,1", "0,decode,1,0,0,1,0.5", "0,decode,1,0,1,2,0.5"])
    )
    assert trace.experts.tolist() == [[[3, 4]], [[1, 2]]]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(6)[:2] for _ in range(21)]).reshape(7, 3, 2)
    ids[0, 0, 0] = 5
    trace = RouteTrace(ids, np.array([0, 3, 7]), 6, weights=rng.random((7, 3, 2)).astype(np.float32))
    save_csv(trace, tmp_path / "t.csv")
    back = load_routes(tmp_path / "t.csv")
    assert np.array_equal(back.experts, ids) and np.array_equal(back.starts, trace.starts)
    assert np.allclose(back.weights, trace.weights, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("turn,step\n1,2\n", "none named phase, layer, slot, expert, weight"),
        (HEADER, "at least one row"),
        (HEADER + "0,decode,0,0,0,x,1\n", "line 2: expected numbers"),
        (HEADER + "0,later,0,0,0,1,1\n", "line 2: expected numbers and a phase"),
        (HEADER + "0,decode,0,0,0,1\n", "line 2: expected numbers"),
        (HEADER + "0,decode,0,0,0,1,1\n0,decode,0,0,0,2,1\n", "turn 0, decode step 0, layer 0, slot 0 is there twice"),
        (HEADER + "0,decode,0,0,0,1,1\n0,decode,1,1,0,2,1\n", "none of layer 1 at turn 0, decode step 0"),
        (HEADER + "0,decode,0,0,0,-1,1\n", "got a negative one"),
    ],
    ids=["columns", "empty", "text", "phase", "short", "twice", "gap", "negative"],
)
def test_wrong_content(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_routes(tmp_path / "t.csv")
