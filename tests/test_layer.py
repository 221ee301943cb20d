"""MoELayer: values, gradients, options, and the blocks of transformers that load into it."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import MoELayer
from moe_kernels.losses import balance_bias_, load_balance_loss
from moe_kernels.testing import ExpertInputs, assert_close, naive_experts

pytestmark = pytest.mark.usefixtures("on_the_device")


def _oracle(layer: MoELayer, x: torch.Tensor) -> torch.Tensor:
    p = torch.softmax(x @ layer.gate.weight.T, 1)
    weights, indices = p.topk(layer.top_k, 1)
    weights = weights / weights.sum(1, keepdim=True)
    experts = layer.experts
    return naive_experts(ExpertInputs(x, indices, weights, experts.gate_up_proj, experts.down_proj, None, None))


def test_layer_and_every_gradient():
    torch.manual_seed(0)
    layer, twin = MoELayer(33, 19, 8, 2), MoELayer(33, 19, 8, 2).double()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 9, 33, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    out, want = layer(x), _oracle(twin, wide.view(-1, 33)).view(2, 9, 33)
    assert_close(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    assert_close(x.grad, wide.grad, what="x")
    for (name, mine), theirs in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad, what=name)


def test_auxiliary_losses():
    torch.manual_seed(0)
    layer = MoELayer(16, 8, 4, 2)
    x, mask = torch.randn(10, 16), torch.arange(10) < 7
    _, router = layer(x, return_router=True, mask=mask)
    _, part = layer(x[:7], return_router=True)
    for name in ("counts", "load_balance_loss", "z_loss", "entropy"):
        torch.testing.assert_close(getattr(router, name), getattr(part, name))
    p = torch.softmax(part.logits, 1)
    share = torch.bincount(part.indices.reshape(-1).long(), minlength=4) / 14
    torch.testing.assert_close(part.load_balance_loss, 4 * (share * p.mean(0)).sum())
    torch.testing.assert_close(part.z_loss, torch.logsumexp(part.logits, 1).square().mean())
    torch.testing.assert_close(part.entropy, torch.distributions.Categorical(p).entropy().mean())


def test_load_balance_is_one_when_uniform_and_E_when_collapsed():
    assert load_balance_loss(torch.full((8,), 3.0), torch.full((8,), 1 / 8)) == 1
    one = torch.eye(8)[2]
    assert load_balance_loss(one * 20, one) == 8


def test_balance_bias_moves_toward_the_idle():
    bias = balance_bias_(torch.zeros(3), torch.tensor([4.0, 1.0, 1.0]), rate=0.5)
    assert bias.tolist() == [-0.5, 0.5, 0.5]


def test_sigmoid_choice_bias_moves_the_choice_not_the_weights():
    torch.manual_seed(0)
    layer = MoELayer(16, 8, 4, 1, score="sigmoid", renormalize=False)
    x = torch.randn(5, 16)
    layer.gate.e_score_correction_bias[2] = 100.0
    _, router = layer(x, return_router=True)
    assert (router.indices == 2).all()
    torch.testing.assert_close(router.weights[:, 0], torch.sigmoid(router.logits[:, 2]))
    assert "gate.e_score_correction_bias" in layer.state_dict()


def test_shared_expert_adds_to_every_token():
    torch.manual_seed(0)
    layer = MoELayer(16, 8, 4, 2, shared_intermediate_size=12, shared_gate=True)
    x = torch.randn(5, 16)
    gate, up = (x @ layer.shared_experts.gate_up_proj[0].T).chunk(2, 1)
    shared = (torch.nn.functional.silu(gate) * up) @ layer.shared_experts.down_proj[0].T
    shared = shared * torch.sigmoid(layer.shared_expert_gate(x))
    with_shared = layer(x)
    layer.shared_experts = None
    torch.testing.assert_close(with_shared - layer(x), shared)
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("policy", ["position", "probability"])
def test_capacity_drops_what_is_over(policy):
    torch.manual_seed(0)
    layer = MoELayer(16, 8, 4, 1, capacity_factor=1.0, drop_policy=policy, renormalize=False)
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[1, 0] = 1.0
    x = torch.randn(8, 16)
    x[:, 0] = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    out, router = layer(x, return_router=True)
    kept = [0, 1] if policy == "position" else [6, 7]
    assert torch.where(router.indices[:, 0] == 1)[0].tolist() == kept
    assert (router.indices.sum() == 2 + 6 * 4) and router.counts.tolist() == [0, 8, 0, 0]
    assert torch.where(out.abs().sum(1) > 0)[0].tolist() == kept


def test_ample_capacity_changes_nothing():
    torch.manual_seed(0)
    layer = MoELayer(16, 8, 4, 2)
    x = torch.randn(9, 16)
    free = layer(x)
    layer.capacity_factor = 4.0
    assert torch.equal(layer(x), free)


def test_expert_choice_fills_every_expert():
    torch.manual_seed(0)
    layer = MoELayer(16, 8, 4, 2, routing="expert_choice")
    x = torch.randn(10, 16, requires_grad=True)
    out, router = layer(x, return_router=True)
    assert router.indices.shape == (4, 5)
    p = torch.softmax(router.logits, 1)
    want = torch.zeros_like(x)
    for e in range(4):
        tokens = p[:, e].topk(5).indices
        assert sorted(tokens.tolist()) == sorted(router.indices[e].tolist())
        gate, up = (x[tokens] @ layer.experts.gate_up_proj[e].T).chunk(2, 1)
        y = (torch.nn.functional.silu(gate) * up) @ layer.experts.down_proj[e].T
        want = want.index_add(0, tokens, y * p[tokens, e, None])
    torch.testing.assert_close(out, want)
    out.sum().backward()
    assert layer.gate.weight.grad.abs().sum() > 0


def test_noise_acts_in_training_only():
    torch.manual_seed(0)
    layer = MoELayer(16, 8, 4, 2, noise_std=5.0)
    x = torch.randn(50, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_bias_and_gateless_experts(gated):
    layer = MoELayer(16, 8, 4, 2, gated=gated, bias=True, activation="gelu")
    assert layer(torch.randn(0, 16)).shape == (0, 16)
    layer(torch.randn(3, 16)).sum().backward()
    names = {name for name, _ in layer.experts.named_parameters()}
    up = "gate_up_proj" if gated else "up_proj"
    assert names == {up, f"{up}_bias", "down_proj", "down_proj_bias"}
    assert all(p.grad is not None for p in layer.parameters())


def _blocks():
    pytest.importorskip("transformers")
    from transformers import MixtralConfig, OlmoeConfig, Qwen3MoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    common = {"hidden_size": 32, "num_experts_per_tok": 2}
    mixtral = MixtralConfig(**common, intermediate_size=24, num_local_experts=8)
    qwen = Qwen3MoeConfig(**common, moe_intermediate_size=24, num_experts=8, norm_topk_prob=True)
    olmoe = OlmoeConfig(**common, intermediate_size=24, num_experts=8, norm_topk_prob=False)
    return {
        "mixtral": (MixtralSparseMoeBlock(mixtral), True),
        "qwen3_moe": (Qwen3MoeSparseMoeBlock(qwen), True),
        "olmoe": (OlmoeSparseMoeBlock(olmoe), False),
    }


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_loads_a_block_of_transformers(name):
    torch.manual_seed(0)
    block, renormalize = _blocks()[name]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    block.eval()
    layer = MoELayer(32, 24, 8, 2, renormalize=renormalize)
    layer.load_state_dict(block.state_dict())
    x = torch.randn(2, 7, 32)
    theirs = block(x)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    torch.testing.assert_close(layer(x), theirs, rtol=1e-5, atol=1e-5)
