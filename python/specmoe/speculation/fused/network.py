"""The network behind the fused predictor, as torch trains it.

One stream of `width` numbers goes through the layers, as the residual stream does in the model that is predicted. It
begins with the token and the previous token's whole path; each layer adds what is known of it (the path's last step,
what the token before did here, what similar tokens did here) and a small perceptron. Each layer's scores are read off
the stream, and to them the plain log-linear terms are added: from every earlier layer of the path (links between pairs
of experts), the previous token, the averages and the votes.

Letters: B tokens, L layers, E experts, D decays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .settings import FusedSettings

EPSILON = 1e-5


def masks(settings: FusedSettings) -> dict[str, float]:
    """Return 1 for each signal that is used and 0 for the others."""
    from .settings import SIGNALS

    unknown = set(settings.signals) - set(SIGNALS)
    if unknown:
        raise ValueError(f"fused: signals: expected some of {', '.join(SIGNALS)}, got {', '.join(sorted(unknown))}")
    return {name: float(name in settings.signals) for name in SIGNALS}


class FusedNetwork(nn.Module):
    """Scores of use and of the heaviest expert for every layer, from the signals of `make_signals`.

    Args:
        layers: L.
        experts: E.
        vocabulary: known tokens; row 0 of the embedding is an unknown one.
        settings: sizes and signals.
    """

    def __init__(self, layers: int, experts: int, vocabulary: int, settings: FusedSettings) -> None:
        super().__init__()
        L, E, D = layers, experts, len(settings.decays)
        W, H, C = settings.width, settings.hidden, settings.token_width
        self.settings, self.layers, self.experts = settings, layers, experts
        self.use = masks(settings)

        def each(*shape: int, std: float) -> nn.ParameterList:
            return nn.ParameterList([nn.Parameter(torch.randn(*shape) * std) for _ in range(L)])

        self.token = nn.Embedding(vocabulary + 1, C)
        nn.init.normal_(self.token.weight, std=0.05)
        self.from_token = nn.Parameter(torch.randn(2 * C, W) * C**-0.5)
        self.from_past = nn.Parameter(torch.randn(L * 2 * E, W) * 0.01)
        # Per layer: the path's last step (2E), the previous token here (2E), votes (E).
        self.enter = each(5 * E, W, std=0.02)
        self.up, self.up_bias = each(W, H, std=W**-0.5), each(H, std=0.0)
        self.down = each(H, W, std=0.2 * H**-0.5)
        self.norm_up, self.norm_out = each(W, std=0.0), each(W, std=0.0)
        # Two scores per expert: of use, and of being the heaviest.
        self.out = each(W, 2 * E, std=0.02)
        self.bias = nn.Parameter(torch.zeros(L, 2 * E))
        self.links = nn.ParameterList([nn.Parameter(torch.zeros(max(1, n) * 2 * E, 2 * E)) for n in range(L)])
        # Per layer: the previous token here (2E), averages ((D + 1)E), votes in both forms (2E).
        self.plain = each((D + 5) * E, 2 * E, std=0.001)

    def forward(
        self,
        routed: Tensor,
        previous: Tensor,
        averages: Tensor,
        votes: Tensor,
        token: Tensor,
        previous_token: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return scores (B, L, 2E) float32: use, then heaviest.

        Args:
            routed, previous: (B, L, 2E), the token's own path and that of the one before.
            averages: (B, L, (D + 1)E).
            votes: (B, L, 3E).
            token, previous_token: (B,) rows of the embedding.
            dtype: of the products.
        """
        use, E = self.use, self.experts
        B = len(routed)
        routed, previous, averages, votes = (x.to(dtype) for x in (routed, previous, averages, votes))
        path, links = routed * use["path"], (routed * use["links"]).reshape(B, -1)
        previous, averages, votes = previous * use["previous"], averages * use["averages"], votes * use["similar"]
        embedded = torch.cat([self.token(token), self.token(previous_token)], 1).to(dtype) * use["token"]
        stream = embedded @ self.from_token.to(dtype) + previous.reshape(B, -1) @ self.from_past.to(dtype)
        scores = []
        for n in range(self.layers):
            step = path[:, n - 1] if n else torch.zeros_like(path[:, 0])
            entering = torch.cat([step, previous[:, n], votes[:, n, :E]], 1)
            stream = torch.addmm(stream, entering, self.enter[n].to(dtype))
            x = F.rms_norm(stream, stream.shape[1:], (1 + self.norm_up[n]).to(dtype), EPSILON)
            x = F.relu(torch.addmm(self.up_bias[n].to(dtype), x, self.up[n].to(dtype)))
            stream = torch.addmm(stream, x, self.down[n].to(dtype))
            x = F.rms_norm(stream, stream.shape[1:], (1 + self.norm_out[n]).to(dtype), EPSILON)
            direct = torch.cat([previous[:, n], averages[:, n], votes[:, n, E:]], 1)
            score = torch.addmm(direct @ self.plain[n].to(dtype), x, self.out[n].to(dtype))
            first = max(0, n - self.settings.context) if self.settings.context else 0
            if n > first:
                seen = slice(first * 2 * E, n * 2 * E)
                score = torch.addmm(score, links[:, seen], self.links[n][seen].to(dtype))
            scores.append(score)
        return torch.stack(scores, 1).float() + self.bias


class KeepNetwork(nn.Module):
    """How soon each expert is used again, from the averages after a token.

    Args:
        layers: L.
        experts: E.
        features: of one layer, as `keep_features` gives them.
        hidden: of each layer's perceptron beside the linear part.
    """

    def __init__(self, layers: int, experts: int, features: int, hidden: int = 64) -> None:
        super().__init__()
        L, E = layers, experts
        self.plain = nn.Parameter(torch.zeros(L, features, E))
        self.up = nn.Parameter(torch.randn(L, features, hidden) * features**-0.5)
        self.down = nn.Parameter(torch.zeros(L, hidden, E))
        self.bias = nn.Parameter(torch.full((L, 1, E), -1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Return log-odds (B, L, E) of nearness from (B, L, features)."""
        x = features.transpose(0, 1)
        dtype = x.dtype
        hidden = F.relu(torch.bmm(x, self.up.to(dtype)))
        score = torch.bmm(x, self.plain.to(dtype)) + torch.bmm(hidden, self.down.to(dtype))
        return (score.float() + self.bias).transpose(0, 1)
