"""The model: its losses, its cache, padding, checkpointing, files."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache

from moe_kernels import MoELayer
from specmoe.training import preset
from specmoe.training.run import model_config
from specmoe.transformer import SpecMoeForCausalLM, SpecMoeModel


def test_the_full_preset_has_21_million_parameters():
    with torch.device("meta"):
        model = SpecMoeForCausalLM(model_config(preset("full"), 65))
    H, I, E, L, V = 384, 768, 8, 4, 65
    block = 4 * H * H + E * H + 2 * E * H * I + 2 * H
    assert model.num_parameters() == V * H + L * block + H == 21_274_368


def test_the_blocks_hold_moe_layers_with_replaceable_experts(make_model, tokens):
    model = make_model()
    expected = model(tokens).logits
    layer = model.model.layers[0].mlp
    assert isinstance(layer, MoELayer)
    experts, calls = layer.experts, []

    class Replacement(torch.nn.Module):
        def forward(self, x, indices, weights):
            calls.append(tuple(x.shape))
            return experts(x, indices, weights)

    layer.experts = Replacement()
    assert torch.equal(model(tokens).logits, expected)
    assert calls == [(33, 24)]


@pytest.mark.parametrize("norm_type", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("chunk", [1, 4], ids=["one", "chunks"])
def test_logits_with_the_cache_equal_those_without(make_model, tokens, norm_type, chunk):
    model = make_model(norm_type=norm_type)
    expected = model(tokens, use_cache=False)
    assert expected.past_key_values is None
    cache, parts = DynamicCache(), []
    for part in tokens.split(chunk, dim=1):
        output = model(part, past_key_values=cache, use_cache=True)
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_real_logit(make_model, tokens, side):
    model = make_model()
    padding = torch.zeros(3, 4, dtype=torch.long)
    kept = torch.ones_like(tokens)
    at = slice(4, None) if side == "left" else slice(0, 11)
    parts = [padding, tokens] if side == "left" else [tokens, padding]
    masks = [padding, kept] if side == "left" else [kept, padding]
    mask = torch.cat(masks, 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(torch.cat(parts, 1), attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(padded[:, at], model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_sum_of_its_reported_terms(make_model, tokens):
    model = make_model(load_balance_weight=0.3, z_loss_weight=0.07, entropy_weight=0.11)
    output = model(tokens, labels=tokens)
    logits = model(tokens).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(output.cross_entropy, expected)
    total = expected + 0.3 * output.load_balance + 0.07 * output.z_loss - 0.11 * output.entropy
    torch.testing.assert_close(output.loss, total)
    # Recomputed from the router's logits: K * T choices, the full softmax, natural logarithms.
    z, entropy, balance = [], [], []
    for layer_logits in output.router_logits:
        p = layer_logits.softmax(-1)
        f = F.one_hot(p.topk(2).indices, 5).sum((0, 1)) / (2 * 33)
        balance.append(5 * (f * p.mean(0)).sum())
        z.append(layer_logits.logsumexp(-1).pow(2).mean())
        entropy.append(-(p * p.log()).sum(-1).mean())
    torch.testing.assert_close(output.load_balance, torch.stack(balance).mean())
    torch.testing.assert_close(output.z_loss, torch.stack(z).mean())
    torch.testing.assert_close(output.entropy, torch.stack(entropy).mean())
    assert output.expert_counts.shape == (2, 5)
    assert output.expert_counts.sum(-1).tolist() == [66, 66]


def test_shifted_labels_give_the_same_loss(make_model, tokens):
    model = make_model()
    shifted = F.pad(tokens[:, 1:], (0, 1), value=-100)
    assert torch.equal(model(tokens, labels=tokens).loss, model(tokens, shift_labels=shifted).loss)
    with pytest.raises(ValueError, match="at most one of labels and shift_labels, got both"):
        model(tokens, labels=tokens, shift_labels=shifted)


def test_parts_of_a_batch_add_up_to_its_cross_entropy(make_model, tokens):
    model = make_model(load_balance_weight=0.0, z_loss_weight=0.0)
    labels = tokens.clone()
    labels[0, :6] = -100
    count = (labels[:, 1:] != -100).sum()
    whole = model(tokens, labels=labels).loss
    parts = [
        model(tokens[rows], labels=labels[rows], num_items_in_batch=count).loss for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_padding_does_not_count_in_the_router_statistics(make_model, tokens):
    model = make_model()
    alone = model(tokens, labels=tokens)
    padding = torch.zeros(3, 4, dtype=torch.long)
    mask = torch.cat([torch.ones_like(tokens), padding], 1)
    labels = torch.cat([tokens, torch.full_like(padding, -100)], 1)
    padded = model(torch.cat([tokens, padding], 1), attention_mask=mask, labels=labels)
    assert torch.equal(padded.expert_counts, alone.expert_counts)
    for name in ("loss", "cross_entropy", "load_balance", "z_loss", "entropy"):
        torch.testing.assert_close(padded[name], alone[name])


def test_every_parameter_gets_a_gradient(make_model, tokens):
    model = make_model(shared_intermediate_size=8).train()
    model(tokens, labels=tokens).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved"])
def test_gradient_checkpointing_changes_no_gradient(make_model, tokens, reentrant):
    plain, checkpointed = make_model(dropout=0.1).train(), make_model(dropout=0.1).train()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for model in (plain, checkpointed):
        torch.manual_seed(3)
        model(tokens, labels=tokens).loss.backward()
    for (name, expected), got in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(got.grad, expected.grad), name


def test_dropout_acts_in_training_only(make_model, tokens):
    model = make_model(dropout=0.5)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("name", ["cpu", "full"])
def test_an_untrained_model_is_near_the_uniform_guess(name):
    torch.manual_seed(0)
    model = SpecMoeForCausalLM(model_config(preset(name), 65)).eval()
    ids = torch.randint(65, (4, 128))
    with torch.no_grad():
        perplexity = math.exp(model(ids, labels=ids).cross_entropy)
    assert 60 < perplexity < 72


def test_hidden_states_are_the_embedding_and_each_block_s_output(make_model, tokens):
    model = make_model()
    output = model(tokens, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[0], model.model.embed_tokens(tokens))
    assert torch.equal(model.lm_head(model.model.norm(output.hidden_states[2])), output.logits)


def test_the_initial_weights_have_the_configured_scale(make_model):
    model = make_model(hidden_size=96, intermediate_size=96, initializer_range=0.1, num_hidden_layers=2)
    for name, parameter in model.named_parameters():
        if name == "model.norm.weight":
            torch.testing.assert_close(parameter, torch.full_like(parameter, 0.2))
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.1 / 2 if name.endswith(("o_proj.weight", "down_proj")) else 0.1
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name


def test_the_head_shares_the_embedding(make_model):
    model = make_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = make_model(tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_saved_model_loads_to_the_same_logits(make_model, tokens, tmp_path, score):
    model = make_model(router_score=score, shared_intermediate_size=8)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, SpecMoeForCausalLM)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, SpecMoeModel)
    assert torch.equal(base(tokens).last_hidden_state, model.model(tokens).last_hidden_state)


def test_a_tuple_is_returned_on_request(make_model, tokens):
    model = make_model()
    assert torch.equal(model(tokens, return_dict=False)[0], model(tokens).logits)


def test_ids_and_embeddings_exclude_each_other(make_model, tokens):
    model = make_model()
    embedded = model.model.embed_tokens(tokens)
    assert torch.equal(model(inputs_embeds=embedded).logits, model(tokens).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds, got both"):
        model(tokens, inputs_embeds=embedded)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds, got neither"):
        model()


def test_only_the_kept_positions_get_logits(make_model, tokens):
    model = make_model()
    # Close, not equal: torch's matmul may sum in another order for another number of rows.
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, model(tokens).logits[:, -2:])
