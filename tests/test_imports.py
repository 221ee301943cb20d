"""What imports what: one way, and with each optional package blocked in turn."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A layer may import those after it, never those before.
LAYERS = (
    ("specmoe.cli",),
    ("specmoe.demo",),
    ("specmoe.hierarchical", "specmoe.lora", "specmoe.specialists"),
    ("specmoe.experts", "specmoe.routing"),
    ("specmoe.training",),
    ("specmoe.offload",),
    ("specmoe.transformer", "specmoe.speculation", "specmoe.notation", "specmoe.decoding"),
    ("moe_kernels.integrations",),
    ("moe_kernels.quantized",),
    ("moe_kernels.layer", "moe_kernels.testing"),
    ("moe_kernels.capacity", "moe_kernels.losses", "moe_kernels.parallel"),
    ("moe_kernels.ops",),
    ("moe_kernels.registry", "moe_kernels.validation", "moe_kernels.gradients"),
    ("moe_kernels.preferences",),
    ("moe_kernels.quantized_weights",),
    ("moe_kernels.backends",),
    ("moe_kernels.native", "moe_kernels.number_formats"),
)


def _modules():
    for base in (ROOT, ROOT / "python"):
        for package in ("moe_kernels", "specmoe"):
            for path in sorted((base / package).rglob("*.py")):
                name = ".".join(path.relative_to(base).with_suffix("").parts)
                yield name.removesuffix(".__init__"), path


def _imports(path: Path):
    """Yield (module, whether it is imported at the top) for each import in a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in tree.body
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in tree.body


def _layer(module: str) -> int | None:
    for i, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return i
    return None


def test_one_way():
    for module, path in _modules():
        mine = _layer(module)
        for imported, _ in _imports(path):
            theirs = _layer(imported)
            if mine is not None and theirs is not None:
                assert mine <= theirs, f"{module} imports {imported}, which is above it"


def test_backends_do_not_import_each_other():
    for module, path in _modules():
        parts = module.split(".")
        if parts[:2] == ["moe_kernels", "backends"] and len(parts) > 2:
            for imported, _ in _imports(path):
                other = imported.split(".")
                if other[:2] == ["moe_kernels", "backends"] and len(other) > 2:
                    assert other[2] == parts[2], f"{module} imports {imported}"


def test_speculation_knows_no_files_or_devices():
    for module, path in _modules():
        if module.startswith("specmoe.speculation"):
            for imported, _ in _imports(path):
                assert not imported.startswith("specmoe.offload"), f"{module} imports {imported}"


def test_moe_kernels_imports_only_torch():
    for module, path in _modules():
        if module.startswith("moe_kernels") and "integrations" not in module:
            allowed = {"moe_kernels", "torch", *sys.stdlib_module_names}
            if module.startswith("moe_kernels.backends.triton"):
                allowed.add("triton")
            for imported, _ in _imports(path):
                assert imported.split(".")[0] in allowed, f"{module} imports {imported}"


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r} or name.startswith({name!r} + "."):
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
import torch, moe_kernels
layer = moe_kernels.MoELayer(16, 8, 4, 2)
layer(torch.randn(3, 16)).sum().backward()
assert moe_kernels.available_backends()["reference"] is None
assert {name!r} not in sys.modules
"""


@pytest.mark.parametrize(
    "name", ["triton", "moe_kernels._C", "moe_kernels._cuda", "transformers", "numpy", "peft", "safetensors"]
)
def test_works_without(name):
    done = subprocess.run([sys.executable, "-c", BLOCKED.format(name=name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_loads_no_heavy_package():
    heavy = "[m for m in ('transformers', 'triton', 'peft', 'specmoe') if m in sys.modules]"
    code = f"import sys, moe_kernels; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # torch itself may import triton where that is installed.
    assert set(ast.literal_eval(done.stdout)) <= {"triton"}


def test_the_engine_loads_no_compiler():
    # Seconds, and more than 100 MB; and still told of it when somebody compiles.
    code = (
        "import sys, specmoe.offload, moe_kernels.integrations.experts as e; "
        "assert 'torch._dynamo' not in sys.modules; "
        "import torch._dynamo; assert e.recognize._dynamo_marked_constant"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_front_page_is_short():
    assert len((ROOT / "moe_kernels" / "__init__.py").read_text().splitlines()) <= 40
