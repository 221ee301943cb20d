"""How the next token is drawn from mixed distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Decoding:
    """How text is generated.

    Attributes:
        temperature: what log-probabilities are divided by; 0 takes the likeliest token always.
        top_p: the next token is one of the likeliest that together have this probability.
        max_new_tokens: the most tokens of an answer; None for what the context leaves.
        seed: of what is drawn.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature: expected at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")


GREEDY = Decoding(temperature=0.0)


class TokenChooser:
    """Draws tokens, in an order that the seed fixes."""

    def __init__(self, decoding: Decoding) -> None:
        self._greedy = decoding.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(float(decoding.temperature)))
            if decoding.top_p < 1:
                self._warpers.append(TopPLogitsWarper(decoding.top_p))
        self._generator = torch.Generator().manual_seed(decoding.seed)

    def __call__(self, log_p_RV: torch.Tensor) -> torch.Tensor:
        """Returns the (rows) int64 next tokens for (rows, vocabulary) log-probabilities."""
        if self._greedy:
            return log_p_RV.argmax(dim=-1)
        # These warpers look at the scores alone.
        scores = self._warpers(None, log_p_RV)  # type: ignore[arg-type]
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator)[:, 0]
