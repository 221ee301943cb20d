"""patch and explain: on this transformers, on versions that refuse our name, on blocks as 4.57 has them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import MixtralConfig, MixtralForCausalLM

import moe_kernels
from moe_kernels.integrations.stacked import StackedExperts

IDS = torch.arange(24).reshape(2, 12)


def _mixtral():
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**sizes, **heads, initializer_range=0.2)).eval()


class Mlp(nn.Module):
    def __init__(self, bias=False, act_fn=F.silu):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(16, 24, bias=bias) for _ in range(2))
        self.down_proj = nn.Linear(24, 16, bias=bias)
        self.act_fn = act_fn

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A block as models before the experts interface have it: a loop over MLPs."""

    def __init__(self, normalize=True, shared=False, scale=1.0, **options):
        super().__init__()
        self.gate, self.top_k, self.normalize, self.scale = nn.Linear(16, 5, bias=False), 2, normalize, scale
        self.experts = nn.ModuleList(Mlp(**options) for _ in range(5))
        if shared:
            self.shared_expert, self.shared_expert_gate = Mlp(), nn.Linear(16, 1, bias=False)

    def forward(self, hidden_states):
        x = hidden_states.flatten(0, 1)
        logits = self.gate(x)
        weights, indices = logits.softmax(1).topk(self.top_k)
        if self.normalize:
            weights = weights / weights.sum(1, keepdim=True)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(indices == e)
            out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None] * self.scale)
        if hasattr(self, "shared_expert"):
            out = out + torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)
        return out.view_as(hidden_states), logits


def _forward_backward(module, *inputs):
    module.zero_grad()
    out = module(*inputs)
    out = out.logits if hasattr(out, "logits") else out[0]
    out.square().mean().backward()
    return out.detach()


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_patch_is_set_experts_implementation(capsys):
    model, other = _mixtral(), _mixtral()
    wanted = _forward_backward(model, IDS)
    assert moe_kernels.patch(model) is model
    other.set_experts_implementation("moe_kernels")
    got = _forward_backward(model, IDS)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(got, _forward_backward(other, IDS))
    found = moe_kernels.explain(model)
    assert [e.path for e in found] == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert all(e.computed == "fused_experts, silu" and not e.reason for e in found)
    assert "NOT USED" not in capsys.readouterr().out


def test_versions_that_know_only_their_own_names(monkeypatch):
    def refuses(self, requested):
        raise ValueError(
            f'Specified `experts_implementation="{requested}"` is not supported. The only possible arguments'
        )

    model = _mixtral()
    monkeypatch.setattr(MixtralForCausalLM, "get_correct_experts_implementation", refuses)
    moe_kernels.patch(model)
    assert {e.implementation for e in moe_kernels.explain(model)} == {"moe_kernels"}


def test_explain_says_what_is_not_used_and_what_is_not_known(capsys):
    moe_kernels.explain(_mixtral())
    assert "NOT USED: experts_implementation is 'grouped_mm'" in capsys.readouterr().out
    assert moe_kernels.explain(nn.Linear(2, 2)) == []
    assert "Linear has no experts of a known kind" in capsys.readouterr().out
    moe_kernels.explain(nn.Sequential(Block()))
    assert "see moe_kernels.patch" in capsys.readouterr().out


def test_explain_of_our_layers():
    layer = moe_kernels.MoELayer(64, 128, num_experts=4, top_k=2)
    assert moe_kernels.explain(layer)[0].computed == "fused_experts, silu"
    model = nn.Sequential(layer)
    moe_kernels.quantize_experts(model, "nf4")
    assert moe_kernels.explain(model)[0].computed == "fused_experts, silu, nf4"
    with torch.device("meta"):
        layer = moe_kernels.MoELayer(64, 128, num_experts=4, top_k=2)
    assert "meta" in moe_kernels.explain(layer)[0].backend


@pytest.mark.parametrize("shared", (False, True), ids=("alone", "shared"))
@pytest.mark.parametrize("normalize", (False, True), ids=("softmax", "normalized"))
def test_blocks_of_before_the_interface_are_stacked(normalize, shared):
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(normalize, shared)), torch.randn(2, 7, 16)
    wanted, before = _forward_backward(model, x), _state(model)
    gradients = [expert.down_proj.weight.grad for expert in model[0].experts]
    moe_kernels.patch(model)
    assert isinstance(model[0].experts, StackedExperts)
    torch.testing.assert_close(_forward_backward(model, x), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[0].experts.down_proj.grad, torch.stack(gradients), rtol=1e-4, atol=1e-6)
    # A checkpoint stays what it was, and goes into either.
    after = _state(model)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        model[0].experts.down_proj.zero_()
    model.load_state_dict(before)
    torch.testing.assert_close(model(x)[0], wanted, rtol=1e-4, atol=1e-5)
    assert moe_kernels.patch(model) is model


def test_frozen_projections_stay_frozen():
    model = nn.Sequential(Block())
    for expert in model[0].experts:
        expert.down_proj.requires_grad_(False)
    experts = moe_kernels.patch(model)[0].experts
    assert experts.gate_up_proj.requires_grad and not experts.down_proj.requires_grad


@pytest.mark.parametrize(
    "frozen, reason",
    [
        (["experts.3.up_proj"], "experts.3.up_proj: expected requires_grad=True as in the first expert, got False"),
        ([f"experts.{e}.gate_proj" for e in range(5)], "experts: expected gate_proj and up_proj frozen together"),
    ],
    ids=["one expert", "gates"],
)
def test_experts_that_are_frozen_in_part(frozen, reason):
    model = nn.Sequential(Block())
    for path in frozen:
        model[0].get_submodule(path).requires_grad_(False)
    with pytest.raises(ValueError, match=f"patch: 0.{reason}"):
        moe_kernels.patch(model)
    assert isinstance(model[0].experts, nn.ModuleList)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"scale": 0.5}, "what Block does with its experts is not known"),
        ({"bias": True}, "biases are not known"),
        ({"act_fn": torch.tanh}, "none of the kernels' activations"),
    ],
    ids=["scale", "bias", "tanh"],
)
def test_a_block_that_is_not_known_leaves_the_model_as_it_was(options, reason):
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(**options))
    modules = [id(m) for m in model.modules()]
    with pytest.raises(ValueError, match=f"patch: 1.*{reason}"):
        moe_kernels.patch(model)
    assert [id(m) for m in model.modules()] == modules and "forward" not in model[0].__dict__


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_of_a_patched_block_are_patched_and_on_their_own(copied):
    model, x = moe_kernels.patch(nn.Sequential(Block())), torch.randn(2, 7, 16)
    again = copied(model)
    assert torch.equal(again(x)[0], model(x)[0])
    with torch.no_grad():
        again[0].experts.down_proj.zero_()
    assert not again(x)[0].any() and model(x)[0].any()


def test_a_block_with_a_forward_of_somebody_else_is_left_alone():
    model = nn.Sequential(Block())
    model[0].forward = model[0].forward
    with pytest.raises(ValueError, match="patch: 0: its forward has been replaced"):
        moe_kernels.patch(model)


def test_a_block_that_is_called_otherwise():
    class Other(Block):
        def forward(self, hidden_states, mask):
            return super().forward(hidden_states)

    with pytest.raises(ValueError, match="what Other does with its experts is not known"):
        moe_kernels.patch(nn.Sequential(Other()))


@pytest.mark.parametrize(
    "name, dims, message", [("gate_up_proj", (1, 2), "got (4, 64, 80)"), ("down_proj", (0, 1), "E=64")]
)
def test_a_wrong_layout_leaves_the_model_as_it_was(name, dims, message):
    model = _mixtral()
    experts = model.model.layers[1].mlp.experts
    setattr(experts, name, nn.Parameter(getattr(experts, name).transpose(*dims).contiguous()))
    modules, implementation = [id(m) for m in model.modules()], model.config._experts_implementation
    for call in (moe_kernels.patch, lambda m: moe_kernels.quantize_experts(m, "int8")):
        with pytest.raises(ValueError, match=r"model.layers.1.mlp.experts.gate_up_proj: expected ") as error:
            call(model)
        assert message in str(error.value)
    assert [id(m) for m in model.modules()] == modules and model.config._experts_implementation == implementation


def test_a_model_without_experts():
    with pytest.raises(ValueError, match="patch: Linear has no experts of a known kind"):
        moe_kernels.patch(nn.Linear(2, 2))
