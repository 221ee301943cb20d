"""ScatterMoE's `parallel_linear` (github.com/shawntan/scattermoe), put together as its GLUMLP does.

GLUMLP itself keeps the gate in the second half of the rows; here it is in the first, as in the model's weights.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from peers import Arm, Tokens


def prepare_gpu(gate_up: Tensor, down: Tensor) -> Arm:
    """Return the expert MLP over these weights; see the package."""
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear

    E = down.shape[0]

    def forward(tokens: Tokens) -> Tensor:
        K = tokens.indices.shape[1]
        plan = flatten_sort_count(tokens.wide, num_experts=E)
        pre = parallel_linear(tokens.x, gate_up.permute(0, 2, 1), K, *plan, grouped_out=True)
        gate, up = pre.chunk(2, dim=-1)
        hidden = F.silu(gate) * up
        return parallel_linear(hidden, down.permute(0, 2, 1), 1, *plan, gates=tokens.narrow, grouped_in=True)

    return Arm(forward, gate_up, down)
