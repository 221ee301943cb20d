"""A base, its adapters and a router as one model that answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..decoding import generate
from ..routing import Router
from ..training.checkpoints import put_back
from ..training.data import DOMAINS
from ..training.data.template import encode_prompt, end_of_turn
from ..training.tuning.tune import MODEL_DIR
from .adapters import read_adapter
from .bank import AdapterBank
from .base import Base
from .choices import RowChoice
from .settings import MIXED

# How adapters are chosen when no adapter is named.
MODES = ("auto", "top2", "arrow", "base")


def find_adapters(folder: Path) -> dict[str, Path]:
    """Returns the finished adapters of a folder of runs by name, or the one that the folder itself holds.

    Raises:
        ValueError: there are none.
    """
    put_back(folder.parent, folder.name)
    for run in folder.iterdir() if folder.is_dir() else ():
        put_back(run, MODEL_DIR)
    if (folder / "adapter_config.json").is_file():
        return {folder.name: folder}
    there = {path.parent.parent.name: path.parent for path in sorted(folder.glob(f"*/{MODEL_DIR}/adapter_config.json"))}
    # The five domains first and in their order.
    found = {name: there[name] for name in (*DOMAINS, *there) if name in there}
    if not found:
        raise ValueError(f"adapters: expected {folder}/<domain>/model with adapter_config.json, found none")
    return found


class LoraSystem:
    """One base in memory with all adapters of a folder; use it as a context manager, or `close` it."""

    def __init__(self, base: Base, adapters: dict[str, Path], router: Router | None = None) -> None:
        """Puts the adapters onto the base.

        Args:
            base: the base; its layers are replaced until `close`.
            adapters: where each adapter is, by name.
            router: chooses where nothing else does; needed by the modes "auto" and "top2".

        Raises:
            ValueError: an adapter is damaged, or of another base.
        """
        self.base, self.router = base, router
        self.bank = AdapterBank(base.model, [read_adapter(path, name, base) for name, path in adapters.items()])

    def choices(self, texts: Sequence[str], mode: str) -> list[RowChoice]:
        """Returns what each text is answered by.

        Args:
            texts: what the user says last.
            mode: "auto" for the router's choice, "top2" for its two likeliest mixed by their probabilities, "base", or
                an adapter's name. The base answers where the router abstains, or names what there is no adapter for.
        """
        if mode in self.bank.names:
            return [mode] * len(texts)
        if mode == "base":
            return [None] * len(texts)
        if mode not in ("auto", "top2") or self.router is None:
            raise ValueError(f"adapters: expected {', '.join((*MODES, *self.bank.names))}, got {mode!r}")
        routes = [self.router.route(text) for text in texts]
        if mode == "auto":
            return [route.domain if route.domain in self.bank.names else None for route in routes]
        mixed = [[(name, w) for name, w in route.best(2) if name in self.bank.names] for route in routes]
        return [pairs if route.domain else None for route, pairs in zip(routes, mixed, strict=True)]

    @contextmanager
    def chosen(self, texts: Sequence[str], mode: str) -> Iterator[None]:
        """Within the block, row i of a batch is answered as `mode` says of text i."""
        with self.bank.arrow(2) if mode == "arrow" else self.bank.rows(self.choices(texts, mode)):
            yield

    def answer(
        self, conversations: Sequence[Sequence[dict[str, str]]], mode: str = "auto", max_new_tokens: int = 128,
        **sampling: Any,
    ) -> list[str]:  # fmt: skip
        """Returns what the system says to each conversation, all in one batch.

        Args:
            conversations: turns with `role` and `content`, the user's last.
            mode: see `choices`; also "arrow", where each token chooses in each layer.
            max_new_tokens: of each answer.
            sampling: options of transformers' `generate`; greedy by default.
        """
        with self.chosen([turns[-1]["content"] for turns in conversations], mode):
            return complete(self.base, conversations, max_new_tokens, **sampling)

    def close(self) -> None:
        """Takes the adapters off the base."""
        self.bank.close()

    def __enter__(self) -> LoraSystem:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@torch.no_grad()
def complete(
    base: Base, conversations: Sequence[Sequence[dict[str, str]]], max_new_tokens: int, **sampling: Any
) -> list[str]:
    """Returns what the base, as it is now, says to each conversation; the batch is padded at the front."""
    prompts = [encode_prompt(base.tokenizer, turns) for turns in conversations]
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), base.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1
    out = generate(
        base.model,
        ids.to(base.model.device),
        mask.to(base.model.device),
        max_new_tokens=max_new_tokens,
        eos_token_id=end_of_turn(base.tokenizer),
        pad_token_id=base.tokenizer.pad_token_id,
        # transformers' Trainer switches it off in the configuration that a tuned base is saved with.
        **{"do_sample": False, "use_cache": True, **sampling},
    )
    return [text.strip() for text in base.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]


__all__ = ["MIXED", "MODES", "LoraSystem", "complete", "find_adapters"]
