"""Triton kernels compiled for a GPU that is not there, and what the compiled code needs.

A specimen is one specialization of a kernel as its host side launches it. The files `specimens_<op>.py` beside this one
have a function `specimens(target)` that gives those of an op's kernels. As a program, this prints every specimen's
report for one target, in JSON:

    python tests/backends/triton/compiled.py sm_90 [op …]
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Registers of a processor, which a program's threads share on NVIDIA; and the most that a thread may have, on AMD (with
# the accumulation registers where there are any).
REGISTER_FILE = 65536
AMD_REGISTERS = {"gfx90a": 512, "gfx942": 512, "gfx1100": 256}

# Name, Triton's target, and the shared memory that one program may have.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166912),
    "sm_90": (GPUTarget("cuda", 90, 32), 232448),
    "sm_100": (GPUTarget("cuda", 100, 32), 232448),
    "gfx90a": (GPUTarget("hip", "gfx90a", 64), 65536),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65536),
    "gfx1100": (GPUTarget("hip", "gfx1100", 32), 65536),
}


@dataclass(frozen=True)
class Specimen:
    """A kernel with its arguments' types.

    Attributes:
        name: what the test's id shows.
        kernel: the `triton.jit` function.
        types: argument to Triton type, such as "*bf16", "i32", "fp32" or "tensordesc<bf16[64,128]>"; those in `aligned`
            are multiples of 16 (pointers: aligned to 16 bytes).
        constants: `tl.constexpr` arguments, and others whose value is fixed (None, 1).
        options: num_warps, num_stages and other compiler options.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What the compiled kernel needs: registers and bytes of spills a thread, bytes of shared memory, threads."""

    registers: int
    spilled: int
    shared: int
    threads: int


def compile_specimen(specimen: Specimen, target: str) -> Report:
    """Compile a kernel ahead of time and read its needs from the result."""
    gpu, _ = TARGETS[target]
    names = specimen.kernel.arg_names
    signature = {n: "constexpr" if n in specimen.constants else specimen.types[n] for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in specimen.aligned}
    constants = {(names.index(n),): v for n, v in specimen.constants.items()}
    source = ASTSource(specimen.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=gpu, options=specimen.options)
    shared = compiled.metadata.shared
    if gpu.backend == "cuda":
        registers, spilled = _cuda_needs(compiled.asm["cubin"])
    else:
        registers, spilled = _amd_needs(compiled.asm["amdgcn"])
    return Report(registers, spilled, shared, compiled.metadata.num_warps * gpu.warp_size)


def _cuda_needs(cubin: bytes) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        call = [tool, "--dump-resource-usage", str(path)]
        text = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2]) + int(found[3])


def _amd_needs(text: str) -> tuple[int, int]:
    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        assert found is not None, f"no {name} in the assembly"
        return int(found[1])

    return number("vgpr_count"), number("private_segment_fixed_size")


def problems(report: Report, target: str) -> list[str]:
    """Return what is wrong with a compiled kernel: memory that a program does not have, or registers that spill."""
    limit = TARGETS[target][1]
    found = []
    if report.shared > limit:
        found.append(f"{report.shared} bytes of shared memory, {target} has {limit}")
    if target in AMD_REGISTERS and report.registers > AMD_REGISTERS[target]:
        found.append(f"{report.registers} registers a thread, {target} has {AMD_REGISTERS[target]}")
    if target not in AMD_REGISTERS and report.registers * report.threads > REGISTER_FILE:
        found.append(f"{report.registers} registers for each of {report.threads} threads, there are {REGISTER_FILE}")
    if report.spilled:
        found.append(f"{report.spilled} bytes of spills or stack a thread")
    return found


def all_specimens(target: str, only: list[str]) -> list[Specimen]:
    """Return the specimens of the files beside this one, or of those of the ops named."""
    found: list[Specimen] = []
    for path in sorted(Path(__file__).parent.glob("specimens_*.py")):
        if only and path.stem.removeprefix("specimens_") not in only:
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [s for s in module.specimens(target)]
    return found


def main(target: str, *only: str) -> None:
    for specimen in all_specimens(target, list(only)):
        line: dict[str, Any] = {"name": specimen.name}
        try:
            report = compile_specimen(specimen, target)
            line |= {**vars(report), "problems": problems(report, target)}
        # One kernel that does not compile must not hide the others.
        except Exception as error:
            line["problems"] = [f"does not compile: {error}"]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    # The specimen files import this module by its name.
    sys.path.insert(0, str(Path(__file__).parent))
    import compiled

    compiled.main(*sys.argv[1:])
