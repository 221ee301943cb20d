"""Published checkpoints: their names and shapes, as far as the model that transformers makes of them.

tests/data/manifests has, for each checkpoint, its configuration, the tensors by pattern, and how many parameters its
authors count. Nothing has values: tensors and models are on the meta device, and go through transformers' own loading.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import convert_and_load_state_dict_in_model

from moe_kernels.integrations.recognition import is_experts, recognize

conversion = pytest.importorskip("transformers.conversion_mapping")
LoadStateDictConfig = pytest.importorskip("transformers.modeling_utils").LoadStateDictConfig

MANIFESTS = sorted((Path(__file__).parents[1] / "data/manifests").glob("*.json"))
# The layers that are loaded: some of each kind. All are counted.
LAYERS = 5
FP8_BLOCK = 128
Shapes = dict[str, tuple[str, tuple[int, ...]]]


def _expand(manifest: dict, layers: int | None = None) -> Shapes:
    """Return dtype and shape by name."""
    found = {}
    for pattern, (dtype, shape) in manifest["tensors"].items():
        letters = re.findall(r"\{(\w+)\}", pattern)
        ranges = [range(*manifest["ranges"][letter]) for letter in letters]
        if layers is not None and letters and letters[0] != "E":
            ranges[0] = range(ranges[0].start, min(ranges[0].stop, layers))
        for values in itertools.product(*ranges):
            found[pattern.format(**dict(zip(letters, values, strict=True)))] = (dtype, tuple(shape))
    return found


def _decoded(tensors: Shapes) -> Shapes:
    """Return what tensors in 8 and 4 bits stand for, once it is clear that they and their scales belong together."""
    out = {}
    for name, (dtype, shape) in tensors.items():
        if name.endswith("_scale_inv") or name.endswith("_scales"):
            continue
        if dtype == "F8_E4M3":
            scales = tensors[f"{name}_scale_inv"]
            assert scales == ("F32", tuple(math.ceil(n / FP8_BLOCK) for n in shape)), name
            out[name] = ("BF16", shape)
        elif name.endswith("_blocks"):
            # (E, O, blocks, bytes): two values in a byte; the model has it as (E, H, O).
            E, O, blocks, size = shape
            assert tensors[name.replace("_blocks", "_scales")] == ("U8", (E, O, blocks)) and size == 16, name
            out[name.removesuffix("_blocks")] = ("BF16", (E, blocks * size * 2, O))
        else:
            out[name] = (dtype, shape)
    return out


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def manifest(request):
    return json.loads(request.param.read_text())


def _model(manifest: dict, layers: int):
    options = {k: v for k, v in manifest["config"].items() if k not in ("model_type", "quantization_config")}
    options["num_hidden_layers"] = min(layers, options["num_hidden_layers"])
    config = AutoConfig.for_model(manifest["config"]["model_type"], **options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, experts_implementation="moe_kernels")


def test_it_has_as_many_parameters_as_published(manifest):
    last = manifest["config"]["num_hidden_layers"]
    tensors = _decoded(_expand(manifest, last))
    assert sum(math.prod(shape) for _, shape in tensors.values()) == manifest["parameters"]


def test_it_loads(manifest):
    tensors = _decoded(_expand(manifest, LAYERS))
    model = _model(manifest, LAYERS)
    info, _ = convert_and_load_state_dict_in_model(
        model,
        {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, (_, shape) in tensors.items()},
        LoadStateDictConfig(
            device_map={"": "meta"},
            dtype=torch.bfloat16,
            weight_mapping=conversion.get_model_conversion_mapping(model),
        ),
    )
    assert not info.missing_keys and not info.unexpected_keys and not info.mismatched_keys
    assert not info.conversion_errors and not info.error_msgs
    experts = [module for module in model.modules() if is_experts(module)]
    assert experts and all(recognize(module).activation is not None for module in experts)
