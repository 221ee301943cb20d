"""What an expert module of transformers 5 computes, found out by asking it.

`use_experts_implementation` leaves flags on a module: whether its weights are transposed, whether there are biases and
a gate, whether a norm follows each expert. The activation is not among them, and some models have a gate function of
their own. So the module is asked: its gate function is called with numbers, and what it returns is compared with the
activations that the kernels have. One that agrees is computed inside the kernel, whatever the model calls it; any other
is called between two grouped products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_kernels.backends.reference.activations import activate
from moe_kernels.validation import GATED_ACTIVATIONS, PLAIN_ACTIVATIONS

# Where a module keeps what was found.
_FOUND = "_moe_kernels_recognized"
# float32 arithmetic in another order.
_TOLERANCE = 1e-5


class Recognized(NamedTuple):
    """How an expert module is computed.

    `activation` is None where the module's own gate function or activation has to be called; `reason` says why. The
    module's gate and up rows alternate where `interleaved`.
    """

    up: str
    transposed: bool
    activation: str | None
    interleaved: bool
    post_norm: bool
    reason: str


def _probe() -> tuple[Tensor, Tensor]:
    """Gates and ups: steps of 1/4 from -12 to 12, beyond every clamp in use, in unrelated orders."""
    values = torch.arange(-48, 49, dtype=torch.float32, device="cpu") / 4
    order = torch.arange(97) * 31 % 97
    return values, values[order]


def _agrees(got: Any, want: Tensor) -> bool:
    if not isinstance(got, Tensor) or got.shape != want.shape:
        return False
    return bool(torch.allclose(got.to("cpu", torch.float32), want, rtol=_TOLERANCE, atol=_TOLERANCE))


def _gated(module: nn.Module) -> tuple[str, bool] | None:
    """Name the gated activation, and whether gate and up alternate."""
    gate, up = _probe()
    for interleaved in (False, True):
        pre = torch.stack((gate, up), 1).flatten()[None] if interleaved else torch.cat((gate, up))[None]
        got = module._apply_gate(pre.clone())  # type: ignore[operator]
        for name in GATED_ACTIVATIONS:
            if _agrees(got, activate(pre, name, True, interleaved)):
                return name, interleaved
    return None


def _plain(module: nn.Module) -> str | None:
    values = _probe()[0][None]
    got = module.act_fn(values.clone())  # type: ignore[operator]
    return next((name for name in PLAIN_ACTIVATIONS if _agrees(got, activate(values, name, False, False))), None)


def _ask(module: nn.Module) -> tuple[str | None, bool, str]:
    """Return the activation, interleaving, and the reason where there is no such activation."""
    what = "_apply_gate" if module.has_gate else "act_fn"
    try:
        with torch.no_grad():
            if module.has_gate:
                gated = _gated(module)
                if gated is not None:
                    return *gated, ""
            else:
                plain = _plain(module)
                if plain is not None:
                    return plain, False, ""
    except Exception as error:  # noqa: BLE001: whatever a model's own function cannot do with these numbers
        return None, False, f"{type(module).__name__}.{what} could not be asked: {type(error).__name__}: {error}"
    return None, False, f"{type(module).__name__}.{what} is none of the kernels' activations"


@torch.compiler.assume_constant_result
def recognize(module: nn.Module) -> Recognized:
    """Find out, once for each module, how it is computed.

    Args:
        module: an instance of a class that `transformers.integrations.moe.use_experts_implementation` decorates.
    """
    found = module.__dict__.get(_FOUND)
    if found is None:
        activation, interleaved, reason = _ask(module)
        norm = bool(getattr(module, "has_post_expert_norm", False))
        if norm:
            reason = "a norm follows each expert"
        up = "gate_up_proj" if module.has_gate else "up_proj"
        found = Recognized(up, bool(module.is_transposed), activation, interleaved, norm, reason)
        module.__dict__[_FOUND] = found
    return found


def is_experts(module: nn.Module) -> bool:
    """Whether a module has the marks that the experts interface of transformers leaves on its modules."""
    marks = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
    return all(mark in module.__dict__ for mark in marks)
