"""The trained numbers of the fused predictor, in the layout that asking it wants.

Letters: L layers, E experts, K experts per token, D decays, V known tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_file import whole_file
from .settings import FusedSettings

FORMAT = "specmoe fused predictor 1"


@dataclass(frozen=True)
class FusedWeights:
    """Everything that a `FusedPredictor` needs. W is the stream's width, H the perceptrons', C the tokens'.

    Norms are folded into the matrices behind them, and signals that are not used have zeros.

    Args:
        settings: what it was trained with.
        top_k: K.
        known: (V,) token ids in rising order; row 1 + i of `token` belongs to the i-th.
        ranks: (K,), what a missing routing weight is taken for.
        token: (V + 1, C). from_token: (2C, W): of the token, of the one before.
        from_past: (L, 2E, W), enter_path: (L, 2E, W), enter_previous: (L, 2E, W), enter_votes: (L, E, W).
        up: (L, W, H). up_bias: (L, H). down: (L, H, W). out: (L, W, 2E). bias: (L, 2E).
        links: (L, 2E, L, 2E), from a layer of the path to each later one.
        plain_previous: (L, 2E, 2E). plain_averages: (L, (D + 1)E, 2E). plain_votes: (L, 2E, 2E).
        scale: (L,), what the scores of use are multiplied with to be calibrated.
        keep_plain: (L, (D + 3)E, E). keep_up: (L, (D + 3)E, M). keep_down: (L, M, E). keep_bias: (L, E).
    """

    settings: FusedSettings
    top_k: int
    known: np.ndarray
    ranks: np.ndarray
    token: np.ndarray
    from_token: np.ndarray
    from_past: np.ndarray
    enter_path: np.ndarray
    enter_previous: np.ndarray
    enter_votes: np.ndarray
    up: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    out: np.ndarray
    bias: np.ndarray
    links: np.ndarray
    plain_previous: np.ndarray
    plain_averages: np.ndarray
    plain_votes: np.ndarray
    scale: np.ndarray
    keep_plain: np.ndarray
    keep_up: np.ndarray
    keep_down: np.ndarray
    keep_bias: np.ndarray

    @property
    def layers(self) -> int:
        return len(self.bias)

    @property
    def experts(self) -> int:
        return self.bias.shape[1] // 2

    @property
    def parameters(self) -> int:
        """Trained numbers, the table of tokens included; links between layers in the wrong order do not count."""
        L = self.layers
        names = [f.name for f in fields(self) if f.name not in ("settings", "top_k", "known", "ranks", "links")]
        links = self.links.size * (L - 1) // (2 * L)
        return sum(getattr(self, name).size for name in names) + links

    def without(self, signal: str) -> FusedWeights:
        """Return the same weights with one signal taken away, and nothing trained anew.

        Raises:
            ValueError: there is no such signal.
        """
        names = {
            "path": ("enter_path",),
            "links": ("links",),
            "previous": ("from_past", "enter_previous", "plain_previous"),
            "averages": ("plain_averages",),
            "similar": ("enter_votes", "plain_votes"),
            "token": ("from_token",),
        }
        if signal not in names:
            raise ValueError(f"FusedWeights: signal: expected one of {', '.join(names)}, got {signal}")
        zeros = {name: np.zeros_like(getattr(self, name)) for name in names[signal]}
        return replace(self, **zeros)

    def save(self, path: str | Path) -> None:
        """Write a `.npz`, complete or not at all; matrices in float16."""
        path = Path(path)
        arrays: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                exact = field.name in ("known", "ranks", "scale") or value.ndim < 3 and field.name != "token"
                arrays[field.name] = value if exact else value.astype(np.float16)
        header = {"format": FORMAT, "settings": asdict(self.settings), "top_k": self.top_k}
        arrays["header"] = np.array(json.dumps(header))
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> FusedWeights:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"predictor: no file at {path}")
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(str(arrays.pop("header")))
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']!r}")
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in header["settings"].items()}
            values = {
                name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in arrays.items()
            }
            return cls(settings=FusedSettings(**given), top_k=header["top_k"], **values)
        # What NumPy raises for a file of another kind depends on its bytes.
        except Exception as error:
            raise ValueError(f"predictor: {path}: expected weights of the fused predictor, got {error}") from error
