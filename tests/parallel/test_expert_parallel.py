"""expert_parallel and MoELayer(process_group=…) on gloo with 2 to 4 processes, against one process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOKENS = {"equal": [6, 6, 6, 6], "different": [9, 1, 4, 2], "none": [7, 0, 5, 0], "nowhere": [0, 0, 0, 0]}


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("routing", ["uniform", "skewed", "single", "sentinels"])
def test_block_and_every_gradient(ranks, size, dtype, routing):
    tokens = TOKENS["different" if size == 3 else "none" if routing == "single" else "equal"][:size]
    ranks.run("block", size, tokens=tokens, E=8, K=3, routing=routing, dtype=dtype, bias=False, transposed=False)


@pytest.mark.parametrize("E", [1, 2, 3, 5])
def test_fewer_experts_than_ranks_and_uneven_ranges(ranks, E):
    arguments = {"routing": "uniform", "dtype": "float32", "bias": True, "transposed": E == 2}
    ranks.run("block", 4, tokens=TOKENS["different"], E=E, K=min(E, 2), **arguments)


OPTIONS = {
    "plain": {},
    "shared": {"shared_intermediate_size": 12, "shared_gate": True},
    "biased": {"bias": True, "activation": "gelu"},
    "gateless": {"gated": False},
    "sigmoid": {"score": "sigmoid", "scale": 2.5},
    "capacity": {"capacity_factor": 1.0},
    "expert_choice": {"routing": "expert_choice"},
    "reference": {"backend": "reference"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [2, 4])
def test_layer_and_every_gradient(ranks, size, options):
    ranks.run("layer", size, tokens=[6, 3, 4, 7][:size], E=6, options=OPTIONS[options])


@pytest.mark.parametrize("tokens", TOKENS)
def test_layer_with_tokens_spread(ranks, tokens):
    ranks.run("layer", 4, tokens=TOKENS[tokens], E=5, options={})


def test_same_bits_on_any_number_of_ranks(ranks):
    for size in (2, 3, 4):
        ranks.run("same_bits", size, E=5)


@pytest.mark.parametrize(
    "check",
    [
        "who_needs_gradients",
        "no_grad_on_one_rank",
        "autocast_and_checkpointing",
        "first_values",
        "disagreement",
        "quantized",
    ],
)
def test_ranks_together(ranks, check):
    ranks.run(check, 3)


def test_compiled(ranks):
    ranks.run("compiled", 2)


def test_wrong_groups(ranks):
    ranks.run("wrong_groups", 1)


@pytest.mark.parametrize("tokens", ["equal", "different", "none"])
def test_statistics_of_all_tokens(ranks, tokens):
    ranks.run("statistics", 4, tokens=TOKENS[tokens])


@pytest.mark.parametrize("size", [2, 4])
def test_checkpoints(ranks, size, tmp_path):
    ranks.run("checkpoints", size, folder=str(tmp_path))


@pytest.mark.parametrize("wrap", ["ignored", "each", "grid", "ddp"])
def test_fsdp2_and_ddp(ranks, wrap):
    ranks.run("fsdp", 4, wrap=wrap)


@pytest.mark.slow
def test_torchrun():
    program = Path(__file__).with_name("torchrun_check.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # Both ranks write to one stream: a line's end may come behind the other's words.
    assert sorted(re.findall(r"rank \d is equal", done.stdout)) == ["rank 0 is equal", "rank 1 is equal"]
