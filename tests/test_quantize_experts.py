"""quantize_experts: the modules that it makes, and the files that keep them."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from moe_kernels import BackendUnavailable, MoELayer, fused_experts, quantize_experts
from moe_kernels.quantized import (
    ExpertsLayout,
    QuantizedExperts,
    load_quantized,
    register_experts,
    save_quantized,
)
from moe_kernels.testing import ExpertInputs, assert_close, expert_inputs, naive_experts, relative_error

FORMATS = pytest.mark.parametrize("format", ["nf4", "int8"])


def _layer(**options) -> MoELayer:
    torch.manual_seed(0)
    layer = MoELayer(64, 128, 8, 2, **options)
    if options.get("bias"):
        for name, value in layer.named_parameters():
            if name.endswith("_bias"):
                nn.init.normal_(value)
    return layer


class _Model(nn.Module):
    """Two layers, one of them used twice, and a tied pair of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 64)
        self.blocks = nn.ModuleList([MoELayer(64, 128, 4, 2), MoELayer(64, 64, 4, 1, gated=False, bias=True)])
        self.again = self.blocks[0].experts
        self.head = nn.Linear(64, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        x = x + self.again(x, ids[:, None] % 4, torch.ones(len(ids), 1))
        return self.head(x)


def _model(seed: int = 0) -> _Model:
    torch.manual_seed(seed)
    return _Model()


IDS = torch.tensor([0, 3, 10, 7, 3])


@FORMATS
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_a_layer(format, gated):
    layer = _layer(bias=True, gated=gated, shared_intermediate_size=64)
    exact = copy.deepcopy(layer)
    assert quantize_experts(layer, format) is layer
    assert isinstance(layer.experts, QuantizedExperts) and isinstance(layer.shared_experts, QuantizedExperts)
    up = "gate_up_proj" if gated else "up_proj"
    for mine, theirs in ((layer.experts, exact.experts), (layer.shared_experts, exact.shared_experts)):
        for name in (up, "down_proj"):
            weight = getattr(mine, name).weight
            assert weight.format == format
            with torch.no_grad():
                getattr(theirs, name).copy_(weight.dequantize())
    x = torch.randn(9, 64, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    out, want = layer(x), exact.double()(wide)
    assert_close(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    assert_close(x.grad, wide.grad, what="x")
    theirs = dict(exact.named_parameters())
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, theirs[name].grad, what=name)
    assert {n for n, _ in layer.experts.named_parameters()} == {f"{up}_bias", "down_proj_bias"}


@FORMATS
def test_names_and_dtypes_in_the_state_dict(format):
    layer = quantize_experts(_layer(), format)
    fields = {"nf4": ("codes", "absmax", "nested_absmax", "nested_code", "offset"), "int8": ("values", "scale")}[format]
    names = {f"experts.{p}.{field}" for p in ("gate_up_proj", "down_proj") for field in fields}
    assert set(layer.state_dict()) == names | {"gate.weight"}
    twin = quantize_experts(MoELayer(64, 128, 8, 2), format)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(twin(x), layer(x))


@FORMATS
@pytest.mark.parametrize("change", ["to", "half", "bfloat16", "double", "type"])
def test_a_change_of_dtype_leaves_the_format_alone(format, change):
    layer = quantize_experts(_layer(bias=True), format)
    before = {name: value.clone() for name, value in layer.experts.named_buffers()}
    dtype = {"double": torch.float64, "bfloat16": torch.bfloat16}.get(change, torch.float16)
    getattr(layer, change)(*([dtype] if change in ("to", "type") else []))
    for name, value in layer.experts.named_buffers():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    assert layer.experts.down_proj_bias.dtype == layer.gate.weight.dtype == dtype
    assert layer(torch.randn(3, 64, dtype=dtype)).dtype == dtype


@FORMATS
def test_moves_between_devices(format):
    layer = quantize_experts(_layer(), format)
    moved = copy.deepcopy(layer).to("meta", torch.bfloat16)
    for name, value in layer.experts.named_buffers():
        there = moved.experts.get_buffer(name)
        assert there.is_meta and there.dtype == value.dtype and there.shape == value.shape, name
    assert moved.gate.weight.dtype == torch.bfloat16
    assert moved.experts.gate_up_proj.weight.device.type == "meta"
    back = moved.to_empty(device="cpu")
    back.load_state_dict(layer.state_dict())
    assert torch.equal(back.experts.down_proj.weight.data, layer.experts.down_proj.weight.data)


@FORMATS
def test_train_and_eval_change_nothing(format):
    layer = quantize_experts(_layer(), format)
    x = torch.randn(9, 64, requires_grad=True)
    want, before = layer(x), {name: value.clone() for name, value in layer.state_dict().items()}
    (grad,) = torch.autograd.grad(want.sum(), x)
    layer.eval()
    with torch.inference_mode():
        assert torch.equal(layer(x), want)
    with torch.no_grad():
        layer(torch.randn(1, 64))
    layer.train()
    assert torch.equal(layer(x), want)
    (again,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(again, grad)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


@FORMATS
def test_no_full_precision_weight_stays(format):
    layer = _layer(bias=True)
    gone = [weakref.ref(layer.experts), weakref.ref(layer.experts.gate_up_proj), weakref.ref(layer.experts.down_proj)]
    before = sum(p.numel() for p in (layer.experts.gate_up_proj, layer.experts.down_proj))
    quantize_experts(layer, format)
    assert all(reference() is None for reference in gone)
    weights = [layer.experts.gate_up_proj.weight, layer.experts.down_proj.weight]
    # 1024 bytes of levels in each double-quantized weight, which large ones do not feel.
    assert (
        sum(w.nbytes - (1024 if format == "nf4" else 0) for w in weights) < before * {"nf4": 0.53, "int8": 1.1}[format]
    )


@FORMATS
def test_parameters_are_let_go_one_at_a_time(format, monkeypatch):
    from moe_kernels.quantized import experts

    layer = _layer()
    parameters = [weakref.ref(layer.experts.gate_up_proj), weakref.ref(layer.experts.down_proj)]
    alive = []
    quantize = experts.QUANTIZERS[format]

    def watched(w, **options):
        alive.append([reference() is not None for reference in parameters])
        return quantize(w, **options)

    monkeypatch.setitem(experts.QUANTIZERS, format, watched)
    quantize_experts(layer, format)
    assert alive == [[True, True], [False, True]]


def test_a_model_with_shared_modules():
    model = quantize_experts(_model(), "nf4")
    assert model.again is model.blocks[0].experts
    assert [type(block.experts) for block in model.blocks] == [QuantizedExperts] * 2
    model(IDS).sum().backward()
    assert model.embed.weight.grad is not None


def test_quantizing_twice_finds_what_is_left():
    model = _model()
    quantize_experts(model.blocks[1], "int8")
    quantize_experts(model, "nf4")
    assert model.blocks[1].experts.format == "int8" and model.blocks[0].experts.format == "nf4"
    with pytest.raises(ValueError, match="a module with unquantized experts, got _Model without any"):
        quantize_experts(model, "nf4")


def test_dynamic_is_off_unless_asked_for():
    layer, x = _layer(), torch.randn(9, 64)
    want = layer.double()(x.double())
    layer.float()
    other, dynamic = copy.deepcopy(layer), copy.deepcopy(layer)
    default, off = quantize_experts(layer, "int8")(x), quantize_experts(other, "int8", dynamic=False)(x)
    assert torch.equal(default, off)
    rounded = quantize_experts(dynamic, "int8", dynamic=True)(x)
    assert relative_error(default, want) < relative_error(rounded, want) < 0.05


@FORMATS
def test_fullgraph(format):
    torch.compiler.reset()
    layer = quantize_experts(_layer(bias=True), format)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 64, requires_grad=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert x.grad is not None and layer.experts.down_proj_bias.grad is not None


def test_copies():
    layer, x = quantize_experts(_layer(), "nf4"), torch.randn(3, 64)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


class _Foreign(nn.Module):
    """Experts of another package: transposed, interleaved, biased."""

    def __init__(self, inputs: ExpertInputs) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(inputs.gate_up), nn.Parameter(inputs.down)
        self.b1, self.b2 = nn.Parameter(inputs.gate_up_bias), nn.Parameter(inputs.down_bias)


def test_another_class_of_experts(monkeypatch):
    from moe_kernels.quantized import experts

    monkeypatch.setattr(experts, "_LAYOUTS", list(experts._LAYOUTS))

    def layout(module):
        if not isinstance(module, _Foreign):
            return None
        return ExpertsLayout("w1", "w2", "b1", "b2", activation="gpt_oss", interleaved=True, transposed=True)

    register_experts(layout)
    shape = {"bias": True, "interleaved": True, "transposed": True}
    inputs = expert_inputs(9, 4, 2, 64, 128, **shape).to(torch.float32)
    model = quantize_experts(nn.ModuleDict({"experts": _Foreign(inputs)}), "int8")
    out = model["experts"](inputs.x, inputs.indices, inputs.weights)
    up, down = model["experts"].w1.weight, model["experts"].w2.weight
    wide = inputs.to(torch.float64)._replace(gate_up=up.dequantize(torch.float64), down=down.dequantize(torch.float64))
    assert_close(out, naive_experts(wide, "gpt_oss", interleaved=True))
    assert set(model.state_dict()) == {
        f"experts.{n}" for n in ("w1.values", "w1.scale", "w2.values", "w2.scale", "b1", "b2")
    }


def test_batch_invariance_is_still_asked_for():
    layer = quantize_experts(_layer(batch_invariant=True, backend="reference"), "int8")
    with pytest.raises(BackendUnavailable, match="fused_experts_quantized: backend 'reference'"):
        layer(torch.randn(3, 64))


UNFIT = {
    "format": (lambda: quantize_experts(_layer(), "nf3"), "format: expected one of 'nf4', 'int8', got 'nf3'"),
    "dynamic": (lambda: quantize_experts(_layer(), "nf4", dynamic=True), "dynamic: expected None or False"),
    "no experts": (lambda: quantize_experts(nn.Linear(3, 3), "nf4"), "got Linear without any"),
    "experts alone": (lambda: quantize_experts(_layer().experts, "nf4"), "holds the experts.*got Experts"),
    "meta": (lambda: quantize_experts(_layer(device="meta"), "nf4"), "load_quantized.*got a meta tensor"),
}


@pytest.mark.parametrize("call,message", UNFIT.values(), ids=UNFIT.keys())
def test_unfit_arguments(call, message):
    with pytest.raises(ValueError, match=f"quantize_experts: .*{message}"):
        call()


def test_a_refused_model_is_as_it_was():
    model = nn.ModuleList([_layer(), MoELayer(96, 64, 4, 2)])
    with pytest.raises(ValueError, match=r"64 divides in 1.experts.gate_up_proj, got 96"):
        quantize_experts(model, "nf4")
    assert not any(isinstance(module, QuantizedExperts) for module in model.modules())
    layer = _layer()
    layer.experts.down_proj.data[3, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="experts.down_proj: expected finite values, got NaN"):
        quantize_experts(layer, "int8")
    assert layer(torch.randn(3, 64)).shape == (3, 64)


# -- files


@pytest.fixture
def saved(tmp_path):
    pytest.importorskip("safetensors")
    model = quantize_experts(_model(), "nf4", double_quant=False)
    path = tmp_path / "model.safetensors"
    save_quantized(model, path)
    return model, path


@pytest.mark.parametrize(
    "options", [("nf4", {}), ("nf4", {"double_quant": False}), ("int8", {"dynamic": True})], ids=str
)
@pytest.mark.parametrize("meta", [False, True], ids=["cpu", "meta"])
def test_a_file_gives_the_same_model(tmp_path, options, meta):
    pytest.importorskip("safetensors")
    format, more = options
    model = quantize_experts(_model(), format, **more)
    save_quantized(model, tmp_path / "model.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    with torch.device("meta" if meta else "cpu"):
        other = _Model()
    assert load_quantized(other, tmp_path / "model.safetensors") is other
    assert torch.equal(other(IDS), model(IDS))
    assert other.head.weight is other.embed.weight and other.again is other.blocks[0].experts
    assert isinstance(other.embed.weight, nn.Parameter) and other.embed.weight.requires_grad
    assert other.blocks[0].experts.dynamic == bool(more.get("dynamic"))
    theirs = model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in other.state_dict().items())
    save_quantized(other, tmp_path / "again.safetensors")
    assert torch.equal(load_quantized(_model(2), tmp_path / "again.safetensors")(IDS), model(IDS))


def test_a_file_loads_into_a_model_of_another_dtype(saved):
    model, path = saved
    other = load_quantized(_model(1).bfloat16(), path)
    assert other.embed.weight.dtype == torch.bfloat16
    assert other.blocks[0].experts.down_proj.absmax.dtype == torch.float32
    assert relative_error(other(IDS), model(IDS)) < 0.05


def _untouched(path, message, model=None):
    model = model or _model(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_quantized(model, path)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("keep", [0, 5, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, keep):
    data = saved[1].read_bytes()
    saved[1].write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    _untouched(saved[1], "load_quantized: path: expected a file written by save_quantized, got a damaged")


def test_a_foreign_file_is_refused(saved):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, saved[1])
    _untouched(saved[1], "without its description")
    saved[1].write_text("no tensors at all")
    _untouched(saved[1], "damaged or foreign file")


def _edit(path, change):
    """Rewrite the description in a file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    described = json.loads(header["__metadata__"]["moe_kernels.quantized"])
    change(described)
    header["__metadata__"]["moe_kernels.quantized"] = json.dumps(described)
    packed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + size :])


CHANGES = {
    "version": (lambda d: d.update(version=2), "version 1, got version 2"),
    "format": (lambda d: d["modules"]["again"].update(format="fp4"), "fp4"),
    "path": (lambda d: d["modules"].update({"nowhere": {"format": "nf4", "dynamic": False}}), "at 'nowhere', got none"),
    "other format": (lambda d: d["modules"]["blocks.1.experts"].update(format="int8"), "expected the weight blocks.1"),
    "not quantized": (lambda d: d["modules"].pop("blocks.1.experts"), "a file without.*blocks.1.experts"),
    "nonsense": (lambda d: d.update(modules=3), "without its description"),
}


@pytest.mark.parametrize("change,message", CHANGES.values(), ids=CHANGES.keys())
def test_a_wrong_description_is_refused(saved, change, message):
    _edit(saved[1], change)
    _untouched(saved[1], message)


def test_a_model_that_does_not_fit_is_refused(saved):
    other = _model(1)
    other.blocks[0] = MoELayer(64, 192, 4, 2)
    other.again = other.blocks[0].experts
    _untouched(saved[1], r"shape \(4, 256, 64\) as in the file, got \(4, 384, 64\)", other)
    other = _model(1)
    other.head = nn.Linear(64, 12, bias=False)
    _untouched(saved[1], r"model: head.weight: expected shape \(11, 64\) as in the file, got \(12, 64\)", other)
    other = _model(1)
    other.extra = nn.Linear(3, 3)
    _untouched(saved[1], r"a file without \['extra.bias', 'extra.weight'\]", other)
    _untouched(
        saved[1],
        "unquantized experts at 'blocks.0.experts', got none there",
        quantize_experts(_model(1), "nf4", double_quant=False),
    )


def test_an_unquantized_model_is_not_saved(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(ValueError, match="save_quantized: model: .*_Model without any"):
        save_quantized(_model(), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_without_safetensors_the_error_says_so():
    code = """
import sys
sys.modules["safetensors"] = None
from moe_kernels import MoELayer, quantize_experts
from moe_kernels.quantized import save_quantized
try:
    save_quantized(quantize_experts(MoELayer(64, 64, 4, 2), "nf4"), "nowhere")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "save_quantized: needs the package safetensors (pip install safetensors)" in done.stdout


@FORMATS
def test_weights_of_all_experts(format):
    experts = quantize_experts(_layer(), format).experts
    x, weights = torch.randn(5, 64), torch.rand(5, 8)
    indices = weights.topk(2).indices
    assert torch.equal(experts(x, indices, weights), experts(x, indices, weights.gather(1, indices)))


def test_fused_experts_is_what_the_module_calls():
    layer = quantize_experts(_layer(), "int8")
    x, indices, weights = torch.randn(3, 64), torch.randint(0, 8, (3, 2)), torch.rand(3, 2)
    experts = layer.experts
    want = fused_experts(x, indices, weights, experts.gate_up_proj.weight, experts.down_proj.weight)
    assert torch.equal(experts(x, indices, weights), want)
