"""Experts that transformers keeps in FP8, as it does where there is a GPU for them: here it is told so."""

from __future__ import annotations

import pytest
import torch
from published import deepseek_in_fp8, fp8, load
from torch import nn
from transformers import DeepseekV3Config
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

import moe_kernels
from moe_kernels.integrations.low_bits import low_bits, values
from moe_kernels.testing import relative_error

finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
PATH = "model.layers.1.mlp.experts"


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Load the checkpoint with its experts in FP8; and the experts that it stands for."""
    want = deepseek_in_fp8(tmp_path).get_submodule(PATH)
    monkeypatch.setattr(FineGrainedFP8HfQuantizer, "validate_environment", lambda *_, **__: None)
    model = load(tmp_path)
    experts = model.get_submodule(PATH)
    assert low_bits(experts) == "FP8" and low_bits(want) is None
    return model, experts, want


def _compute(experts):
    torch.manual_seed(0)
    index = torch.tensor([[0, 1], [2, 3], [1, 2], [3, 0], [0, 2]])
    with torch.no_grad():
        return experts(torch.randn(5, 128).bfloat16(), index, torch.rand(5, 2))


def test_converted_at_the_first_use(kept, capsys):
    model, experts, want = kept
    assert "FP8 weights are converted at the first use" in moe_kernels.explain(model)[0].reason
    with pytest.warns(UserWarning, match=r"FP8Experts was converted at its first use, FP8 to bfloat16, 0.2 MiB to 0.4"):
        got = _compute(experts)
    assert relative_error(got, _compute(want)) < 0.01
    assert torch.equal(experts.gate_up_proj, want.gate_up_proj) and torch.equal(experts.down_proj, want.down_proj)
    assert not moe_kernels.explain(model)[0].reason
    # transformers' own forward takes them as well.
    experts.config._experts_implementation = "eager"
    assert relative_error(_compute(experts), got) < 0.01


def test_not_while_compiling(kept):
    with pytest.raises(Exception, match=r"call moe_kernels.patch\(model\) first"):
        torch.compile(kept[1], fullgraph=True, backend="eager")(
            torch.randn(1, 128).bfloat16(), torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2)
        )


def test_converted_by_patch_and_saved(kept, tmp_path):
    model, experts, want = kept
    with pytest.warns(UserWarning, match="experts of 1 modules were converted, in each from FP8 to bfloat16"):
        moe_kernels.patch(model)
    got = _compute(experts)
    assert relative_error(got, _compute(want)) < 0.01
    model.save_pretrained(tmp_path / "saved")
    again, info = type(model).from_pretrained(
        tmp_path / "saved", dtype=torch.bfloat16, experts_implementation="moe_kernels", output_loading_info=True
    )
    # The rest is still in FP8, and what was left out of that is left out again.
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(again.model.layers[1].mlp.shared_experts.up_proj).__name__ == "FP8Linear"
    assert torch.equal(_compute(again.get_submodule(PATH)), got)


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_quantized_without_a_copy_in_between(kept, format):
    model, _, want = kept
    moe_kernels.quantize_experts(model, format)
    assert moe_kernels.explain(model)[0].computed == f"fused_experts, silu, {format}"
    assert 0 < relative_error(_compute(model.get_submodule(PATH)), _compute(want)) < (0.2 if format == "nf4" else 0.02)
    assert moe_kernels.patch(model) is model


def test_lora_over_them(kept):
    peft = pytest.importorskip("peft", minversion="0.17")
    model, experts, want = kept
    moe_kernels_first = _compute(want)
    targets = [f"{PATH}.{name}".removeprefix("model.") for name in ("gate_up_proj", "down_proj")]
    with pytest.warns(UserWarning, match="FP8 to bfloat16"):
        moe_kernels.patch(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=[], target_parameters=targets))
    outer = adapted.base_model.model.get_submodule(PATH)
    # B begins as zeros.
    assert relative_error(_compute(outer), moe_kernels_first) < 0.01


def test_scales_that_are_missing_leave_the_model_as_it_was(kept):
    model, experts, _ = kept
    del experts.down_proj_scale_inv
    with pytest.raises(ValueError, match=r"FP8Experts.down_proj_scale_inv: expected FP8 scales \(1, 1\) .*got none"):
        moe_kernels.patch(model)
    assert low_bits(experts) == "FP8" and experts.gate_up_proj.dtype == torch.float8_e4m3fn


def test_an_implementation_that_cannot_be_changed_leaves_the_model_as_it_was(kept):
    model, experts, _ = kept
    model.config._experts_implementation_internal = "deepgemm_megamoe"
    with pytest.raises(RuntimeError, match="Cannot switch experts implementation from 'deepgemm_megamoe'"):
        moe_kernels.patch(model)
    assert low_bits(experts) == "FP8" and experts.gate_up_proj.dtype == torch.float8_e4m3fn


def test_mxfp4_in_the_order_of_another_kernel(kept, capsys):
    model, experts, _ = kept

    class Arranged(nn.Module):
        down_proj_precision_config = None

    model.model.layers[0].mlp = Arranged()
    with pytest.raises(ValueError, match=r"model.layers.0.mlp .*Mxfp4Config\(dequantize=True\)"):
        moe_kernels.patch(model)
    assert low_bits(experts) == "FP8"
    assert [e.backend for e in moe_kernels.explain(model)] == ["cpu", "none"]


def _module(hidden, intermediate, **options):
    config = DeepseekV3Config(
        hidden_size=hidden, moe_intermediate_size=intermediate, n_routed_experts=2, dtype=torch.bfloat16
    )
    config.num_local_experts = 2
    made = moe_experts(finegrained.FP8Experts)(config, **options)
    return made.requires_grad_(False)


def moe_experts(kind):
    from transformers.integrations.moe import use_experts_implementation

    return use_experts_implementation(experts_class=type("Kept", (kind,), {}))


@pytest.mark.parametrize("hidden, intermediate", [(128, 128), (200, 96), (256, 192)])
def test_values_of_blocks_that_are_cut(hidden, intermediate):
    module = _module(hidden, intermediate, block_size=(128, 128))
    torch.manual_seed(0)
    parts = [[fp8(torch.randn(intermediate, hidden)) for _ in range(2)] for _ in range(2)]
    module.gate_up_proj.data = torch.stack([torch.cat([low for low, _, _ in pair]) for pair in parts])
    module.gate_up_proj_scale_inv.data = torch.stack([torch.cat([scale for _, scale, _ in pair]) for pair in parts])
    want = torch.stack([torch.cat([exact for _, _, exact in pair]) for pair in parts])
    assert torch.equal(values(module, "gate_up_proj"), want.bfloat16())


def test_values_of_one_scale_and_of_four_bits():
    module = _module(64, 32, block_size=None)
    module.down_proj.data = torch.randn(2, 64, 32).to(torch.float8_e4m3fn)
    module.down_proj_scale_inv.data = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    want = module.down_proj.float() * module.down_proj_scale_inv
    assert torch.equal(values(module, "down_proj"), want.bfloat16())

    module = _module(64, 32, block_size=(128, 128), expert_dtype="fp4")
    assert low_bits(module) == "FP4"
    module.down_proj.data = torch.full((2, 64, 16), 0x72, dtype=torch.int8)
    module.down_proj_scale_inv.data = torch.full((2, 64, 1), 0.25)
    assert torch.equal(values(module, "down_proj")[0, 0, :4], torch.tensor([0.25, 1.5, 0.25, 1.5]).bfloat16())
