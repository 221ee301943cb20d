"""Build the native modules with CMake while setuptools packs the Python packages.

Two environment variables decide what is built:

- ``MOE_KERNELS_NATIVE=auto|off``: the C++ core ``moe_kernels._C``. ``auto`` builds it where a C++17 compiler works;
  without one the package installs as pure Python.
- ``MOE_KERNELS_CUDA=auto|on|off``: the CUDA kernels ``moe_kernels._cuda``. ``auto`` builds them for the GPU of this
  machine when nvcc is there too; ``on`` builds every supported architecture, GPU or not, and fails where it cannot.

What was built, and why the rest was not, is written to ``moe_kernels/_build.json``.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
NATIVE_CHOICES = ("auto", "off")
CUDA_CHOICES = ("auto", "on", "off")
# The "a" variant of sm_90 has the Hopper-only instructions (wgmma, setmaxnreg).
CUDA_ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
PROBE = """\
#include <Python.h>
#include <optional>
#include <thread>
int probe() { std::thread t([] {}); t.join(); return std::optional<int>(PY_MAJOR_VERSION).value(); }
"""


def env_choice(name: str, valid: tuple[str, ...]) -> str:
    """Read an environment variable whose default is the first valid value."""
    value = os.environ.get(name, "").strip().lower() or valid[0]
    if value not in valid:
        raise SystemExit(f"moe-kernels: {name}: expected one of {', '.join(valid)}, got {os.environ[name]!r}")
    return value


@dataclass(frozen=True)
class Native:
    """Whether the C++ core can be built, with which compiler, or why not."""

    compiler: str | None
    reason: str | None


@functools.cache
def plan_native() -> Native:
    if env_choice("MOE_KERNELS_NATIVE", NATIVE_CHOICES) == "off":
        return Native(None, "MOE_KERNELS_NATIVE=off when the package was installed")
    if sys.platform == "win32":
        return Native(None, "the native core is written for GCC and Clang; on Windows the package is pure Python")
    named = os.environ.get("CXX", "").strip()
    reasons = []
    for candidate in [named] if named else ["c++", "g++", "clang++"]:
        problem = try_compiler(candidate)
        if problem is None:
            return Native(candidate, None)
        reasons.append(problem)
    return Native(None, "no working C++17 compiler: " + "; ".join(reasons))


def try_compiler(command: str) -> str | None:
    """Compile and link a small Python module; return None if that works, else what went wrong."""
    words = shlex.split(command)
    if shutil.which(words[0]) is None:
        return f"{words[0]}: not found"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE)
        flags = ["-std=c++17", "-fPIC", "-shared", "-pthread", f"-I{sysconfig.get_path('include')}"]
        if sys.platform == "darwin":
            flags += ["-undefined", "dynamic_lookup"]
        call = [*words, *flags, str(source), "-o", str(Path(folder, "probe.so"))]
        try:
            done = subprocess.run(call, capture_output=True, text=True)
        except OSError as error:
            return f"{words[0]}: {error.strerror}"
    if done.returncode == 0:
        return None
    return f"{words[0]}: {first_error(done.stderr).replace(str(source), 'probe.cpp')}"


def first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")


def find_nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    found = (shutil.which(candidate) for candidate in [*candidates, "/usr/local/cuda/bin/nvcc"] if candidate)
    return next((path for path in found if path), None)


def gpu_architectures() -> list[str]:
    """The architectures of this machine's GPUs, asked of the driver's own tool, empty where there is none."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    capabilities = {line.strip() for line in done.stdout.splitlines()} if done.returncode == 0 else set()
    numbers = sorted(int(c.replace(".", "")) for c in capabilities if c.replace(".", "").isdigit())
    return ["90a" if number == 90 else str(number) for number in numbers]


@dataclass(frozen=True)
class Cuda:
    """Whether the CUDA module is to be built, for which architectures, or why not."""

    nvcc: str | None
    architectures: tuple[str, ...]
    reason: str | None
    required: bool


def plan_cuda(native: Native) -> Cuda:
    mode = env_choice("MOE_KERNELS_CUDA", CUDA_CHOICES)

    def without(reason: str) -> Cuda:
        if mode == "on":
            raise SystemExit(f"moe-kernels: MOE_KERNELS_CUDA=on, but {reason}")
        return Cuda(None, (), reason, False)

    if mode == "off":
        return without("MOE_KERNELS_CUDA=off when the package was installed")
    if native.compiler is None:
        return without(f"the native core is not built: {native.reason}")
    nvcc = find_nvcc()
    if nvcc is None:
        return without("nvcc was not found (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda)")
    wanted = list(CUDA_ARCHITECTURES) if mode == "on" else gpu_architectures()
    if not wanted:
        return without("nvidia-smi shows no GPU on this machine (MOE_KERNELS_CUDA=on builds without one)")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    usable = [a for a in wanted if f"compute_{a.rstrip('a')}" in listed and int(a.rstrip("a")) >= 80]
    if not usable:
        return without(f"{nvcc} cannot build for compute capability {', '.join(wanted)} (8.0 is the lowest)")
    return Cuda(nvcc, tuple(usable), None, mode == "on")


def run_cmake(source: Path, build_dir: Path, options: list[str], environment: dict[str, str]) -> None:
    """Configure and build one CMake project; raise CalledProcessError with the whole output in it."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if not cmake or not ninja:
        missing = "cmake" if not cmake else "ninja"
        raise SystemExit(
            f"moe-kernels: {missing} not found; without build isolation install cmake, ninja, pybind11 first"
        )
    stamp = build_dir / "toolchain.txt"
    toolchain = json.dumps([sys.version, options, environment])
    if not stamp.is_file() or stamp.read_text() != toolchain:
        # CMake keeps the compiler of the first run, whatever it is told later.
        shutil.rmtree(build_dir, ignore_errors=True)
        build_dir.mkdir(parents=True)
        stamp.write_text(toolchain)
    configure = [cmake, "-S", str(source), "-B", str(build_dir), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    full_environment = {**os.environ, **environment}
    for call in (configure + options, [cmake, "--build", str(build_dir)]):
        subprocess.run(
            call, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=full_environment
        )


def pybind11_options() -> list[str]:
    """Point CMake at a copy of pybind11 that stays where it is.

    pip's isolated environment has a new path each time, which would recompile the bindings at every install.
    """
    import pybind11

    copy = BUILD_DIR / f"pybind11-{pybind11.__version__}"
    if not copy.is_dir():
        staging = copy.with_suffix(f".{os.getpid()}")
        shutil.copytree(Path(pybind11.__file__).parent, staging)
        staging.rename(copy)
    # The interpreter behind the virtual environment: another environment then reuses the same build.
    python = Path(sys.executable).resolve()
    return [f"-Dpybind11_DIR={copy / 'share' / 'cmake' / 'pybind11'}", f"-DPython_EXECUTABLE={python}"]


def install_module(name: str, build_dir: Path, target: Path) -> str:
    """Put the module in place by a rename, since a process may have the old one loaded; return the file's name."""
    built = build_dir / f"{name}{SUFFIX}"
    staging = target / f"{built.name}.new"
    shutil.copy2(built, staging)
    os.replace(staging, target / built.name)
    return built.name


class Build(build):
    """The usual build with the CMake step in the place of build_ext."""

    sub_commands = [("build_py", None), ("build_native", None)]

    def run(self) -> None:
        # A module deleted from the source would live on in every later wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildNative(Command):
    """Build the native modules and record the outcome."""

    description = "build the native modules with CMake"
    user_options = [("build-lib=", "d", "directory to build to")]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False
        self.written = ["_build.json"]

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        target = ROOT / "moe_kernels" if self.editable_mode else Path(self.build_lib or "build/lib", "moe_kernels")
        target.mkdir(parents=True, exist_ok=True)
        if plan_native().compiler is not None:
            # Once, before two threads ask for it.
            pybind11_options()
        # Beside each other: a single file of either takes a minute.
        with ThreadPoolExecutor(2) as pool:
            core, cuda = pool.submit(self.build_core, target), pool.submit(self.build_cuda, target)
        record = {"native": core.result(), "cuda": cuda.result()}
        (target / "_build.json").write_text(json.dumps(record, indent=2) + "\n")

    def build_core(self, target: Path) -> dict[str, object]:
        plan = plan_native()
        if plan.compiler is None:
            (target / f"_C{SUFFIX}").unlink(missing_ok=True)
            logging.warning("moe-kernels installs as pure Python, without its native kernels: %s", plan.reason)
            return {"built": False, "reason": plan.reason}
        build_dir = BUILD_DIR / "core"
        try:
            run_cmake(ROOT, build_dir, pybind11_options(), {"CXX": plan.compiler})
        except subprocess.CalledProcessError as error:
            print(error.stdout, file=sys.stderr)
            raise SystemExit(
                "moe-kernels: the native core does not compile (see above); MOE_KERNELS_NATIVE=off installs without it"
            ) from None
        self.written.append(install_module("_C", build_dir, target))
        isas = (build_dir / "built_isas.txt").read_text().split()
        return {"built": True, "reason": None, "compiler": plan.compiler, "instruction_sets": isas}

    def build_cuda(self, target: Path) -> dict[str, object]:
        plan = plan_cuda(plan_native())
        reason = plan.reason
        if plan.nvcc is not None:
            newest = max(int(a.rstrip("a")) for a in plan.architectures)
            codes = [f"{a}-real" for a in plan.architectures] + ([f"{newest}-virtual"] if plan.required else [])
            options = [*pybind11_options(), f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(codes)}"]
            build_dir = BUILD_DIR / "cuda"
            try:
                run_cmake(ROOT / "csrc" / "cuda", build_dir, options, {"CUDACXX": plan.nvcc})
                self.written.append(install_module("_cuda", build_dir, target))
                return {"built": True, "reason": None, "nvcc": plan.nvcc, "architectures": list(plan.architectures)}
            except subprocess.CalledProcessError as error:
                print(error.stdout, file=sys.stderr)
                reason = f"the CUDA kernels do not compile with {plan.nvcc}: {first_error(error.stdout)}"
            if plan.required:
                raise SystemExit(f"moe-kernels: MOE_KERNELS_CUDA=on, but {reason}")
            logging.warning("moe-kernels installs without its CUDA kernels: %s", reason)
        (target / f"_cuda{SUFFIX}").unlink(missing_ok=True)
        return {"built": False, "reason": reason}

    def get_source_files(self) -> list[str]:
        files = [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*")]
        return [str(f.relative_to(ROOT)) for f in files if f.is_file()]

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib or "build/lib", "moe_kernels")
        return [str(folder / name) for name in self.written]

    def get_output_mapping(self) -> dict[str, str]:
        return {path: str(Path("moe_kernels", Path(path).name)) for path in self.get_outputs()}


class NativeDistribution(Distribution):
    """A distribution whose wheel carries a platform tag only where the native core is built."""

    def has_ext_modules(self) -> bool:
        return plan_native().compiler is not None


env_choice("MOE_KERNELS_NATIVE", NATIVE_CHOICES)
env_choice("MOE_KERNELS_CUDA", CUDA_CHOICES)
setup(distclass=NativeDistribution, cmdclass={"build": Build, "build_native": BuildNative})
