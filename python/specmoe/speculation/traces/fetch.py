"""The public routes of GPT-OSS-20B: downloading them and reading their files.

They are examples of https://github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Apache-2.0): a map of files,
and one JSON file for each example, with the tokens that were generated and, for each, every layer's experts and
weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote

import numpy as np

from .trace import RouteTrace

SOURCE = "https://raw.githubusercontent.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting/main/data"
EXPERTS = 32


class FetchError(ValueError):
    """Something could not be downloaded."""


def fetch_routes(
    cache: Path,
    *,
    source: str = SOURCE,
    datasets: Iterable[str] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RouteTrace:
    """Download the public routes and return them as a trace.

    Files are kept in the cache, so that an interrupted download goes on where it was.

    Args:
        cache: folder to keep the files in.
        source: the address of the folder that has `map.json`.
        datasets: only these of the map's data sets; None for all.
        limit: at most so many files; None for all.
        progress: called with (files done, files).

    Raises:
        FetchError: a file could not be had; it names the address and what to try.
        ValueError: a file is not what this reads, or the map has none of `datasets`.
    """
    table = json.loads(_download(f"{source}/map.json", cache / "map.json").read_text(encoding="utf-8"))
    wanted = None if datasets is None else set(datasets)
    if wanted is not None and wanted - set(table):
        raise ValueError(f"trace fetch: datasets: expected some of {sorted(table)}, got {sorted(wanted - set(table))}")
    paths = [
        (dataset, entry["examples_file_path"])
        for dataset, categories in table.items()
        for category in categories.values()
        for entry in category.values()
        if "examples_file_path" in entry and (wanted is None or dataset in wanted)
    ][:limit]
    sequences, labels = [], []
    for done, (dataset, path) in enumerate(paths):
        file = _download(f"{source}/{quote(path)}", cache / path)
        for example in _examples(file):
            sequences.append(example)
            labels.append(dataset)
        if progress is not None:
            progress(done + 1, len(paths))
    if not sequences:
        raise ValueError(f"trace fetch: expected at least one example under {source}, found none")
    return joined(sequences, labels)


def joined(sequences: list[tuple[list[str], np.ndarray, np.ndarray]], labels: list[str]) -> RouteTrace:
    """Lay (tokens, experts (n, L, K), weights (n, L, K)) end to end; tokens are numbered as they come."""
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(token, len(numbers)) for tokens, _, _ in sequences for token in tokens]
    return RouteTrace(
        np.concatenate([experts for _, experts, _ in sequences]),
        np.cumsum([0, *(len(tokens) for tokens, _, _ in sequences)]).astype(np.int64),
        EXPERTS,
        np.concatenate([weights for _, _, weights in sequences]),
        np.array(ids, dtype=np.int32),
        labels=np.array(labels, dtype=np.str_),
    )


def _examples(file: Path) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Read one file, which holds one example or a list of them."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [read_example(one) for one in (content if isinstance(content, list) else [content])]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"trace fetch: {file}: expected an example with routes, got {error!r}") from error


def read_example(example: dict[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the generated tokens, their experts (n, L, K) and weights (n, L, K) of one example."""
    steps = {
        int(name.removeprefix("token_")): layers for entry in example["router_data"] for name, layers in entry.items()
    }
    tokens = example["generated_only"]
    order = sorted(steps)[: len(tokens)]
    layers = len(steps[order[0]])

    def table(key: str) -> list[list[list[float]]]:
        return [[steps[step][f"layer_{layer}"][key] for layer in range(layers)] for step in order]

    experts = np.array(table("selected_experts"), dtype=np.uint8)
    weights = np.array(table("selected_probs"), dtype=np.float16)
    if experts.ndim != 3 or experts.shape != weights.shape or experts.max() >= EXPERTS:
        raise ValueError(f"experts of shape {experts.shape} and weights of shape {weights.shape}")
    return list(tokens[: len(order)]), experts, weights


def _download(url: str, file: Path) -> Path:
    """Return a file's local copy, downloading it where there is none."""
    import torch.hub

    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Writes beside the file and renames it when it is complete.
        torch.hub.download_url_to_file(url, str(file), progress=False)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise FetchError(
            f"trace fetch: {url} could not be downloaded ({error}); this needs a network: what is downloaded already "
            f"is kept in {file.parent}, so try again with one"
        ) from error
    return file
