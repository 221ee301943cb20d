"""quantize_experts: the expert modules of a model, replaced by ones whose weights are NF4 or int8.

Letters: E experts, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_kernels.choices import weights_of_choices
from moe_kernels.layer import Experts
from moe_kernels.number_formats import FORMATS, NF4_BLOCK
from moe_kernels.ops.fused_experts import fused_experts
from moe_kernels.quantized_weights import QUANTIZERS, WEIGHTS, QuantizedWeight
from moe_kernels.validation import check_choice, check_stacked, fail


class Packed(NamedTuple):
    """How a class of modules keeps its matrices, where that is not a floating tensor that holds their values.

    Both are called with the module and a parameter's name: `shape` gives (E, O, H), `values` the matrices, floating.
    """

    shape: Callable[[nn.Module, str], tuple[int, int, int]]
    values: Callable[[nn.Module, str], Tensor]


class ExpertsLayout(NamedTuple):
    """Where a class of expert modules keeps its parameters, and what its forward does with them.

    `gate_up`, `down` and the biases are attribute names; without a gate, `gate_up` is the up-projection. The forward
    takes (x (T, H), indices (T, K), weights (T, K)), as `Experts` and the expert modules of transformers 5 do; the
    other options are those of `fused_experts`. `packed` says how to read parameters that are in a format of their own.
    """

    gate_up: str
    down: str
    gate_up_bias: str | None = None
    down_bias: str | None = None
    activation: str = "silu"
    interleaved: bool = False
    transposed: bool = False
    backend: str | None = None
    limit: float | None = None
    packed: Packed | None = None
    batch_invariant: bool | None = None


def _layout_of_experts(module: nn.Module) -> ExpertsLayout | None:
    if not isinstance(module, Experts):
        return None
    up = module._up_name
    biases = (None, None) if module.down_proj_bias is None else (f"{up}_bias", "down_proj_bias")
    return ExpertsLayout(
        up,
        "down_proj",
        *biases,
        activation=module.activation,
        backend=module.backend,
        batch_invariant=module.batch_invariant,
    )


_LAYOUTS: list[Callable[[nn.Module], ExpertsLayout | None]] = [_layout_of_experts]


def register_experts(layout: Callable[[nn.Module], ExpertsLayout | None]) -> None:
    """Teach `quantize_experts` another kind of expert module.

    Args:
        layout: called with a module; returns its layout, or None for a module that it does not know.
    """
    _LAYOUTS.append(layout)


def _layout(module: nn.Module) -> ExpertsLayout | None:
    return next((found for known in _LAYOUTS if (found := known(module)) is not None), None)


class QuantizedProjection(nn.Module):
    """A quantized weight as a module: its tensors are buffers, named as the fields of `Nf4Weight` or `Int8Weight`.

    Buffers move with `.to(device)`. A change of dtype (`.to(dtype)`, `.half()`, `.double()`) leaves them as they are:
    the scales are part of the format.
    """

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.format = weight.format
        self._names = tuple(weight.tensors())
        for name, value in weight.tensors().items():
            self.register_buffer(name, value)

    @property
    def weight(self) -> QuantizedWeight:
        """The weight that the buffers are now; it shares their memory."""
        return WEIGHTS[self.format](*(getattr(self, name) for name in self._names))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedProjection:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def extra_repr(self) -> str:
        weight = self.weight
        return f"{self.format}, shape={tuple(weight.shape)}, {weight.nbytes} bytes"


class QuantizedExperts(nn.Module):
    """Experts with quantized, frozen weights; biases, where there are any, are still parameters.

    Its state_dict has the names of the module that it replaces, with the fields of the weights under them:
    `gate_up_proj.codes`, `gate_up_proj.absmax`, …, `down_proj.codes`, …, `gate_up_proj_bias`. Training or evaluating
    changes nothing in it: the bytes are read as they lie.
    """

    def __init__(
        self,
        layout: ExpertsLayout,
        gate_up: QuantizedWeight,
        down: QuantizedWeight,
        gate_up_bias: nn.Parameter | None,
        down_bias: nn.Parameter | None,
        dynamic: bool,
    ) -> None:
        super().__init__()
        self.layout, self.dynamic = layout._replace(transposed=False, packed=None), dynamic
        setattr(self, layout.gate_up, QuantizedProjection(gate_up))
        setattr(self, layout.down, QuantizedProjection(down))
        for name, bias in ((layout.gate_up_bias, gate_up_bias), (layout.down_bias, down_bias)):
            if name is not None:
                self.register_parameter(name, bias)

    @property
    def format(self) -> str:
        return getattr(self, self.layout.gate_up).format

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Return (T, H) for x (T, H), indices (T, K) and weights (T, K), or those of all experts (T, E)."""
        layout = self.layout
        gate_up = getattr(self, layout.gate_up).weight
        return fused_experts(
            x,
            indices,
            weights_of_choices(indices, weights, gate_up.shape[0]),
            gate_up,
            getattr(self, layout.down).weight,
            activation=layout.activation,
            limit=layout.limit,
            interleaved=layout.interleaved,
            gate_up_bias=None if layout.gate_up_bias is None else getattr(self, layout.gate_up_bias),
            down_bias=None if layout.down_bias is None else getattr(self, layout.down_bias),
            dynamic=self.dynamic,
            batch_invariant=layout.batch_invariant,
            backend=layout.backend,
        )

    def extra_repr(self) -> str:
        return f"{self.format}, activation={self.layout.activation!r}, dynamic={self.dynamic}"


def weight_shape(module: nn.Module, layout: ExpertsLayout, name: str) -> tuple[int, ...]:
    """The (E, O, H) of one of a module's weights, whichever way round it stores them."""
    if layout.packed is not None:
        return layout.packed.shape(module, name)
    shape = tuple(getattr(module, name).shape)
    return (*shape[:-2], *reversed(shape[-2:])) if layout.transposed else shape


def check_weights(op: str, path: str, module: nn.Module, layout: ExpertsLayout) -> None:
    """Require weights whose shapes belong together in the layout that the module says it has."""
    names = (layout.gate_up, layout.down)
    up, down = (weight_shape(module, layout, name) for name in names)
    check_stacked(op, (f"{path}.{names[0]}", f"{path}.{names[1]}"), up, down)


def _values(module: nn.Module, layout: ExpertsLayout, name: str) -> Tensor:
    """One of a module's weights, as it lies; one in a format of its own as floating values."""
    w = getattr(module, name).detach()
    return w if layout.packed is None or w.is_meta else layout.packed.values(module, name)


def biases(module: nn.Module, layout: ExpertsLayout) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """A module's biases, up and down; None where it has none."""
    up, down = layout.gate_up_bias, layout.down_bias
    return None if up is None else getattr(module, up), None if down is None else getattr(module, down)


def expert_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, ExpertsLayout]]:
    """Yield (path, module, layout) of each expert module that can be quantized; one that is shared comes repeatedly."""
    for path, module in model.named_modules(remove_duplicate=False):
        layout = _layout(module)
        if layout is not None:
            yield path, module, layout


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Set the submodule at a path."""
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = module


def _check_parameter(op: str, name: str, w: Tensor, shape: tuple[int, ...], format: str) -> None:
    """Refuse what could not be quantized, before anything has been."""
    if format == "nf4" and shape[2] % NF4_BLOCK:
        fail(op, "format", f"a number of columns that {NF4_BLOCK} divides in {name}", shape[2])
    if w.is_meta:
        fail(op, name, "values, or load_quantized for a model without them", "a meta tensor")
    if not all(bool(torch.isfinite(w[e]).all()) for e in range(w.shape[0])):
        fail(op, name, "finite values", "NaN or infinity")


def quantize_experts(
    layer_or_model: nn.Module, format: str, *, double_quant: bool = True, dynamic: bool | None = None
) -> nn.Module:
    """Replace, in place, every `Experts` inside a module by one with quantized weights (`QuantizedExperts`).

    Full-precision parameters are let go one at a time, so that at most one projection exists twice. Make the optimizer
    afterwards: one that was made before still holds them. The router, shared gates and biases stay as they are. Hooks
    on the replaced modules are not carried over.

    Args:
        layer_or_model: a `MoELayer`, or any module with some inside.
        format: "nf4" (4.13 bits a value with double_quant, 4.5 without; H and I must be multiples of 64) or "int8"
            (8 bits and a scale for each row).
        double_quant: for "nf4", store the scales in 8 bits too.
        dynamic: for "int8", True rounds the activations to int8 as well, row by row. False, and None, the default,
            quantize the weights alone: half the error.

    Returns:
        layer_or_model.

    Raises:
        ValueError: an argument does not fit, or there is nothing to quantize; nothing has been changed then.
    """
    op = "quantize_experts"
    check_choice(op, "format", format, FORMATS)
    if dynamic and format != "int8":
        fail(op, "dynamic", "None or False for a format other than 'int8'", dynamic)
    found = list(expert_modules(layer_or_model))
    if any(path == "" for path, _, _ in found):
        fail(op, "layer_or_model", "a module that holds the experts, to replace them in", type(layer_or_model).__name__)
    if not found:
        fail(op, "layer_or_model", "a module with unquantized experts", f"{type(layer_or_model).__name__} without any")
    for path, module, layout in found:
        check_weights(op, path, module, layout)
        for name in (layout.gate_up, layout.down):
            _check_parameter(
                op, f"{path}.{name}", _values(module, layout, name), weight_shape(module, layout, name), format
            )

    def quantize(module: nn.Module, layout: ExpertsLayout, name: str) -> QuantizedWeight:
        w = _values(module, layout, name)
        options: dict[str, Any] = {"double_quant": double_quant} if format == "nf4" else {}
        weight = QUANTIZERS[format](w.transpose(1, 2) if layout.transposed else w, **options)
        setattr(module, name, None)
        return weight

    done: dict[int, QuantizedExperts] = {}
    with torch.no_grad():
        for path, module, layout in found:
            if id(module) not in done:
                gate_up, down = (quantize(module, layout, name) for name in (layout.gate_up, layout.down))
                done[id(module)] = QuantizedExperts(layout, gate_up, down, *biases(module, layout), bool(dynamic))
                done[id(module)].train(module.training)
            put(layer_or_model, path, done[id(module)])
    return layer_or_model
