"""What PEFT would do wrongly over quantized experts is refused before it has changed anything.

PEFT goes through a model module by module: a refusal by the experts alone would come after the attention was merged.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any

from moe_kernels.quantized import QuantizedExperts
from moe_kernels.validation import fail


def refuse_over_quantized(wrapper: Any) -> None:
    """Have PEFT refuse to add adapters to quantized experts, and to merge them into those and out of them.

    Args:
        wrapper: PEFT's `ParamWrapper`.
    """

    def refuse(name: str, modules: Iterable[Any]) -> None:
        for module in modules:
            over = isinstance(module, wrapper) and isinstance(module.get_base_layer(), QuantizedExperts)
            # Rounded to their format, little of a delta would be left.
            if over and (name == "merge" or module.merged):
                fail(name, module.parameter_name, "experts that are not quantized", "quantized ones")

    def of_model(name: str, tuner: Any) -> None:
        refuse(name, tuner.model.modules())

    def of_module(name: str, module: Any, *_: Any, **__: Any) -> None:
        refuse(name, [module])

    def added(tuner: Any, config: Any) -> None:
        # PEFT looks for parameters, of which there are none: the experts' part would be left out without a word.
        for path, module in tuner.model.named_modules():
            if isinstance(module, QuantizedExperts):
                for name in (module.layout.gate_up, module.layout.down):
                    full = f".{path}.{name}".replace(".base_layer", "")
                    if any(full.endswith(f".{target}") for target in getattr(config, "target_parameters", None) or ()):
                        fail("LoRA", full[1:], "adapters that were added before quantizing", "quantized experts")

    tuner = importlib.import_module("peft.tuners.tuners_utils").BaseTuner
    # The first that PEFT asks of an adapter, new or loaded, once it has translated names of transformers 4.
    _before(tuner, "_check_new_adapter_config", added)
    # Both ways to merge a model ask this first.
    _before(tuner, "_check_merge_allowed", partial(of_model, "merge"))
    _before(tuner, "unmerge_adapter", partial(of_model, "unmerge"))
    for name in ("merge", "unmerge"):
        _before(wrapper, name, partial(of_module, name))


def _before(owner: Any, name: str, check: Callable[..., None]) -> None:
    """Have a method of a class begin with a check, which gets the method's arguments."""
    theirs = getattr(owner, name)

    @wraps(theirs)
    def method(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return theirs(*args, **kwargs)

    setattr(owner, name, method)
