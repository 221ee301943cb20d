"""Which earlier tokens of the sequence went the same way, and where they went next.

The path of the current token through the layers so far is compared with that of each earlier token; those that are
most alike vote with the experts that they used in the coming layer. It needs no training and knows each sequence's own
habits. The similarity of two tokens before layer l is

    A(l) = fade^l * start + F(l),    F(l + 1) = fade * F(l) + cos(weights(l) of one, weights(l) of the other)

where `start` is 1 for equal token ids plus `carry` times the F of the tokens before them at their last layer. A vote is
exp(sharpness * (A - distance * log(tokens between))) against 1 for nobody at all. A second set of votes is twice as
sharp and is cast with the routing weights in place of the experts.

Letters: W window, L layers, E experts, T tokens of a pass, n tokens of a sequence.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .settings import FusedSettings

# Experts that got less than this share of the votes are alike.
FLOOR = 0.02


def vote_features(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (..., 2E), in the form that log-odds add up in, from both sets of votes (..., E)."""
    E = members.shape[-1]
    features = np.empty((*members.shape[:-1], 2 * E), dtype=np.float32)
    np.log(members + FLOOR, out=features[..., :E])
    features[..., E:] = weights
    return features


class SequenceMemory:
    """The last tokens of a sequence, compared with the pass that is under way.

    Args:
        layers: L.
        experts: E.
        settings: window and constants of the similarity.
    """

    def __init__(self, layers: int, experts: int, settings: FusedSettings) -> None:
        W = self._window = settings.window
        self._settings, self._experts = settings, experts
        # Similarities are kept multiplied with the sharpness.
        self.keys = np.zeros((layers, experts, W), dtype=np.float32)
        self.members = np.zeros((layers, W, experts), dtype=np.float32)
        self.weights = np.zeros((layers, W, experts), dtype=np.float32)
        # Of a pass of one token; they stay where they are.
        self.one_start = np.zeros((layers, W), dtype=np.float32)
        self.one_alike = np.zeros(W, dtype=np.float32)
        self._tokens = np.full(W, -1, dtype=np.int64)
        # By distance from the next token: entry i is the token i + 1 before it.
        self._far = (settings.sharpness * settings.distance * np.log(np.arange(1, W + 1))).astype(np.float32)
        self._fades = (settings.fade ** np.arange(layers)).astype(np.float32)[:, None, None]
        self.count = 0
        self.reset()

    def reset(self) -> None:
        """Forget the sequence."""
        self._count = 0
        self._next = 0
        self._last: np.ndarray | None = None
        self.begin(None, 1)

    def begin(self, tokens: np.ndarray | None, count: int) -> None:
        """A pass of `count` tokens begins; their ids (T,) where known."""
        n = self.count = min(self._count, self._window)
        s = self._settings
        start = np.zeros((count, n), dtype=np.float32)
        if tokens is not None:
            start += s.sharpness * ((self._tokens[:n] == tokens[:, None]) & (self._tokens[:n] >= 0))
        if self._last is not None:
            # The token in slot j came after the one in slot j - 1; before the sequence's first there was none.
            last = self._last
            start[0] += s.carry * (np.roll(last, 1) if len(last) == n else np.concatenate([[0.0], last]))
        # Slots are filled in turn: slot j holds the token (next - 1 - j) mod W + 1 before the coming one.
        distance = self._far[(self._next - 1 - np.arange(n)) % self._window]
        if count == 1:
            np.multiply(self._fades[:, 0], start, out=self.one_start[:, :n])
            self.one_start[:, :n] -= distance
            self.one_alike[:n] = 0.0
            self._start, self._alike = self.one_start[:, None, :n], self.one_alike[None, :n]
        else:
            self._start = self._fades * start - distance
            self._alike = np.zeros((count, n), dtype=np.float32)

    def votes(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the votes for a layer: for its experts (T, E), and of its routing weights (T, E)."""
        T, n = self._alike.shape
        if n == 0:
            empty = np.zeros((T, self._experts), dtype=np.float32)
            return empty, empty
        soft = self._start[layer] + self._alike
        np.exp(soft, out=soft)
        members = soft @ self.members[layer, :n]
        members /= 1.0 + soft.sum(1, keepdims=True)
        np.multiply(soft, soft, out=soft)
        weights = soft @ self.weights[layer, :n]
        weights /= 1.0 + soft.sum(1, keepdims=True)
        return members, weights

    def compare(self, layer: int, t: int, experts: np.ndarray, key: np.ndarray) -> None:
        """Take a token's experts (K,) in a layer, and their parts of its direction (K,), into the similarities."""
        n = self._alike.shape[1]
        if n:
            alike = self._alike[t]
            alike *= self._settings.fade
            alike += (self._settings.sharpness * key) @ self.keys[layer].take(experts, axis=0)[:, :n]

    def add(self, tokens: np.ndarray | None, members: np.ndarray, weights: np.ndarray) -> None:
        """Remember a pass: use and routing weights (L, T, E)."""
        T, W = members.shape[1], self._window
        self._last = self._alike[0].copy() if T == 1 else None
        for t in range(max(0, T - W), T):
            slot = self._next
            self.members[:, slot], self.weights[:, slot] = members[:, t], weights[:, t]
            length = np.sqrt((weights[:, t] ** 2).sum(1, keepdims=True))
            self.keys[:, :, slot] = weights[:, t] / np.maximum(length, 1e-6)
            self._tokens[slot] = -1 if tokens is None else tokens[t]
            self._next = (slot + 1) % W
        self._count += T


def sequence_votes(
    weights: Tensor, members: Tensor, tokens: Tensor | None, settings: FusedSettings
) -> tuple[Tensor, Tensor]:
    """Return what `SequenceMemory.votes` would say for every token of a sequence at once.

    Args:
        weights: (n, L, E) routing weights, 0 for experts that were not used.
        members: (n, L, E), 1 for those that were.
        tokens: (n,) ids.
        settings: window and constants.

    Returns:
        Two of (n, L, E).
    """
    n, L, _ = weights.shape
    s = settings
    keys = weights / weights.norm(dim=2, keepdim=True).clamp(min=1e-6)
    alike = torch.einsum("ale,ble->lab", keys, keys)
    last = torch.zeros(n, n)
    for layer in range(L):
        last = s.fade * last + alike[layer]
    start = torch.zeros(n, n) if tokens is None else (tokens[:, None] == tokens[None]).float()
    start[1:, 1:] += s.carry * last[:-1, :-1]
    far = torch.arange(n)[:, None] - torch.arange(n)[None]
    seen = (far > 0) & (far <= s.window)
    distance = s.distance * far.clamp(min=1).float().log()
    soft_votes, sharp_votes = torch.empty_like(weights), torch.empty_like(weights)
    total = torch.zeros(n, n)
    for layer in range(L):
        score = s.sharpness * (s.fade**layer * start + total - distance)
        soft = score.exp() * seen
        sharp = soft * soft
        soft_votes[:, layer] = soft @ members[:, layer] / (1 + soft.sum(1, keepdim=True))
        sharp_votes[:, layer] = sharp @ weights[:, layer] / (1 + sharp.sum(1, keepdim=True))
        total = s.fade * total + alike[layer]
    return soft_votes, sharp_votes
