"""`moe_kernels.patch` with the transformers that is imported, whichever it is: run by scripts/check_transformers.sh.

Prints a line for each model. Some blocks of 4.57 are not known; then patch has to say so and change nothing.
"""

from __future__ import annotations

import sys
import tempfile

import torch
import transformers
from torch import nn

import moe_kernels

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 40,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    # Both kinds of layers of Qwen3-Next are among the first four.
    "num_hidden_layers": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SERVED = ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Qwen3Next", "Olmoe", "FlexOlmo", "MiniMax") + (
    "DeepseekV2",
    "DeepseekV3",
    "Dots1",
    "Glm4Moe",
)
# Served from 5.0 on.
REFUSED_BY_4 = ("Ernie4_5_Moe", "HunYuanMoEV1", "Phimoe")


def _step(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    out = model(ids, labels=ids)
    out.loss.backward()
    return out.logits.detach(), model.get_input_embeddings().weight.grad.clone()


def _distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


def _make(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def check(name: str) -> list[str]:
    """Patch a model, and return what is wrong."""
    model, ids = _make(name), torch.arange(3, 27).reshape(2, 12)
    wanted, before = _step(model, ids), {k: v.clone() for k, v in model.state_dict().items()}
    moe_kernels.patch(model)
    got, after = _step(moe_kernels.patch(model), ids), model.state_dict()
    found = moe_kernels.explain(model)
    problems = [] if found and all("NOT USED" not in str(e) for e in found) else ["it was not patched"]
    distances = [_distance(g, w) for g, w in zip(got, wanted, strict=True)]
    # That it is the same function. How exact it is, is for test_models.py, with float64 beside it: linear attention
    # makes 2e-5 of one rounding.
    problems += [] if max(distances) < 1e-4 else [f"distances {distances}"]
    if before.keys() != after.keys() or not all(torch.equal(before[k], after[k]) for k in before):
        problems.append("another state_dict")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if not torch.equal(_step(moe_kernels.patch(type(model).from_pretrained(folder)), ids)[0], got[0]):
            problems.append("another model after saving and loading")
    model.load_state_dict(before)
    return problems


def check_refused(name: str) -> list[str]:
    """Patch a model whose block is not known, and return what is wrong."""
    model = _make(name)
    before = [id(m) for m in model.modules()]
    try:
        moe_kernels.patch(model)
    except ValueError:
        return [] if before == [id(m) for m in model.modules()] else ["it was changed"]
    return ["no error"]


def main() -> int:
    transformers.logging.set_verbosity_error()
    old = int(transformers.__version__.split(".")[0]) < 5
    checks = [(name, check) for name in SERVED] + [(name, check_refused if old else check) for name in REFUSED_BY_4]
    wrong = 0
    for name, function in checks:
        problems = function(name)
        wrong += bool(problems)
        print(
            f"transformers {transformers.__version__}, {name}: {'; '.join(problems) or 'as it should be'}", flush=True
        )
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
