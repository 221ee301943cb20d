"""When a model's passes begin, over which tokens, and whether a sequence begins with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn


def on_each_pass(model: nn.Module, tell: Callable[[np.ndarray | None, bool], None]) -> Any:
    """Call `tell(tokens, first)` before each forward pass; return the hook's handle.

    `tokens` are the ids (T,) that the pass will route, None where they are unknown: an encoder-decoder routes two
    sequences in one pass, and embeddings have no ids. `first` is whether nothing came before them.
    """
    two = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        past = kwargs.get("past_key_values")
        tokens = ids.detach().reshape(-1).numpy(force=True) if isinstance(ids, Tensor) and not two else None
        tell(tokens, _length(past) == 0)

    return model.register_forward_pre_hook(hook, with_kwargs=True)


def _length(past: Any) -> int:
    """Return how many tokens a cache of keys and values holds; 0 for none."""
    length = getattr(past, "get_seq_length", None)
    return 0 if past is None or length is None else int(length())
