"""What a sample is: one layer of one token, with what was routed before it.

Letters: N tokens, L layers, E experts, P positions (path, then earlier tokens, then scales), B samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..counting import membership
from ..traces import RouteTrace
from .configurations import LearnedSettings


@dataclass(frozen=True)
class Samples:
    """The routes of a trace, ready to be cut into samples.

    Args:
        used: (N, L, E) uint8.
        sums: (N + 1, L, E) int32, running sums of `used`, for means over windows; empty where there are no scales.
        place: (N,), the token's place in its sequence.
    """

    used: Tensor
    sums: Tensor
    place: Tensor

    @classmethod
    def of(cls, trace: RouteTrace, settings: LearnedSettings) -> Samples:
        """Prepare a trace."""
        used = membership(trace.experts, trace.num_experts).astype(np.uint8)
        place = np.concatenate([np.arange(n) for n in np.diff(trace.starts)])
        sums = np.zeros((1, *used.shape[1:]), dtype=np.int32)
        if settings.scales:
            sums = np.concatenate([sums, np.cumsum(used, axis=0, dtype=np.int32)])
        return cls(torch.from_numpy(used), torch.from_numpy(sums), torch.from_numpy(place))

    def cut(self, tokens: Tensor, layers: Tensor, settings: LearnedSettings) -> tuple[Tensor, Tensor, Tensor]:
        """Return sets (B, P, E) float32, the layer of each position (B, P), and which positions exist (B, P) bool.

        A position without a set is absent, and no expert stands for it.
        """
        back = torch.arange(1, settings.path + 1)
        path_layers = layers[:, None] - back
        path = self.used[tokens[:, None], path_layers.clamp(min=0)].float()
        sets, exists = [path], [path_layers >= 0]
        ago = torch.arange(1, settings.tokens + 1)
        earlier = tokens[:, None] - ago
        sets.append(self.used[earlier.clamp(min=0), layers[:, None]].float())
        exists.append(ago <= self.place[tokens][:, None])
        for window in settings.scales:
            length = self.place[tokens].clamp(max=window)
            total = self.sums[tokens, layers] - self.sums[tokens - length, layers]
            sets.append((total.float() / length.clamp(min=1)[:, None])[:, None])
            exists.append((length > 0)[:, None])
        here = layers[:, None].expand(-1, settings.tokens + len(settings.scales))
        return torch.cat(sets, 1), torch.cat([path_layers.clamp(min=0), here], 1), torch.cat(exists, 1)
