"""One base in memory and many adapters: each row of a batch, or each token, with its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moe_kernels import grouped_lora, grouped_lora_
from moe_kernels.ops.bound_linear import BoundLinear, can_bind, is_plain
from moe_kernels.ops.prepared_lora import PreparedLora

from .adapters import Adapter
from .choices import ArrowChoice, Choice, RowChoice, RowsChoice, prototype


class MixedLinear(nn.Module):
    """A linear layer and the factors of all adapters, stacked; padded to the largest rank.

    Attributes:
        base: the layer.
        A: (G, R, in); B: (G, out, R); one group for each adapter.
        scaling: (G) float32.
        ranks: (G) int32, 0 for an adapter that leaves this layer alone.
        prototypes: (G, in), see `choices.prototype`; made when they are first asked for.
    """

    scaling: Tensor

    def __init__(self, base: nn.Linear, name: str, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.base, self.name = base, name
        # A quantized weight is stored as bytes; what goes through the layer is of another dtype.
        like = base.weight if base.weight.is_floating_point() else base.weight.new_empty(0, dtype=_computes_in(base))
        shapes = [adapter.factors[name] for adapter in adapters if name in adapter.factors]
        rank = max((A.shape[0] for A, _ in shapes), default=1)
        A = like.new_zeros(len(adapters), rank, base.in_features)
        B = like.new_zeros(len(adapters), base.out_features, rank)
        scaling, ranks = torch.zeros(len(adapters)), torch.zeros(len(adapters), dtype=torch.int32)
        for g, adapter in enumerate(adapters):
            if name in adapter.factors:
                a, b = adapter.factors[name]
                if a.shape[1] != base.in_features or b.shape[0] != base.out_features:
                    raise ValueError(
                        f"adapter: {adapter.name}: {name}: expected factors of a ({base.out_features}, "
                        f"{base.in_features}) layer, got ({b.shape[0]}, {a.shape[1]})"
                    )
                ranks[g], scaling[g] = a.shape[0], adapter.scaling[name]
                A[g, : a.shape[0]], B[g, :, : a.shape[0]] = a, b
        self.A, self.B = nn.Parameter(A, requires_grad=False), nn.Parameter(B, requires_grad=False)
        self.register_buffer("scaling", scaling.to(like.device), persistent=False)
        # The same rank for all needs no masks.
        self.ranks = None if len(set(ranks.tolist())) == 1 and rank == ranks[0] else ranks.to(like.device)
        self.choice: Choice | None = None
        self._prototypes: Tensor | None = None
        # For the rows of the batch that came last: each token of a continued batch has the same.
        self._prepared: PreparedLora | None = None

    @property
    def prototypes(self) -> Tensor:
        """(G, in) float32: see `choices.prototype`."""
        # Factors that are being trained change with every step.
        if self._prototypes is None or self.A.requires_grad:
            pairs = zip(self.A.detach(), self.B.detach(), strict=True)
            self._prototypes = torch.stack([prototype(a, b) for a, b in pairs]).to(self.A.device)
        return self._prototypes

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.choice is None:
            return y
        rows = x.reshape(-1, x.shape[-1])
        out = y.view(-1, y.shape[-1])
        # Under autocast a quantized layer returns the dtype of its input, and a delta is in autocast's.
        kind = x.device.type
        delta = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else y.dtype
        in_place = not torch.is_grad_enabled() and delta == y.dtype
        for groups, weights in self.choice.terms(rows, self):
            # The delta is linear in its input, so a row's weight goes there.
            given = rows if weights is None else rows * weights[:, None].to(rows.dtype)
            if not in_place:
                out = out + grouped_lora(given, self.A, self.B, groups, self.scaling, ranks=self.ranks)
            elif weights is None and not torch.compiler.is_compiling():
                self._ready(groups).add_(out, given)
            else:
                grouped_lora_(out, given, self.A, self.B, groups, self.scaling, ranks=self.ranks)
        return out.view(y.shape)

    def bound(self, rows: int) -> BoundLinear | None:
        """Returns the layer for a batch of so many rows with the present choice, None where it is not a plain one."""
        base: Any = self.base
        fixed = self.choice is None or isinstance(self.choice, RowsChoice)
        if not fixed or type(base) is not nn.Linear or not is_plain(base) or not is_plain(self):
            return None
        if not can_bind(*(t for t in (base.weight, base.bias, self.A, self.B) if t is not None)):
            return None
        terms = [] if self.choice is None else self.choice.terms(base.weight.new_empty(rows, 0), self)
        ready = [(PreparedLora(self.A, self.B, groups, self.scaling, ranks=self.ranks), w) for groups, w in terms]
        return BoundLinear(base.weight, base.bias, rows, ready)

    def _ready(self, groups: Tensor) -> PreparedLora:
        """Returns the adapters, prepared for rows with these groups."""
        ready = self._prepared
        if ready is None or ready.groups is not groups or ready.A is not self.A or ready.B is not self.B:
            ready = self._prepared = PreparedLora(self.A, self.B, groups, self.scaling, ranks=self.ranks)
        return ready


def _computes_in(base: Any) -> torch.dtype:
    return getattr(base, "compute_dtype", None) or torch.float32


class AdapterBank:
    """Adapters over a base, whose linear layers it replaces; `close` puts them back.

    Use `with bank.rows(["math", None, "code"]): model.generate(...)`: outside of such a block the model is the base.
    """

    def __init__(self, model: Any, adapters: Sequence[Adapter]) -> None:
        """Replaces the layers.

        Args:
            model: the base; its parameters stay where they are.
            adapters: at least one, with names of their own.

        Raises:
            ValueError: no adapters, a name twice, or an adapter of a model with other layers.
        """
        self.names = tuple(adapter.name for adapter in adapters)
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"adapters: expected different names, got {', '.join(self.names) or 'none'}")
        self.model = model
        self.layers: dict[str, MixedLinear] = {}
        known = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        for adapter in adapters:
            if foreign := sorted(set(adapter.factors) - set(known)):
                raise ValueError(f"adapter: {adapter.name}: expected layers of the base, got {foreign[0]}")
        for name in known:
            if any(name in adapter.factors for adapter in adapters):
                self.layers[name] = MixedLinear(known[name], name, adapters)
        try:
            for name, layer in self.layers.items():
                model.set_submodule(name, layer)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def rows(self, choices: Sequence[RowChoice]) -> Iterator[None]:
        """Within the block, each row of a batch has the adapters that are named for it.

        Args:
            choices: for each row an adapter's name, None for the base, or names with weights; one alone serves a batch
                of any size.
        """
        with self._chosen(RowsChoice(choices, self.names)):
            yield

    @contextmanager
    def arrow(self, top_k: int = 2, temperature: float = 1.0) -> Iterator[None]:
        """Within the block, each token chooses for itself, layer by layer."""
        with self._chosen(ArrowChoice(top_k, temperature)):
            yield

    @contextmanager
    def _chosen(self, choice: Choice) -> Iterator[None]:
        before = [layer.choice for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.choice = choice
        try:
            yield
        finally:
            for layer, previous in zip(self.layers.values(), before, strict=True):
                layer.choice = previous

    def trainable(self) -> list[nn.Parameter]:
        """Makes the factors of all adapters trainable and returns them; a step changes those of its rows alone."""
        parameters = [factor for layer in self.layers.values() for factor in (layer.A, layer.B)]
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters

    def adapter(self, name: str) -> Adapter:
        """Returns an adapter as it is now, without padding.

        Raises:
            ValueError: an unknown name.
        """
        if name not in self.names:
            raise ValueError(f"adapters: expected one of {', '.join(self.names)}, got {name!r}")
        g, factors, scaling = self.names.index(name), {}, {}
        for path, layer in self.layers.items():
            if rank := layer.A.shape[1] if layer.ranks is None else int(layer.ranks[g]):
                factors[path] = layer.A[g, :rank].detach().clone(), layer.B[g, :, :rank].detach().clone()
                scaling[path] = float(layer.scaling[g])
        return Adapter(name, factors, scaling)

    def close(self) -> None:
        """Gives the model its own layers back."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)
        self.layers = {}

    def __enter__(self) -> AdapterBank:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
