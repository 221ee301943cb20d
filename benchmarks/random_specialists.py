"""Write a family of specialists with random weights and bases of their own: what a memory budget is measured on.

    python benchmarks/random_specialists.py FOLDER [--layers 28] [--names coordinator ascii runic]

Each base has the architecture of Qwen2.5-1.5B with NF4 linear layers and bfloat16 embeddings, about 1.14 GB. Its
weights are drawn as four-bit codes, a layer at a time, so that there never is a full-precision model. What it answers
is meaningless.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
from bitsandbytes.functional import QuantState, quantize_4bit
from safetensors.torch import save_file
from torch import Tensor

from specmoe.training.checkpoints import publish
from specmoe.training.data import Record, train_tokenizer

# Values that one scale of the scales is for: 64 in a block, 256 blocks.
GROUP = 64 * 256
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 1536, 8960, 12, 2, 151936
STD = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--names", nargs="+", default=["coordinator", "ascii", "runic"])
    options = parser.parse_args()
    for number, name in enumerate(options.names):
        base = options.folder / name / "nf4"
        publish(base.parent, base.name, partial(write_base, options.layers, number))
        (options.folder / name / "specialist.json").write_text(json.dumps({"name": name, "base": "nf4"}))
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        print(f"{base}: {size / 1e9:.2f} GB", flush=True)


def write_base(layers: int, seed: int, folder: Path) -> None:
    """Writes a base, a file for each layer."""
    (folder / "config.json").write_text(json.dumps(config(layers), indent=1))
    (folder / "generation_config.json").write_text("{}")
    train_tokenizer([Record("Convert [1] to LC-R", "1", "runic")], 300).save_pretrained(folder)
    random = torch.Generator().manual_seed(seed)
    where = {}
    for number in range(layers + 1):
        file = f"model-{number:03}.safetensors"
        tensors = dict(of_layer(number, random) if number < layers else outer(random))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "llm_int8_skip_modules": ["lm_head"],
        },
    }


def outer(random: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    yield "model.embed_tokens.weight", drawn((VOCABULARY, HIDDEN), random)
    yield "model.norm.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)


def of_layer(layer: int, random: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    name = f"model.layers.{layer}"
    key_value = HIDDEN // HEADS * KV_HEADS
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.{norm}.weight", torch.ones(HIDDEN, dtype=torch.bfloat16)
    for part, outputs, inputs in (
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", key_value, HIDDEN),
        ("self_attn.v_proj", key_value, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", HIDDEN, INTERMEDIATE),
    ):
        yield (
            f"{name}.{part}.weight",
            torch.randint(256, (outputs * inputs // 2, 1), dtype=torch.uint8, generator=random),
        )
        for key, value in scales((outputs, inputs)).as_dict(packed=True).items():
            yield f"{name}.{part}.weight.{key}", value.contiguous()
        if part[-6:] in ("q_proj", "k_proj", "v_proj"):
            yield f"{name}.{part}.bias", torch.zeros(outputs, dtype=torch.bfloat16)


def scales(shape: tuple[int, int]) -> QuantState:
    """Returns the scales of a matrix of normal numbers: those of a part of it, repeated."""
    _, state = quantize_4bit(part_of_a_matrix(), quant_type="nf4", compress_statistics=True)
    groups = -(-shape[0] * shape[1] // GROUP)
    state.absmax = state.absmax.repeat(groups)[: shape[0] * shape[1] // 64]
    state.state2.absmax = state.state2.absmax.repeat(groups)
    state.shape = torch.Size(shape)
    return state


@cache
def part_of_a_matrix() -> Tensor:
    return drawn((64, 256), torch.Generator().manual_seed(0))


def drawn(shape: tuple[int, int], random: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=STD, generator=random)


if __name__ == "__main__":
    main()
