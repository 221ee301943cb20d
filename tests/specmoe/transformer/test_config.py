"""The configuration: what it accepts, and that it survives a file."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from specmoe.transformer import SpecMoeConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 5}, r"num_experts_per_tok: expected at most num_experts=4, got 5"),
        ({"hidden_size": 100, "num_attention_heads": 6}, r"hidden_size: expected a multiple of .*=12.*, got 100"),
        ({"hidden_size": 12, "num_attention_heads": 4}, r"hidden_size: expected a multiple of .*=8.*, got 12"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers: expected an integer of at least 1, got 0"),
        ({"vocab_size": 6.5}, r"vocab_size: expected an integer of at least 1, got 6.5"),
        ({"hidden_act": "tanh"}, r"hidden_act: expected one of silu, .*, got 'tanh'"),
        ({"norm_type": "batch"}, r"norm_type: expected one of rms_norm, layer_norm, got 'batch'"),
        ({"router_score": "argmax"}, r"router_score: expected one of softmax, sigmoid, got 'argmax'"),
        ({"hidden_act": "gpt_oss"}, r"gated_experts: expected True with hidden_act='gpt_oss', got False"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"z_loss_weight": -0.1}, r"z_loss_weight: expected a number of at least 0, got -0.1"),
        ({"load_balance_weight": float("nan")}, r"load_balance_weight: expected a number of at least 0, got nan"),
        ({"initializer_range": 0.0}, r"initializer_range: expected a number above 0, got 0.0"),
        ({"shared_intermediate_size": -1}, r"shared_intermediate_size: expected an integer of at least 0, got -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_names_the_wrong_value(values, message):
    with pytest.raises(ValueError, match="SpecMoeConfig: " + message):
        SpecMoeConfig(**values)


def test_config_survives_a_file(tmp_path):
    config = SpecMoeConfig(hidden_size=48, num_experts=5, dropout=0.1, norm_type="layer_norm", entropy_weight=0.02)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SpecMoeConfig)
    unlike = ("transformers_version", "_name_or_path")
    assert {**loaded.to_dict(), **dict.fromkeys(unlike)} == {**config.to_dict(), **dict.fromkeys(unlike)}
    assert loaded.head_dim == 8
