"""What an expert module of transformers 5 computes, found out by asking it.

`use_experts_implementation` leaves flags on a module: whether its weights are transposed, whether there are biases and
a gate, whether a norm follows each expert. The activation is not among them, and some models have a gate function of
their own. So the module is asked: its gate function is called with numbers, and what it returns is compared with the
activations that the kernels have. One that agrees is computed inside the kernel, whatever the model calls it; any other
is called between two grouped products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_kernels.backends.reference.activations import activate
from moe_kernels.validation import GATED_ACTIVATIONS, PLAIN_ACTIVATIONS

# Where a module keeps what was found.
_FOUND = "_moe_kernels_recognized"
# float32 arithmetic in another order: relative to the result, and, where that cancels, to its factors.
_TOLERANCE = 1e-5
_CANCELLED = 1e-6


class Recognized(NamedTuple):
    """How an expert module is computed.

    `activation` is None where the module's own gate function or activation has to be called; `reason` says why. The
    module's gate and up rows alternate where `interleaved`. `limit` is that of `fused_experts`.
    """

    up: str
    transposed: bool
    activation: str | None
    interleaved: bool
    post_norm: bool
    reason: str
    limit: float | None = None


def _probe() -> tuple[Tensor, Tensor]:
    """Gates and ups in unrelated orders: steps of 1/4 from -12 to 12, and powers of 2 up to 65536.

    The large ones are for clamps: one at 100 has to be known, though nobody may ever see it act.
    """
    steps = torch.arange(-48, 49, dtype=torch.float32, device="cpu") / 4
    powers = 2.0 ** torch.arange(4, 17, dtype=torch.float32, device="cpu")
    values = torch.cat((steps, powers, -powers))
    # 50 has no divisor in common with the 123 values.
    return values, values[torch.arange(len(values), device="cpu") * 50 % len(values)]


def _agrees(got: Any, want: Tensor, factors: Tensor) -> bool:
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return False
    distance = (got.to("cpu", torch.float32) - want).abs()
    return bool((distance <= _TOLERANCE * (want.abs() + _TOLERANCE) + _CANCELLED * factors.abs()).all())


def _limit(module: nn.Module, interleaved: bool) -> float | None:
    """Return where up seems to be clamped: the factor by which a huge one gives more than 1 does.

    To six digits, which is what float32 arithmetic leaves of it.
    """
    ones, ups = torch.ones(2, device="cpu"), torch.tensor((1.0, 2.0**16), device="cpu")
    pre = torch.stack((ones, ups), 1).flatten() if interleaved else torch.cat((ones, ups))
    least, most = module._apply_gate(pre[None])[0].tolist()  # type: ignore[operator]
    factor = float(f"{most / least:.6g}") if least else 0.0
    return factor if 1.0 < factor < 2.0**16 else None


def _gated(module: nn.Module) -> tuple[str, float | None, bool] | None:
    """Name the gated activation, its limit, and whether gate and up alternate."""
    gate, up = _probe()
    for interleaved in (False, True):
        pre = torch.stack((gate, up), 1).flatten()[None] if interleaved else torch.cat((gate, up))[None]
        got = module._apply_gate(pre.clone())  # type: ignore[operator]
        for limit in {None, _limit(module, interleaved)}:
            for name in GATED_ACTIVATIONS if limit is None else PLAIN_ACTIVATIONS:
                if _agrees(got, activate(pre, name, limit, True, interleaved), gate * up):
                    return name, limit, interleaved
    return None


def plain_activation(act_fn: Callable[[Tensor], Tensor]) -> str | None:
    """Name the activation that a function of one tensor is, or None."""
    values = _probe()[0][None]
    got = act_fn(values.clone())
    return next(
        (name for name in PLAIN_ACTIVATIONS if _agrees(got, activate(values, name, None, False, False), values)), None
    )


def _ask(module: nn.Module) -> tuple[str | None, float | None, bool, str]:
    """Return the activation, its limit, interleaving, and the reason where there is no such activation."""
    gated = has_gate(module)
    what = "_apply_gate" if gated else "act_fn"
    act_fn = getattr(module, "act_fn", None)
    if isinstance(act_fn, nn.Module) and next(act_fn.parameters(), None) is not None:
        return None, None, False, f"{type(module).__name__}.act_fn has parameters, which may change"
    try:
        with torch.no_grad():
            if gated:
                named = _gated(module)
                if named is not None:
                    return *named, ""
            else:
                plain = plain_activation(module.act_fn)  # type: ignore[arg-type]
                if plain is not None:
                    return plain, None, False, ""
    # Whatever a model's own function cannot do with these numbers.
    except Exception as error:
        return None, None, False, f"{type(module).__name__}.{what} could not be asked: {type(error).__name__}: {error}"
    return None, None, False, f"{type(module).__name__}.{what} is none of the kernels' activations"


def recognize(module: nn.Module) -> Recognized:
    """Find out, once for each module, how it is computed.

    Args:
        module: an instance of a class that `transformers.integrations.moe.use_experts_implementation` decorates.
    """
    found = module.__dict__.get(_FOUND)
    if found is None:
        activation, limit, interleaved, reason = _ask(module)
        norm = bool(getattr(module, "has_post_expert_norm", False))
        if norm:
            reason = "a norm follows each expert"
        up = "gate_up_proj" if has_gate(module) else "up_proj"
        found = Recognized(up, bool(module.is_transposed), activation, interleaved, norm, reason, limit)
        module.__dict__[_FOUND] = found
    return found


def has_gate(module: nn.Module) -> bool:
    """Whether the experts have a gate projection. transformers 5.0 knew no others, and says nothing."""
    return bool(getattr(module, "has_gate", True))


def is_experts(module: nn.Module) -> bool:
    """Whether a module has the marks that the experts interface of transformers, from 5.0 on, leaves on its modules."""
    return all(mark in module.__dict__ for mark in ("config", "has_bias", "is_transposed"))


def bare(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of PEFT, which nests one for each parameter; or the module itself."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module
