"""A model of transformers with our experts against the same model as transformers runs it.

Four layers with the sizes of Qwen3-30B-A3B and random weights: generation, prefill, the expert blocks alone, and a
training step of LoRA on the experts against PEFT's.
"""

from __future__ import annotations

import copy

import pytest
import torch

from moe_kernels.integrations.recognition import is_experts

transformers = pytest.importorskip("transformers", minversion="5.0")
initialization = pytest.importorskip("transformers.initialization")

LAYERS, NEW_TOKENS, PROMPT = 4, 16, 16
# What transformers uses unless it is told otherwise.
THEIRS = "grouped_mm"


def _config(small: bool):
    if small:
        sizes = dict(hidden_size=256, moe_intermediate_size=128, num_experts=16, num_experts_per_tok=4, vocab_size=1000)
    else:
        sizes = dict(
            hidden_size=2048,
            moe_intermediate_size=768,
            num_experts=128,
            num_experts_per_tok=8,
            vocab_size=151936,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
        )
    return transformers.Qwen3MoeConfig(num_hidden_layers=LAYERS, norm_topk_prob=True, eos_token_id=None, **sizes)


def make_model(small: bool):
    """A model with random weights; they repeat after a million values, which takes seconds and not minutes to draw."""
    torch.manual_seed(0)
    with initialization.no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(_config(small), dtype=torch.bfloat16).eval()
    drawn = (torch.randn(2**20) * 0.02).bfloat16()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            elif name.endswith("gate.weight"):
                # Rows that repeat would make experts equally likely.
                parameter.normal_(std=0.02)
            else:
                for part in parameter.view(-1).split(len(drawn)):
                    part.copy_(drawn[: len(part)])
    return model


@pytest.fixture(scope="module")
def models(session):
    """Two models on the same weights, with our experts and with theirs."""
    ours = make_model(session.small)
    shared = {id(tensor): tensor for tensor in (*ours.parameters(), *ours.buffers())}
    theirs = copy.deepcopy(ours, shared)
    ours.set_experts_implementation("moe_kernels")
    theirs.set_experts_implementation(THEIRS)
    yield ours, theirs


def _bytes_read(model, ids, steps) -> int:
    """Bytes of the weights that `steps` forward passes read at least: experts that are hit, and all of the rest."""
    hit: list[int] = []
    experts = [module for module in model.modules() if is_experts(module)]
    hooks = [m.register_forward_pre_hook(lambda _, args: hit.append(len(args[1].unique()))) for m in experts]
    model(ids)
    for hook in hooks:
        hook.remove()
    in_experts = sum(p.nbytes for m in experts for p in m.parameters())
    one = in_experts / len(experts) / experts[0].num_experts
    others = sum(p.nbytes for p in model.parameters()) - in_experts - model.get_input_embeddings().weight.nbytes
    return int(steps * (others + sum(hit) * one))


def _expert_operations(config, T) -> int:
    """Multiplications and additions of T tokens' experts in all layers."""
    return LAYERS * T * config.num_experts_per_tok * 6 * config.hidden_size * config.moe_intermediate_size


def _ids(model, batch, length):
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch", [1, 8], ids=lambda b: f"batch{b}")
def test_generate(compare, models, batch):
    ids = _ids(models[0], batch, PROMPT)

    def arm(model):
        return lambda turn: model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )

    ours, theirs = models
    nbytes = _bytes_read(ours, ids[:, :1], NEW_TOKENS)
    # Greedy choice between random logits differs after the first rounding difference.
    compare({"ours": arm(ours), THEIRS: arm(theirs)}, nbytes=nbytes, dtype=torch.bfloat16, T=batch, check=False)


@pytest.mark.parametrize("tokens", [512], ids=lambda T: f"T{T}")
def test_prefill(compare, models, tokens):
    ids = _ids(models[0], 1, tokens)
    ours, theirs = models
    arms = {
        "ours": lambda turn: ours(ids, logits_to_keep=1).logits,
        THEIRS: lambda t: theirs(ids, logits_to_keep=1).logits,
    }
    # Without the attention between tokens, and with one token's logits.
    linear = [m for n, m in ours.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    flops = 2 * tokens * sum(m.weight.numel() for m in linear) + _expert_operations(ours.config, tokens)
    compare(arms, nbytes=_bytes_read(ours, ids, 1), flops=flops, dtype=torch.bfloat16, T=tokens)


@pytest.mark.parametrize("tokens", [1, 8, 512], ids=lambda T: f"T{T}")
def test_expert_blocks(compare, models, tokens):
    T = tokens
    blocks = [[m for m in model.modules() if is_experts(m)] for model in models]
    config = models[0].config
    E, K, H = config.num_experts, config.num_experts_per_tok, config.hidden_size
    x = torch.randn(T, H, generator=torch.Generator().manual_seed(2)).bfloat16()
    index = torch.rand(T, E, generator=torch.Generator().manual_seed(3)).argsort(1)[:, :K]
    weights = torch.full((T, K), 1 / K, dtype=torch.bfloat16)

    def arm(modules):
        return lambda turn: torch.stack([m(x, index, weights) for m in modules])

    one = sum(p.nbytes for p in blocks[0][0].parameters()) / E
    nbytes = int(LAYERS * one * len(index.unique()))
    arms = {"ours": arm(blocks[0]), THEIRS: arm(blocks[1])}
    compare(arms, nbytes=nbytes, flops=_expert_operations(config, T), dtype=torch.bfloat16, T=T)


@pytest.mark.parametrize("tokens", [256], ids=lambda T: f"T{T}")
def test_lora_step(compare, models, tokens):
    peft = pytest.importorskip("peft", minversion="0.17")
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    steps = []
    ids = _ids(models[0], 1, tokens)
    for model in models:
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_parameters=targets))

        def step(turn, adapted=adapted):
            with torch.inference_mode(False), torch.enable_grad():
                adapted.zero_grad()
                loss = adapted(ids.clone(), labels=ids.clone()).loss
                loss.backward()
                return loss.detach()

        steps.append((adapted, step))
    compare(
        {"ours": steps[0][1], "PEFT": steps[1][1]}, nbytes=_bytes_read(models[0], ids, 2), dtype=torch.bfloat16, T=256
    )
    for adapted, _ in steps:
        adapted.unload()
