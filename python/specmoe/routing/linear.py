"""The trained router: one matrix over hashed n-grams, with a temperature that makes its confidence a probability."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from ..training.files import replace_file
from .features import hashed_features, named_features
from .route import Route

_FORMAT = 2
# How the names of features begin that say where a word stands; "^0 write" is a query that begins so.
_PLACED = re.compile(r"\^[12] |\$\d |\?\d? ")


@dataclass
class LinearRouter:
    """Softmax regression over hashed n-grams.

    Attributes:
        weight: (buckets, domains) float32.
        bias: (domains) float32.
        domains: their names.
        temperature: what logits are divided by.
        threshold: the confidence below which the router abstains.
    """

    weight: np.ndarray
    bias: np.ndarray
    domains: tuple[str, ...]
    temperature: float = 1.0
    threshold: float = 0.0

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns the (domains) float32 logits of a query, before the temperature.

        Args:
            features: what `hashed_features` says of it, in as many buckets as the router has.
        """
        # The root keeps long queries from being certain by their length alone.
        scale = 1 / np.sqrt(max(1, len(features)))
        return self.weight.take(features, axis=0).sum(axis=0) * scale + self.bias

    def route(self, text: str) -> Route:
        """Returns the choice for a query; an empty one is abstained from."""
        return self.route_features(hashed_features(text, len(self.weight)))

    def route_features(self, features: np.ndarray) -> Route:
        """Returns the choice for a query whose features are known, as `logits` takes them."""
        if not len(features):
            return Route(None, 1 / len(self.domains), dict.fromkeys(self.domains, 1 / len(self.domains)))
        scaled = self.logits(features) / self.temperature
        odds = np.exp(scaled - scaled.max())
        p = odds / odds.sum()
        best = int(p.argmax())
        confident = p[best] >= self.threshold
        return Route(
            self.domains[best] if confident else None, float(p[best]), dict(zip(self.domains, p.tolist(), strict=True))
        )

    def explain(self, text: str, count: int = 5) -> Route:
        """Returns the choice with its reasons: the words and pairs that spoke most for it against the others."""
        route = self.route(text)
        best = int(np.argmax([route.probabilities[domain] for domain in self.domains]))
        # A word's places beside the first are left out: to be told that a query has "a" in one explains nothing.
        names = [name for name in dict.fromkeys(named_features(text)) if not _PLACED.match(name)]
        rows = self.weight[[xxhash.xxh64_intdigest(name.encode()) & (len(self.weight) - 1) for name in names]]
        support = rows[:, best] - rows.mean(axis=1) if names else np.zeros(0)
        order = np.argsort(-support)[:count]
        reasons = tuple(_readable(names[i]) for i in order if support[i] > 0)
        return Route(route.domain, route.confidence, route.probabilities, reasons)

    def save(self, path: Path) -> None:
        """Writes the router as one .npz file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez_compressed(
                    file, format=_FORMAT, weight=self.weight, bias=self.bias, domains=np.array(self.domains),
                    temperature=self.temperature, threshold=self.threshold,
                )  # fmt: skip

        replace_file(path, write)

    @classmethod
    def load(cls, path: Path) -> LinearRouter:
        """Reads a router that `save` wrote.

        Raises:
            ValueError: the file is no such router.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                if int(stored["format"]) != _FORMAT:
                    raise ValueError(f"format {int(stored['format'])}, expected {_FORMAT}")
                domains = tuple(str(name) for name in stored["domains"])
                weight, bias = stored["weight"], stored["bias"]
                return cls(weight, bias, domains, float(stored["temperature"]), float(stored["threshold"]))
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"router: {path}: expected a file written by a router: {error}") from error


def _readable(name: str) -> str:
    if name.startswith("^0 "):
        return f'begins with "{name[3:]}"'
    return name[1:] if name.startswith("#") else f'"{name}"'
