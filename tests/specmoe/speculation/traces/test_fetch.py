from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.speculation.traces.fetch import FetchError, fetch_routes


def example(tokens: list[str], first: int, layers: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(first)

    def routes() -> dict[str, Any]:
        return {"selected_experts": rng.permutation(32)[:4].tolist(), "selected_probs": [0.5, 0.25, 0.125, 0.125]}

    steps = {f"token_{first + i}": {f"layer_{n}": routes() for n in range(layers)} for i in range(len(tokens))}
    return {"generated_only": tokens, "router_data": [steps]}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "data"
    (root / "a" / "some topic").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root
    server.shutdown()
    server.server_close()


def test_fetches_the_files_of_the_map(source: tuple[str, Path], tmp_path: Path) -> None:
    address, root = source
    entry = {"sample_count": 1, "examples_file_path": "a/some topic/x.json"}
    (root / "map.json").write_text(json.dumps({"a": {"some topic": {"True": entry, "False": {"sample_count": 3}}}}))
    (root / "a" / "some topic" / "x.json").write_text(json.dumps([example(["the", " cat"], 9), example(["the"], 100)]))
    seen: list[tuple[int, int]] = []
    trace = fetch_routes(tmp_path / "cache", source=address, progress=lambda *done: seen.append(done))
    assert trace.starts.tolist() == [0, 2, 3] and trace.experts.shape == (3, 2, 4) and trace.num_experts == 32
    assert trace.tokens is not None and trace.tokens.tolist() == [0, 1, 0]
    assert trace.labels is not None and trace.labels.tolist() == ["a", "a"]
    assert seen == [(1, 1)]
    with pytest.raises(ValueError, match=r"expected some of \['a'\], got \['b'\]"):
        fetch_routes(tmp_path / "cache", source=address, datasets=["b"])


def test_a_file_of_another_kind(source: tuple[str, Path], tmp_path: Path) -> None:
    address, root = source
    (root / "map.json").write_text(json.dumps({"a": {"t": {"True": {"examples_file_path": "x.json"}}}}))
    (root / "x.json").write_text(json.dumps({"generated_only": ["a"], "router_data": []}))
    with pytest.raises(ValueError, match="expected an example with routes"):
        fetch_routes(tmp_path / "cache", source=address)


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"http://127.0.0.1:9/map.json could not be downloaded .*needs a network"):
        fetch_routes(tmp_path / "cache", source="http://127.0.0.1:9")
