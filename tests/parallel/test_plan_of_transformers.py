"""Expert parallelism as transformers does it, with `experts_implementation="moe_kernels"`."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers.distributed.expert_parallel")

# Ranks that share a batch: masked experts and a sum, or an exchange of slices. Ranks with batches of their own.
LAYOUTS = {
    "sentinels": {"tp_size": 4, "ep_implementation": "all_reduce"},
    "slices": {"tp_size": 4, "ep_implementation": "all_to_all"},
    "tp and fsdp": {"tp_size": 2, "fsdp_size": 2},
    "fsdp": {"fsdp_size": 4},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_qwen3_moe(ranks, layout, tmp_path):
    ranks.run("transformers_plan", 4, folder=str(tmp_path), model="qwen3_moe", layout=LAYOUTS[layout])


@pytest.mark.parametrize("layout", ["sentinels", "fsdp"])
def test_gpt_oss(ranks, layout, tmp_path):
    ranks.run("transformers_plan", 4, folder=str(tmp_path), model="gpt_oss", layout=LAYOUTS[layout])
