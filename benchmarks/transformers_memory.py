"""Peak memory of bench_transformers' model above what the model itself takes, with our experts and with theirs.

`python benchmarks/transformers_memory.py`: a process for each; prefill of 512 tokens, then 8
sequences of 16 tokens and 16 more. Peaks of resident memory, as the system counts them.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from bench_transformers import THEIRS, make_model


def _peak() -> float:
    """MiB, the largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(implementation: str) -> None:
    """Print the peaks of one implementation."""
    import moe_kernels  # noqa: F401

    model = make_model(small=False)
    model.set_experts_implementation(implementation)
    ids = torch.randint(0, model.config.vocab_size, (8, 512), generator=torch.Generator().manual_seed(1))
    start = _peak()
    with torch.inference_mode():
        model(ids[:1], logits_to_keep=1)
        prefill = _peak()
        prompt = ids[:, :16]
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, pad_token_id=0)
    print(f"{implementation}: prefill {prefill - start:.0f} MiB, generation {_peak() - start:.0f} MiB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        for name in ("moe_kernels", THEIRS):
            subprocess.run([sys.executable, __file__, name], check=True)
