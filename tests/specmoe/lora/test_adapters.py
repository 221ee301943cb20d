"""Adapters as files: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tiny import tiny_base, tiny_model

from specmoe.lora.adapters import BASE_FILE, new_adapter, read_adapter
from specmoe.lora.base import TARGETS, check_targets, digest_of, load_base


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture
def saved(base, tmp_path):
    """An adapter as training saves it."""
    model = new_adapter(base, 4, 8, 0.0, 0, TARGETS)
    model.save_pretrained(tmp_path / "adapter")
    model.unload()
    return tmp_path / "adapter"


def test_a_new_adapter_is_the_same_for_a_seed_and_changes_nothing(base):
    ids = torch.randint(4, 300, (2, 5))
    want = base.model(input_ids=ids).logits
    first, second = ({}, {})
    for found, seed in ((first, 3), (second, 3)):
        model = new_adapter(base, 4, 8, 0.0, seed, TARGETS)
        assert torch.equal(model(input_ids=ids).logits, want)
        found.update({name: p.clone() for name, p in model.named_parameters() if p.requires_grad})
        model.unload()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_knows_its_base(base, saved):
    assert json.loads((saved / BASE_FILE).read_text()) == {"base": "tiny", "digest": base.digest}
    adapter = read_adapter(saved, "math", base)
    assert len(adapter.factors) == 14 and set(adapter.scaling.values()) == {2.0}
    assert adapter.parameters == sum(4 * (A.shape[1] + B.shape[0]) for A, B in adapter.factors.values())
    with pytest.raises(ValueError, match="expected its own base tiny"):
        read_adapter(saved, "math", tiny_base(seed=1))


def test_patterns_and_rslora_scale_as_peft_does(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 8},
        alpha_pattern={"down_proj": 32},
        use_rslora=True,
    )
    peft = get_peft_model(model, config)
    layers = {name: getattr(m, "scaling", None) for name, m in peft.base_model.model.named_modules()}
    scales = {name: scale["default"] for name, scale in layers.items() if isinstance(scale, dict)}
    peft.save_pretrained(tmp_path, save_embedding_layers=False)
    assert read_adapter(tmp_path, "a").scaling == scales


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: (path / "adapter_config.json").unlink(), "expected adapter_config.json"),
        (lambda path: (path / "adapter_model.safetensors").write_bytes(b"no"), "not loaded"),
        (lambda path: (path / BASE_FILE).write_text("{}"), "expected the name and digest"),
        (lambda path: _change(path, use_dora=True), "use_dora: expected False, got True"),
        (lambda path: _change(path, bias="all"), "bias: expected none, got all"),
        (lambda path: _change(path, alora_invocation_tokens=[5, 6]), "alora_invocation_tokens: expected None, got"),
        (lambda path: _change(path, kasa_config={"beta": 1e-4}), "kasa_config: expected None, got"),
    ],
)
def test_what_is_refused(base, saved, damage, told):
    damage(saved)
    with pytest.raises(ValueError, match=told):
        read_adapter(saved, "math", base)


def _change(path, **values):
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | values))


def test_a_base_is_loaded_and_known_again(base, tmp_path):
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    assert loaded.digest == base.digest
    assert not any(p.requires_grad for p in loaded.model.parameters())
    # In another dtype it is still the base that the adapters were trained on.
    assert load_base(tmp_path / "base", torch.bfloat16).digest == base.digest
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ValueError, match="not loaded"):
        load_base(tmp_path / "base")


def test_a_base_without_the_layers_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="expected linear layers named q_proj, k_proj"):
        check_targets(gpt2, TARGETS, "gpt2")


def test_the_digest_sees_every_parameter():
    one, two = tiny_model(), tiny_model()
    assert digest_of(one) == digest_of(two)
    two.model.norm.weight.data[3] += 1
    assert digest_of(one) != digest_of(two)
