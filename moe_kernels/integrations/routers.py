"""The routers of transformers 5, found out by asking them, and computed with `topk_gating` where they agree.

A router is a neighbour of the experts that maps x (T, H) to its logits (T, E), and weights and indices (T, K). It is
called with weights and biases of ours in the place of its own, whose values say nothing yet where a model was never
trained; what it returns is compared with what `topk_gating` gives for its logits. Groups and the like are numbers that
the module has somewhere; their names are not asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_kernels.backends.reference.topk_gating import topk_gating_reference
from moe_kernels.integrations.recognition import bare, is_experts
from moe_kernels.ops.topk_gating import topk_gating

# Where a module keeps what was found.
_FOUND = "_moe_kernels_router"
TOKENS = 64
# Of float32 weights in another order of operations.
_CLOSE = 1e-4
# The name of a bias that the router gets with its hidden states, in the place of a parameter's.
GIVEN = "(given)"


class Rule(NamedTuple):
    """What a router computes: the arguments of `topk_gating`, and how its logits come about.

    `added` names what is added to the logits, `bias` what is added to the scores for the choice; it may be `GIVEN`.
    Logits are computed in float32 where `wide_logits`; with 16-bit weights, routing weights are in float32 where
    `wide_weights`.
    """

    k: int
    score: str
    bias: str | None
    groups: tuple[int, int]
    renormalize: bool
    scale: float
    added: str | None
    wide_logits: bool
    wide_weights: bool

    def __str__(self) -> str:
        words = [f"{self.score} top {self.k}"]
        words += ["renormalized"] if self.renormalize else []
        words += [f"the best {self.groups[1]} of {self.groups[0]} groups"] if self.groups[0] > 1 else []
        words += ["a bias for the choice"] if self.bias else []
        words += [f"scale {self.scale:g}"] if self.scale != 1 else []
        return ", ".join(words)


def routers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of everything beside experts that may be their router: that has a weight (E, H)."""
    seen = set()
    for path, parent in model.named_modules():
        experts = [child for child in parent.children() if is_experts(bare(child))]
        # One of PEFT's wrappers has nothing beside the experts.
        if len(experts) != 1 or is_experts(bare(parent)):
            continue
        for name, child in parent.named_children():
            weight = getattr(child, "weight", None)
            mine = isinstance(weight, nn.Parameter) and weight.dim() == 2 and not is_experts(child)
            if mine and type(child) is not nn.Linear and id(child) not in seen:
                seen.add(id(child))
                yield f"{path}.{name}" if path else name, child


def _stand_ins(router: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Values for all the router's numbers, so that nothing hides behind a zero: its weight, and smaller ones."""
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Tensor] = {}
    for name, value in (*router.named_parameters(), *router.named_buffers()):
        if value.is_floating_point():
            factor = 2 / value.shape[1] ** 0.5 if name == "weight" else 0.25
            values[name] = torch.randn(value.shape, generator=generator, device="cpu") * factor
    # A buffer may have a dtype of its own.
    own = {n: b.dtype for n, b in router.named_buffers() if b.is_floating_point()}
    if len(inspect.signature(router.forward).parameters) == 2:
        values[GIVEN] = torch.randn(values["weight"].shape[0], generator=generator, device="cpu") / 4
    weight: Any = router.weight
    device = torch.device("cpu") if weight.is_meta else weight.device
    return {n: v.to(device, own.get(n, dtype)) for n, v in values.items()}


def _asked(router: nn.Module, dtype: torch.dtype, values: dict[str, Tensor]) -> tuple[Tensor, Any]:
    weight = values["weight"]
    x = torch.randn(TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(1), device="cpu")
    x = x.to(weight.device, dtype)
    own = {name: value for name, value in values.items() if name != GIVEN}
    given = (values[GIVEN],) if GIVEN in values else ()
    return x, torch.func.functional_call(router, own, (x, *given))


def _is_routing(out: Any, E: int) -> bool:
    if not (isinstance(out, tuple) and len(out) == 3 and all(isinstance(part, Tensor) for part in out)):
        return False
    logits, weights, indices = out
    K = indices.shape[-1]
    return logits.shape == (TOKENS, E) and weights.shape == indices.shape == (TOKENS, K) and K <= E


def _whole_numbers(router: nn.Module, E: int) -> list[tuple[int, int]]:
    """Pairs of numbers that the module has, which may be a number of groups and how many of them are kept."""
    numbers = {v for v in vars(router).values() if isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= E}
    pairs = [(g, t) for g, t in product(sorted(numbers), repeat=2) if 1 < g and t <= g and E % g == 0]
    return [(1, 1), *pairs]


def _sorted(weights: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """By expert: the order of a token's experts is nobody's promise."""
    indices, order = indices.long().sort(1)
    return weights.float().gather(1, order), indices


def _fit(router: nn.Module, values: dict[str, Tensor], added: str | None, out: Any) -> dict[str, Any] | None:
    """Return the arguments of `topk_gating` with which it gives the router's result from its logits."""
    logits, E, k = out[0].float(), out[0].shape[1], out[2].shape[1]
    weights, indices = _sorted(out[1], out[2])
    biases = [None, *(n for n, v in values.items() if v.numel() == E and n not in ("weight", added))]
    for score, bias, groups in product(("softmax", "sigmoid"), biases, _whole_numbers(router, E)):
        if k > groups[1] * (E // groups[0]):
            continue
        added_bias = None if bias is None else values[bias].float().reshape(E)
        for renormalize in (True, False):
            got = topk_gating_reference(logits, k, score, added_bias, *groups, renormalize, 1.0, None, None)
            ours, chosen = _sorted(got[0], got[1])
            if not torch.equal(chosen, indices):
                break
            scale = float(f"{float(weights.sum() / ours.sum()):.6g}")
            if bool(((weights - scale * ours).abs() <= _CLOSE * (scale * ours).abs()).all()):
                return {"score": score, "bias": bias, "groups": groups, "renormalize": renormalize, "scale": scale}
    return None


def _rule(router: nn.Module) -> Rule | str:
    """Return the router's rule, or why there is none."""
    name = type(router).__name__
    if "forward" in router.__dict__ or len(inspect.signature(router.forward).parameters) > 2:
        return f"{name} has a forward that somebody replaced, or that takes more than hidden states and a bias"
    values = _stand_ins(router, torch.float32)
    E = values["weight"].shape[0]
    x, out = _asked(router, torch.float32, values)
    if not _is_routing(out, E):
        return f"{name} returns something else than logits, weights and indices"
    if any(not torch.equal(a, b) for a, b in zip(out, _asked(router, torch.float32, values)[1], strict=True)):
        return f"{name} draws random numbers"
    linear = functional.linear(x, values["weight"])
    vectors = [n for n, v in values.items() if v.numel() == E and n != "weight"]
    sums: dict[str | None, Tensor] = {None: linear}
    sums |= {n: linear + values[n].float().reshape(E) for n in vectors}
    close = [n for n, want in sums.items() if torch.allclose(out[0].float(), want, rtol=1e-4, atol=1e-4)]
    if not close or close[0] == GIVEN:
        return f"the logits of {name} are no linear map of its input"
    found = _fit(router, values, close[0], out)
    if GIVEN in values and (found is None or found["bias"] != GIVEN):
        return f"what {name} makes of its second argument is not known"
    if found is None:
        return f"what {name} makes of its logits is none of topk_gating's rules"
    narrow = _asked(router, torch.bfloat16, _stand_ins(router, torch.bfloat16))[1]
    wide_logits, wide_weights = (part.dtype == torch.float32 for part in narrow[:2])
    return Rule(out[2].shape[1], **found, added=close[0], wide_logits=wide_logits, wide_weights=wide_weights)


@torch.no_grad()
def router_rule(router: nn.Module) -> Rule | str:
    """Find out, once for each module, what a router computes; or why that is not known.

    Args:
        router: a module that `routers` yields.
    """
    found = router.__dict__.get(_FOUND)
    if found is None:
        training = router.training
        try:
            found = _rule(router.train())
            if isinstance(found, Rule) and _rule(router.eval()) != found:
                found = f"{type(router).__name__} computes something else in training"
        # Whatever a model's own function cannot do with these numbers.
        except Exception as error:
            found = f"{type(router).__name__} could not be asked: {type(error).__name__}: {error}"
        finally:
            router.train(training)
        router.__dict__[_FOUND] = found
    return found


def _forward(self: Any, hidden_states: Tensor, *given: Tensor, **named: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (T, E), weights (T, K) and indices (T, K) int64, as the router's own forward does."""
    rule: Rule = self.__dict__[_FOUND]
    x, weight = hidden_states.reshape(-1, self.weight.shape[1]), self.weight
    added = None if rule.added is None else attrgetter(rule.added)(self).reshape(-1)
    if rule.wide_logits:
        x, weight, added = x.float(), weight.float(), None if added is None else added.float()
    logits = functional.linear(x.to(weight.dtype), weight, added)
    bias = None
    if rule.bias == GIVEN:
        bias = next(iter((*given, *named.values())), None)
    elif rule.bias is not None:
        bias = attrgetter(rule.bias)(self)
    bias = None if bias is None else bias.detach().float().reshape(-1)
    gating = topk_gating(
        logits,
        rule.k,
        score=rule.score,
        bias=bias,
        num_groups=rule.groups[0],
        top_groups=rule.groups[1],
        renormalize=rule.renormalize,
        scale=rule.scale,
    )
    weights = gating.weights
    if not rule.wide_weights:
        weights = weights.to(hidden_states.dtype if rule.wide_logits else logits.dtype)
    return logits, weights, gating.indices.long()


def computes_topk_gating(router: nn.Module) -> bool:
    """Whether `use_topk_gating` has changed a router."""
    return getattr(router.__dict__.get("forward"), "func", None) is _forward


def patched(router: nn.Module) -> nn.Module:
    """Let a router compute with `topk_gating`, if its rule is known; return it."""
    if isinstance(router_rule(router), Rule):
        # A bound method would be pickled by its name, which the class does not have.
        router.forward = partial(_forward, router)
    return router


def use_topk_gating(model: nn.Module) -> int:
    """Let the routers whose rule is known compute with `topk_gating`; return how many now do."""
    return sum(computes_topk_gating(patched(router)) for _, router in routers(model))
