"""Generation with few operations a token, for the small causal models that domain experts and specialists stand on.

A forward of transformers takes some six hundred operations for four layers, and on a CPU a small model's token is
mostly their overhead. `generate` runs the model's own linear layers with few operations between them; a model that it
does not know, or that somebody has put hooks on or other parts into, is handed to transformers.
"""

from __future__ import annotations

from .generate import generate

__all__ = ["generate"]
