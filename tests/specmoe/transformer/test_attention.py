"""Attention and its masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from specmoe.transformer import SpecMoeConfig
from specmoe.transformer.attention import Attention, attention_mask_for
from specmoe.transformer.rotary import rotary_angles, rotate

CPU = torch.device("cpu")


def attend_plainly(attention: Attention, norm: str | None, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Attention written out: scores, softmax over the visible keys, weighted sum."""
    B, S, H = x.shape
    qkv = attention.qkv_proj(x).view(B, S, 3, attention.num_heads, attention.head_dim)
    q, k, v = qkv.unbind(2)
    if norm == "layer_norm":
        q, k = (t - t.mean(-1, keepdim=True) for t in (q, k))
    if norm is not None:
        q, k = (t * (t.pow(2).mean(-1, keepdim=True) + attention.norm_eps).rsqrt() for t in (q, k))
    angles = rotary_angles(torch.arange(S)[None], attention.head_dim, 10000.0)
    q, k = rotate(q, *angles), rotate(k, *angles)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / attention.head_dim**0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return F.linear(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, S, H), attention.o_proj.weight)


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm", None])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
def test_attention_equals_attention_written_out(norm, padded):
    torch.manual_seed(0)
    attention = Attention(
        SpecMoeConfig(hidden_size=24, num_attention_heads=3, qk_norm=norm is not None, norm_type=norm or "rms_norm"),
        0,
    )
    x = torch.randn(2, 7, 24)
    keep = torch.ones(2, 7, dtype=torch.long)
    if padded:
        keep[0, :3] = 0
    mask = attention_mask_for(keep, 7, 0, CPU)
    visible = torch.ones(7, 7).tril().bool()[None, None] & keep.bool()[:, None, None, :]
    got = attention(x, rotary_angles(torch.arange(7)[None], 8, 10000.0), mask)
    expected = attend_plainly(attention, norm, x, visible | torch.eye(7).bool())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (mask is None) == (not padded)


def test_no_mask_is_made_where_none_is_needed():
    assert attention_mask_for(None, 5, 0, CPU) is None
    assert attention_mask_for(None, 1, 4, CPU) is None
    assert attention_mask_for(torch.ones(2, 5), 5, 0, CPU) is None


def test_a_chunk_after_the_cache_sees_the_cache_and_its_own_past():
    mask = attention_mask_for(None, 2, 3, CPU)
    assert mask.int().tolist() == [[[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]]


def test_a_padding_query_sees_itself():
    mask = attention_mask_for(torch.tensor([[0, 0, 1]]), 3, 0, CPU)
    assert mask.int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]]


def test_a_mask_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask: expected shape \(batch, 5\) .*, got \(2, 4\)"):
        attention_mask_for(torch.ones(2, 4), 3, 2, CPU)
