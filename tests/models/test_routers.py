"""The routers of every model: which of them are `topk_gating`, and that these give what the models' own give."""

from __future__ import annotations

import copy
import inspect
import pickle
import types

import pytest
import torch
from model_walk import build, cases
from torch import nn
from transformers import DeepseekV3ForCausalLM, MixtralForCausalLM, Qwen3MoeForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

import moe_kernels
from moe_kernels.integrations.routers import Rule, computes_topk_gating, patched, router_rule, routers
from moe_kernels.testing import assert_close, relative_error

FEW = (DeepseekV3ForCausalLM, MixtralForCausalLM, Qwen3MoeForCausalLM)


def _randomized(router: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*router.parameters(), *router.buffers()):
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5)
    return router


def _by_expert(weights, indices):
    indices, order = indices.sort(1)
    return weights.gather(1, order), indices


def _differences(router: nn.Module, dtype: torch.dtype) -> list[str]:
    """What the patched router does otherwise."""
    theirs = _randomized(router).to(dtype)
    ours = patched(copy.deepcopy(theirs))
    assert computes_topk_gating(ours) and not computes_topk_gating(theirs)
    x = torch.randn(200, router.weight.shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    x, y = (x.clone().requires_grad_() for _ in range(2))
    # Some routers are given the bias for the choice.
    given = (torch.rand(len(router.weight)),) if len(inspect.signature(router.forward).parameters) == 2 else ()
    want, got = theirs(x, *given), ours(y, *given)
    found = [f"dtypes {a.dtype}, {b.dtype}" for a, b in zip(want, got, strict=True) if a.dtype != b.dtype]
    found += [f"shapes {a.shape}, {b.shape}" for a, b in zip(want, got, strict=True) if a.shape != b.shape]
    if found:
        return found
    (wanted, chosen), (weights, indices) = _by_expert(*want[1:]), _by_expert(*got[1:])
    # In 16 bits two experts may have the same logit, and the model's choice between them is anybody's.
    same = (chosen == indices).all(1)
    if same.double().mean() < (1 if dtype == torch.float32 else 0.95):
        return [f"{int((~same).sum())} of {len(same)} tokens go to other experts"]
    assert_close(got[0], want[0], dtype, what="logits")
    assert_close(weights[same], wanted[same], dtype, what="weights")
    grads = [torch.randn(part.shape, generator=torch.Generator().manual_seed(2)) for part in (wanted, want[0])]
    for leaf_weights, logits in ((wanted, want[0]), (weights, got[0])):
        ((leaf_weights * grads[0])[same].sum() + (logits * grads[1])[same].sum()).backward()
    assert_close(y.grad[same], x.grad[same], dtype, what="gradient of the hidden states")
    assert_close(ours.weight.grad, theirs.weight.grad, dtype, what="gradient of the weight")
    return []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_router_that_is_known_gives_what_it_gave(dtype):
    """The classes are found by inspection, and what is known of them is found by asking."""
    known, unknown, wrong = {}, {}, {}
    for case in cases():
        for path, router in routers(build(case.model)):
            name = type(router).__name__
            if name in known or name in unknown:
                continue
            rule = router_rule(router)
            if not isinstance(rule, Rule):
                unknown[name] = rule
                continue
            known[name] = rule
            if differences := _differences(router, dtype):
                wrong[f"{case.config.__name__}.{path}"] = differences
    print(f"{len(known)} classes of routers are topk_gating:", *(f"{n}: {r}" for n, r in known.items()), sep="\n")
    print(f"{len(unknown)} are left alone:", *(f"{n}: {r}" for n, r in unknown.items()), sep="\n")
    assert not wrong, wrong
    at_least = ("MixtralTopK", "Qwen3MoeTopK", "OlmoeTopK", "DeepseekV3Topk", "MiniMaxM2TopK")
    assert {f"{name}Router" for name in at_least} <= set(known)


@pytest.mark.parametrize("model", FEW, ids=lambda m: m.__name__)
def test_a_model_with_its_routers_patched(model, capsys):
    torch.manual_seed(0)
    theirs = build(model).eval()
    for _, router in routers(theirs):
        _randomized(router)
    ours = copy.deepcopy(theirs)
    moe_kernels.patch(ours, routers=True)
    ids = torch.randint(0, 100, (2, 9))
    want, got = (m(input_ids=ids, labels=ids) for m in (theirs, ours))
    assert relative_error(got.logits, want.logits) < 1e-4
    want.loss.backward()
    got.loss.backward()
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if a.grad is not None:
            assert_close(b.grad, a.grad, torch.float32, what=name, scale=1e-3)
    assert [e.router.split(",")[0] for e in moe_kernels.explain(ours)] == ["topk_gating"] * len(list(routers(ours)))
    assert {e.router.split(",")[0] for e in moe_kernels.explain(theirs)} == {"its own"}
    assert "router: topk_gating" in capsys.readouterr().out
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    again = pickle.loads(pickle.dumps(ours))
    assert all(computes_topk_gating(router) for _, router in routers(again))
    assert torch.equal(again(input_ids=ids).logits, got.logits)
    if model is DeepseekV3ForCausalLM:
        # The rule with most in it: groups, a bias for the choice, a scale.
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")(input_ids=ids, use_cache=False)
        assert relative_error(compiled.logits, want.logits) < 1e-4


def _router(**options) -> nn.Module:
    config = dict(num_experts_per_tok=4, num_local_experts=16, hidden_size=24, routed_scaling_factor=2.5)
    config |= dict(n_group=4, topk_group=2, norm_topk_prob=True)
    return DeepseekV3TopkRouter(types.SimpleNamespace(**{**config, **options}))


@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (8, 3), (2, 2)], ids=str)
@pytest.mark.parametrize("norm", [True, False])
def test_groups_normalization_and_scale_are_found(groups, norm):
    rule = router_rule(_router(n_group=groups[0], topk_group=groups[1], norm_topk_prob=norm))
    assert isinstance(rule, Rule)
    # To keep all groups is to have none.
    assert rule.groups == ((1, 1) if groups[0] == groups[1] else groups)
    assert (rule.renormalize, rule.scale, rule.bias) == (norm, 2.5, "e_score_correction_bias")


class _Odd(DeepseekV3TopkRouter):
    def forward(self, hidden_states):
        logits, weights, indices = super().forward(hidden_states)
        return self.change(logits, weights, indices)


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda s, l, w, i: (l, w**2, i), "none of topk_gating's rules"),
        (lambda s, l, w, i: (l, w, i.flip(0)), "none of topk_gating's rules"),
        (lambda s, l, w, i: (l**2, w, i), "no linear map"),
        (lambda s, l, w, i: (l, w), "something else than"),
        (lambda s, l, w, i: (l + torch.rand(()), w, i), "random numbers"),
        (lambda s, l, w, i: (l, w * (2 if s.training else 1), i), "in training"),
        (lambda s, l, w, i: {}["x"], "KeyError"),
    ],
)
def test_others_are_left_alone_and_the_reason_is_said(change, reason):
    router = _router()
    router.__class__, router.change = _Odd, types.MethodType(change, router)
    said = router_rule(router)
    assert isinstance(said, str) and reason in said
