"""Write a random checkpoint in Qwen3-MoE's architecture and of a given size: what offloading is measured on.

    python benchmarks/random_checkpoint.py FOLDER [--size 6GiB] [--experts 128] [--hidden 2048] [--intermediate 768]

One file for each layer, written a tensor at a time. Layers are as many as the size asks for. The weights are slices of
one block of Gaussian numbers: what is computed is meaningless, and finite. `--embedding` says how much tokens differ:
with small ones all tokens of a text use the same experts, with large ones each uses others. The default lies between:
an LRU cache of 30 % of the experts then serves about as many requests as with a trained model.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from specmoe.offload import format_bytes, parse_bytes

BLOCK = 1 << 24
STD = 0.02
VOCABULARY = 4096
HEADS, KV_HEADS, HEAD_DIM = 16, 4, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="6GiB", help="of the experts together, at least")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--embedding", type=float, default=0.5, help="standard deviation of the tokens' embeddings")
    options = parser.parse_args()
    write(options.folder, parse_bytes(options.size, argument="--size"), options)


def write(folder: Path, size: int, options: argparse.Namespace) -> None:
    layer_bytes = options.experts * 3 * options.hidden * options.intermediate * 2
    layers = max(1, math.ceil(size / layer_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(layers, options), indent=1))
    (folder / "generation_config.json").write_text("{}")
    tokenizer().save_pretrained(folder)
    random = Random(options.embedding)
    shapes = dict(outer(options.hidden))
    where = {name: "model-outer.safetensors" for name in shapes}
    write_file(folder / "model-outer.safetensors", shapes, random)
    for layer in range(layers):
        file = f"model-layer-{layer:03}.safetensors"
        shapes = dict(of_layer(layer, options))
        where |= dict.fromkeys(shapes, file)
        write_file(folder / file, shapes, random)
        print(f"layer {layer + 1} of {layers}", flush=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    print(f"{folder}: {layers} layers of {options.experts} experts, {format_bytes(layers * layer_bytes)} of experts")


def config(layers: int, options: argparse.Namespace) -> dict[str, object]:
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": options.hidden,
        "intermediate_size": 3 * options.hidden,
        "moe_intermediate_size": options.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_experts": options.experts,
        "num_experts_per_tok": options.top_k,
        "norm_topk_prob": True,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def tokenizer() -> object:
    """Return a tokenizer of bytes, so that the checkpoint can be given text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")


def outer(hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    yield "lm_head.weight", (VOCABULARY, hidden)
    yield "model.norm.weight", (hidden,)


def of_layer(layer: int, options: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    H, I, name = options.hidden, options.intermediate, f"model.layers.{layer}"
    yield f"{name}.input_layernorm.weight", (H,)
    yield f"{name}.post_attention_layernorm.weight", (H,)
    for part, shape in (
        ("q_proj", (HEADS * HEAD_DIM, H)),
        ("k_proj", (KV_HEADS * HEAD_DIM, H)),
        ("v_proj", (KV_HEADS * HEAD_DIM, H)),
        ("o_proj", (H, HEADS * HEAD_DIM)),
    ):
        yield f"{name}.self_attn.{part}.weight", shape
    yield f"{name}.self_attn.q_norm.weight", (HEAD_DIM,)
    yield f"{name}.self_attn.k_norm.weight", (HEAD_DIM,)
    yield f"{name}.mlp.gate.weight", (options.experts, H)
    for e in range(options.experts):
        yield f"{name}.mlp.experts.{e}.gate_proj.weight", (I, H)
        yield f"{name}.mlp.experts.{e}.up_proj.weight", (I, H)
        yield f"{name}.mlp.experts.{e}.down_proj.weight", (H, I)


class Random:
    """Draws weights: slices of one block, each beginning elsewhere."""

    def __init__(self, embedding: float) -> None:
        self._embedding = embedding
        self._generator = torch.Generator().manual_seed(0)
        self._block = torch.empty(BLOCK).normal_(std=STD, generator=self._generator).to(torch.bfloat16)

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=torch.bfloat16)
        count = math.prod(shape)
        begin = int(torch.randint(0, max(1, BLOCK - count), (1,), generator=self._generator))
        flat = self._block[begin : begin + count]
        flat = flat if len(flat) == count else flat.repeat(math.ceil(count / len(flat)))[:count]
        return flat * (self._embedding / STD) if name.endswith("embed_tokens.weight") else flat


def write_file(path: Path, shapes: dict[str, tuple[int, ...]], random: Random) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            file.write(random.draw(name, shape).contiguous().view(torch.uint8).numpy().data)


if __name__ == "__main__":
    main()
