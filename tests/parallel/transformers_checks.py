"""What the ranks do in the tests of transformers' own expert parallelism (see checks.py)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

import moe_kernels
from moe_kernels.testing import relative_error

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "hidden_size": 32,
        "moe_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
    },
    # Transposed weights, biases, gate and up interleaved.
    "gpt_oss": {
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention"] * 2,
    },
}


def transformers_plan(group: Any, folder: str, model: str, layout: dict[str, Any]) -> None:
    """Logits, loss and every gradient of a model that transformers spreads over the ranks, against eager on one."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    assert group.size() == dist.get_world_size()
    if group.rank() == 0:
        torch.manual_seed(0)
        config = AutoConfig.for_model(model, **SIZES, **MODELS[model])
        drawn = AutoModelForCausalLM.from_config(config)
        for parameter in drawn.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        drawn.save_pretrained(folder)
    dist.barrier(group)
    alone = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager")
    options = DistributedConfig(ep_size=group.size(), **layout)
    spread = AutoModelForCausalLM.from_pretrained(
        folder, experts_implementation="moe_kernels", distributed_config=options
    )
    for layer in spread.model.layers:
        assert layer.mlp.experts._is_expert_parallel and layer.mlp.experts.num_experts == 8 // group.size()

    assert spread.config._experts_implementation == "moe_kernels"
    # It changes nothing where the name is set, and takes weights that are spread.
    moe_kernels.patch(spread)
    assert all(f"{8 // group.size()} experts of this rank" in e.computed for e in moe_kernels.explain(spread))
    tokens = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, got = alone(tokens).logits, spread(tokens).logits
    assert relative_error(got, want) < 1e-5
    want, got = alone(tokens, labels=tokens), spread(tokens, labels=tokens)
    assert relative_error(got.loss, want.loss) < 1e-5
    want.loss.backward()
    got.loss.backward()
    theirs = dict(alone.named_parameters())
    for name, parameter in spread.named_parameters():
        grad = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        error = relative_error(grad, theirs[name].grad)
        assert error < 1e-5, f"{name}: {error}"
