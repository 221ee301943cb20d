"""Tiny configurations of transformers' models, made from nothing but their configuration classes.

`tiny_config` walks over a default configuration and replaces numbers by what their names say: widths, heads, layers,
experts, windows, tokens. What a family needs beyond that is in `SPECIAL`, by attribute.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from transformers import PreTrainedConfig

# All different where they may be, so that a transposed weight does not fit by chance.
H, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, EXPERTS, TOP_K, VOCABULARY, LAYERS = 64, 4, 2, 16, 40, 4, 2, 128, 2

# Numbers without which there are no experts; some defaults have None or 1 there.
OF_EXPERTS: tuple[tuple[str, int], ...] = (
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts", TOP_K),
    (r"(moe_)?num_(local_)?experts|n_routed_experts", EXPERTS),
    (r"moe_intermediate_size", INTERMEDIATE),
)

# What the name of any other number says about it. The first pattern that fits decides; the rest stays as it is.
RULES: tuple[tuple[str, int], ...] = (
    (r"vocab_size.*", VOCABULARY),
    (r".*(num_key_value_heads|num_key_heads|kv_heads)", KV_HEADS),
    (r".*((attention|value|num|n|mamba_n)_heads|linear_num_heads)", HEADS),
    (r"qk_rope_head_dim", 8),
    (r".*(head_dim|lora_rank)", HEAD_DIM),
    (r".*(intermediate_size|ffn_dim)", INTERMEDIATE),
    (r".*(hidden_size|hidden_dim|embed_dim|d_model|output_dim|adapter_(in|out|input)_\w*|moe_latent_size)", H),
    # Shorter than the prompt, so that a window is one.
    (r".*(sliding_window|window_size|index_topk|index_n_topk)", 8),
    (r".*(chunk_size|block_size)", 4),
    (r"first_k_dense_replace|num_dense_layers|topk_group", 1),
    (r"n_groups?|num_expert_groups?|mamba_n_groups", 2),
    (r"downsample_channels|out(put)?_channels|decoder_dim|codebook_size|canvas_length|position_embedding_size", 32),
    (r"depth|n_layers|.*num_(hidden_)?layers|encoder_layers", LAYERS),
)

# Values that no rule of this kind can guess, by configuration class and attribute.
DENSE_THEN_SPARSE = ["dense", "sparse"]
SPECIAL: dict[str, dict[str, Any]] = {
    # Defaults without which the class cannot be built or has no experts.
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2, "vocab_size": VOCABULARY},
    "Qwen3OmniMoeThinkerConfig": {"vision_start_token_id": VOCABULARY - 20},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": DENSE_THEN_SPARSE},
    "Dots1Config": {"n_shared_experts": 1},
    "Gemma4TextConfig": {"enable_moe_block": True},
    "HunYuanMoEV1Config": {"head_dim": HEAD_DIM},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"]},
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": INTERMEDIATE},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_DIM,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    # The code knows no more than one expert for a token.
    "ZayaConfig": {"num_experts_per_tok": 1},
    # Indices and periods of layers, for two layers.
    "FlintConfig": {"mlp_only_layers": [0]},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    # Sizes that have to fit each other.
    "Ernie4_5_VLMoeTextConfig": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [3, 3, 2]}
    },
    "Glm4vMoeTextConfig": {
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
    },
    "Glm5NextTextConfig": {"index_kpool": 4},
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"], "mamba_d_head": 2 * H // HEADS},
    # The sizes of its layers with a window are given by names of their own.
    "Dots3NoteTextConfig": {
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": HEAD_DIM,
        "swa_kv_lora_rank": HEAD_DIM,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": HEAD_DIM,
        "swa_v_head_dim": HEAD_DIM,
    },
    # Towers for images and sound are not what is tested: small enough is enough.
    "InklingVisionConfig": {"patch_size": 4, "n_layers": 6},
    "MuseSparkAudioConfig": {"num_hidden_layers": 4, "hidden_sizes": (16, 16, 16, 16), "depths": (1, 1, 1, 1)},
}


def tiny_config(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Return a configuration of a class with tiny sizes."""
    return cls(**tiny_values(cls()))


def _value(default: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(default, name, None)
    except RuntimeError:
        # It differs by layer, and is then only told for one.
        return getattr(default.per_layer_config[0], name)


def _layer_lists(default: PreTrainedConfig, names: list[str]) -> dict[str, list[Any]]:
    """From the lists with an entry for each layer, the entries of the first layer of each kind."""
    count = getattr(default, "num_hidden_layers", None)
    lists = {n: v for n in names if isinstance(v := _value(default, n), list) and len(v) == count}
    texts = [v for v in lists.values() if all(isinstance(x, str) for x in v)]
    if not texts or not count:
        return {}
    first: dict[tuple[str, ...], int] = {}
    for i in range(count):
        first.setdefault(tuple(v[i] for v in texts), i)
    chosen = sorted(first.values())
    chosen += [count - 1] * (LAYERS - len(chosen))
    return {n: [v[i] for i in chosen] for n, v in lists.items()}


def _number(name: str, value: Any, default: PreTrainedConfig) -> int | None:
    """Return the number that is to take the place of `value`, or None where it stays."""
    for pattern, small in OF_EXPERTS:
        if re.fullmatch(pattern, name):
            return [small] * len(value) if isinstance(value, list) else small
    if not isinstance(value, int) or isinstance(value, bool) or value in (0, 1):
        # 0 is switched off, 1 single: both stay.
        return None
    for pattern, small in RULES:
        if re.fullmatch(pattern, name):
            # Without grouped queries there are as many of one as of the other.
            ungrouped = name == "num_key_value_heads" and value == _value(default, "num_attention_heads")
            return HEADS if ungrouped else small
    return None


def tiny_values(default: PreTrainedConfig) -> dict[str, Any]:
    """Return arguments for a configuration's class that make it tiny."""
    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    names = [f.name for f in dataclasses.fields(default) if f.name not in base or f.name.endswith("token_id")]
    lists = _layer_lists(default, names)
    special = SPECIAL.get(type(default).__name__, {})
    out: dict[str, Any] = dict(special)
    token = VOCABULARY
    for name in names:
        value = _value(default, name)
        if name in special:
            continue
        if isinstance(value, PreTrainedConfig):
            # What its owner gives it and is no size, it keeps.
            plain = type(value)()
            given = {f.name: _value(value, f.name) for f in dataclasses.fields(value)}
            given = {n: v for n, v in given.items() if isinstance(v, (bool, int)) and _value(plain, n) is None}
            out[name] = type(value)(**{**given, **tiny_values(value)})
        elif name in lists:
            out[name] = lists[name]
        elif re.fullmatch(r".*(token_id|token_index)|codec_\w*_id", name) and isinstance(value, int):
            token -= 1
            out[name] = token if value >= VOCABULARY // 2 else value
        elif name == "num_hidden_layers" and lists:
            out[name] = len(next(iter(lists.values())))
        elif (small := _number(name, value, default)) is not None:
            out[name] = small
    return out
