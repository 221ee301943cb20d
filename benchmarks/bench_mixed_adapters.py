"""A batch of 64 rows with 5 and with 64 adapters on one base: `specmoe.lora` against PEFT's `adapter_names`.

Measured are a decode forward of transformers and a whole generation (`specmoe.decoding`, as `specmoe lora generate`
has it, against PEFT's `generate`), on the architecture of the default base and on that of Gemma 3 270M with random
weights.
"""

from __future__ import annotations

import copy

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers", minversion="5.0")

from specmoe.decoding import generate  # noqa: E402
from specmoe.lora.adapters import adapter_of  # noqa: E402
from specmoe.lora.bank import AdapterBank  # noqa: E402
from specmoe.lora.base import TARGETS  # noqa: E402
from specmoe.lora.default_base import BaseSettings, untrained  # noqa: E402

ROWS, PROMPT, NEW_TOKENS, RANK = 64, 32, 64, 16
MODELS = {
    "default-base": BaseSettings(),
    "gemma-3-270m": BaseSettings(
        hidden_size=640, intermediate_size=2048, layers=18, heads=4, head_size=256, vocab_size=262144, context=32768
    ),
}
SMALL = BaseSettings(hidden_size=64, intermediate_size=96, layers=2, heads=2, head_size=32, vocab_size=512)


def adapter_name(g: int) -> str:
    """Returns a name that is no part of another's, nor of a layer's: PEFT looks for it in the names of parameters."""
    return f"a{g:02}"


class Pair:
    """The same base and adapters twice: ours and PEFT's."""

    def __init__(self, settings: BaseSettings, adapters: int, dtype: torch.dtype) -> None:
        base = untrained(settings).to(dtype).eval().requires_grad_(False)
        base.generation_config.eos_token_id = None
        config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        # The base's weights are read by both; only the layers around them differ.
        shared = copy.deepcopy(base, {id(p): p for p in base.parameters()})
        self.theirs = peft.get_peft_model(shared, config, adapter_name=adapter_name(0), autocast_adapter_dtype=False)
        for g in range(1, adapters):
            self.theirs.add_adapter(adapter_name(g), config, autocast_adapter_dtype=False)
        torch.manual_seed(1)
        for name, parameter in self.theirs.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter).mul_(0.02)
        self.theirs.eval().requires_grad_(False)
        each = [
            adapter_of(peft.get_peft_model_state_dict(self.theirs, adapter_name=name), config, name)
            for name in map(adapter_name, range(adapters))
        ]
        self.bank = AdapterBank(base, each)
        self.names = [adapter_name(row % adapters) for row in range(ROWS)]
        self.ids = torch.randint(4, settings.vocab_size, (ROWS, PROMPT))
        self.mask = torch.ones_like(self.ids)


@pytest.fixture(params=MODELS)
def settings(request):
    return SMALL if request.config.getoption("--small") else MODELS[request.param]


@pytest.mark.parametrize("adapters", [5, 64], ids=lambda G: f"G{G}")
def test_decode_forward(compare, request, settings, adapters, dtype):
    pair = Pair(settings, adapters, dtype)
    with torch.no_grad():
        prompt = {"input_ids": pair.ids, "attention_mask": pair.mask, "use_cache": True}
        caches = [pair.theirs(**prompt, adapter_names=pair.names).past_key_values]
        with pair.bank.rows(pair.names):
            caches.insert(0, pair.bank.model(**prompt).past_key_values)
    step = {
        "input_ids": pair.ids[:, :1],
        "attention_mask": torch.ones(ROWS, PROMPT + 1, dtype=torch.int64),
        "use_cache": True,
    }

    def ours(turn: int) -> torch.Tensor:
        with pair.bank.rows(pair.names):
            logits = pair.bank.model(**step, past_key_values=caches[0]).logits
        caches[0].crop(-1)
        return logits

    def theirs(turn: int) -> torch.Tensor:
        logits = pair.theirs(**step, past_key_values=caches[1], adapter_names=pair.names).logits
        caches[1].crop(-1)
        return logits

    measure(compare, request, pair, {"ours": ours, "PEFT": theirs}, dtype, forwards=1)


@pytest.mark.parametrize("adapters", [5, 64], ids=lambda G: f"G{G}")
def test_generate(compare, request, settings, adapters, dtype):
    pair = Pair(settings, adapters, dtype)
    given = {"input_ids": pair.ids, "attention_mask": pair.mask, "max_new_tokens": NEW_TOKENS, "do_sample": False}

    def ours(turn: int) -> torch.Tensor:
        with pair.bank.rows(pair.names):
            return generate(pair.bank.model, **given)

    def in_transformers(turn: int) -> torch.Tensor:
        with pair.bank.rows(pair.names):
            return pair.bank.model.generate(**given)

    def theirs(turn: int) -> torch.Tensor:
        return pair.theirs.generate(**given, adapter_names=pair.names)

    # With random weights rounding decides between tokens that are nearly as likely; tests compare generated tokens.
    arms = {"ours": ours, "ours, transformers' generate": in_transformers, "PEFT": theirs}
    measure(compare, request, pair, arms, dtype, NEW_TOKENS, check=False)


def measure(compare, request, pair, arms, dtype, forwards, check=True):
    used = len(set(pair.names))
    weights = sum(p.numel() for p in pair.bank.model.parameters())
    adapters = sum(layer.A[0].numel() + layer.B[0].numel() for layer in pair.bank.layers.values())
    weights -= len(pair.bank.names) * adapters
    compare(
        arms,
        nbytes=forwards * (weights + used * adapters) * dtype.itemsize,
        flops=2 * forwards * ROWS * (weights + adapters),
        dtype=dtype,
        check=check,
        shape=request.node.callspec.id,
        T=ROWS,
    )
