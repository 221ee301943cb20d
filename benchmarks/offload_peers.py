"""Generate with experts on disk, under one memory limit: this project, a memory map, transformers.

    python benchmarks/offload_peers.py CHECKPOINT [--memory 2GiB] [--limit 2.75GiB] [--tokens 24] [--output FOLDER]

Every arm is a process of its own in a control group with the limit, which counts page cache too; before each, the
pages of the checkpoint and the store are evicted. Where no group can be made, the table says "no limit", and pages are
evicted all the same. All arms are given the same random tokens, so that they use the same experts; the first quarter
of them fills caches and is not timed. With `--arms resident` first, which needs memory for all experts, logits are
compared with those of the model in memory. Results of arms that were run before stay in FOLDER/peers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from memory_limit import LimitedMemory, limited_memory
from peers import disk_offload, mapped_experts
from torch import Tensor

from specmoe.offload import ExpertStore, build_checkpoint_store, format_bytes, offload, parse_bytes
from specmoe.offload.bench.arms import MODEL_ARMS, storage_bytes
from specmoe.offload.bench.mapped import MappedFile
from specmoe.offload.bench.policies import policy_of
from specmoe.offload.bench.report import machine
from specmoe.offload.engine.loading import dense_bytes
from specmoe.offload.engine.stores import default_store
from specmoe.offload.store import drop_cached_pages
from specmoe.speculation import Oracle

RESIDENT, PEER, MAP = "resident", "transformers, disk offload", "experts in a memory map"
ENGINE = {arm.name: arm for arm in MODEL_ARMS if not arm.resident}
PACKED = ", packed"
ARMS = (PEER, MAP, *ENGINE, *(name + PACKED for name, arm in ENGINE.items() if not arm.mapped))
PROMPT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--store", type=Path, help="by default in the cache folder, written if it is not there")
    parser.add_argument("--packed", type=Path, help="a store of the same checkpoint with --pack, for the arms packed")
    parser.add_argument("--memory", default="2GiB", help="for experts")
    parser.add_argument("--limit", default="2.75GiB", help="of the process, page cache included")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--arms", nargs="+", choices=[RESIDENT, *ARMS], help="by default all that have their store")
    parser.add_argument("--output", type=Path, default=Path("offload-peers"))
    parser.add_argument("--scratch", type=Path, help="folder for what transformers writes; by default a temporary one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arms is None:
        options.arms = [arm for arm in ARMS if options.packed is not None or not arm.endswith(PACKED)]
    if options.packed is None and any(arm.endswith(PACKED) for arm in options.arms):
        parser.error("--packed: expected a store for the arms packed, got none")
    if options.store is None:
        options.store = default_store(options.checkpoint)
    if options.child is not None:
        print(json.dumps(CHILDREN.get(options.child, engine)(options)))
        return
    if not options.store.exists():
        build_checkpoint_store(options.checkpoint, options.store).close()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "peers.json"
    rows: dict[str, Any] = json.loads(path.read_text())["arms"] if path.exists() else {}
    for arm in options.arms:
        rows[arm] = run(arm, options)
        content = {"machine": machine(), "memory": options.memory, "limit": options.limit, "arms": rows}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(line(arm, rows[arm]), flush=True)


def run(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one arm in a process of its own; return what it measured."""
    stores = [store for store in (options.store, options.packed) if store is not None]
    for file in (*options.checkpoint.iterdir(), *stores):
        drop_cached_pages(file)
    command = [sys.executable, __file__, *sys.argv[1:], "--child", arm]
    limit = parse_bytes(options.limit, argument="--limit")
    with limited_memory(limit) if arm != RESIDENT else _unlimited() as group:
        done = group.run(command, stdout=-1)
        if done.returncode:
            raise SystemExit(f"{arm}: ended with {done.returncode}")
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row | {"group_peak_bytes": group.peak(), "limited": group.folder is not None}


class _unlimited:
    def __enter__(self) -> LimitedMemory:
        return LimitedMemory(None)

    def __exit__(self, *_: object) -> None:
        pass


def line(arm: str, row: dict[str, Any]) -> str:
    """Return a row of the table."""
    error = row["error"]
    same = "not compared" if error is None else "same bits" if error == 0 else f"error {error:.1e}"
    held, read = row["group_peak_bytes"], format_bytes(row["disk_bytes_per_token"])
    return (
        f"{arm:28} {row['tokens_per_second']:7.3f} tokens/s, {read:>8} from disk a token, "
        f"peak {format_bytes(row['peak_bytes'])} (group: {'no limit' if held is None else format_bytes(held)}), "
        f"first token {row['first_seconds']:.1f} s, {same}"
    )


def resident(options: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from moe_kernels import patch

    model = patch(AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype="auto").eval())
    return measure(model, options, options.tokens, keep=True)


def transformers_offload(options: argparse.Namespace) -> dict[str, Any]:
    # What it keeps in memory may be as much as ours: the budget and what is not experts.
    memory = parse_bytes(options.memory) + dense_part(options)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        model = disk_offload.load(options.checkpoint, memory, Path(folder))
        for file in Path(folder).iterdir():
            drop_cached_pages(file)
        places = sorted({str(place) for place in model.hf_device_map.values()})
        return measure(model, options, options.tokens) | {"places": places}


def mapped(options: argparse.Namespace) -> dict[str, Any]:
    with ExpertStore.open(options.store) as store:
        return measure(mapped_experts.load(options.checkpoint, store), options, options.tokens)


def engine(options: argparse.Namespace) -> dict[str, Any]:
    arm = ENGINE[options.child.removesuffix(PACKED)]
    store = options.packed if options.child.endswith(PACKED) else options.store
    with offload(options.checkpoint, store, memory=options.memory, direct=True) as opened:
        guess: Any = {"predicted": "next_gate"}.get(str(arm.guess), arm.guess)
        if guess == "oracle":
            guess = Oracle(routes_of(opened, options), opened.blocks[0].num_experts)
        opened.configure(guess, gated=arm.gated, keep=arm.keep, policy=policy_of(arm, None, opened.tier.slots))
        if arm.mapped:
            file = MappedFile(options.store)
            file.forget()
            opened.store.file.read_into = file.read_into  # type: ignore[method-assign]
        row = measure(opened.model, options, options.tokens)
        stats = opened.tier.settle()
        return row | {"hit_rate": stats.hit_rate, "slots_bytes": opened.tier.pool.nbytes, "load": stats.loads}


def routes_of(opened: Any, options: argparse.Namespace) -> Any:
    from specmoe.offload import record_routes

    opened.configure(None)
    with record_routes(opened.model) as passes:
        forced(opened.model, *tokens_of(options, options.tokens))
    return passes


CHILDREN = {RESIDENT: resident, PEER: transformers_offload, MAP: mapped}


def dense_part(options: argparse.Namespace) -> int:
    """Return the bytes of the checkpoint that are not experts."""
    with ExpertStore.open(options.store) as store:
        whole = sum(file.stat().st_size for file in options.checkpoint.glob("*.safetensors"))
        return whole - store.layout.expert_bytes


def tokens_of(options: argparse.Namespace, count: int) -> tuple[Tensor, Tensor]:
    """Return a prompt (1, PROMPT) and what follows it (count): random, and the same for all arms."""
    vocabulary = json.loads((options.checkpoint / "config.json").read_text())["vocab_size"]
    ids = torch.randint(3, vocabulary, (1, PROMPT + options.tokens), generator=torch.Generator().manual_seed(0))
    return ids[:, :PROMPT], ids[0, PROMPT : PROMPT + count]


def forced(model: Any, prompt: Tensor, after: Tensor) -> tuple[Tensor, list[float]]:
    """Generate the tokens `after`; return the logits (N, V) that the model had for each, and when it had them."""
    logits, stamps = [], [time.perf_counter()]

    def force(ids: Tensor, scores: Tensor) -> Tensor:
        stamps.append(time.perf_counter())
        logits.append(scores[0].float().clone())
        return torch.full_like(scores, -torch.inf).index_fill_(1, after[len(logits) - 1 : len(logits)], 0.0)

    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(after),
        min_new_tokens=len(after),
        do_sample=False,
        pad_token_id=0,
        logits_processor=[force],
    )
    return torch.stack(logits), stamps


def measure(model: Any, options: argparse.Namespace, count: int, keep: bool = False) -> dict[str, Any]:
    """Generate, and return the figures of this process; with `keep` the logits become what others are compared with."""
    expected = options.output / "logits.pt"
    read = storage_bytes()
    prompt, after = tokens_of(options, count)
    loaded = status("VmRSS")
    logits, stamps = forced(model, prompt, after)
    now = storage_bytes()
    untimed = max(1, count // 4)
    if keep:
        torch.save(logits, expected)
    error = None
    if expected.exists():
        want = torch.load(expected)[:count]
        error = 0.0 if torch.equal(want, logits) else float((logits - want).norm() / want.norm())
    return {
        "tokens_per_second": (count - untimed) / (stamps[-1] - stamps[untimed]),
        "token_seconds": [b - a for a, b in zip(stamps, stamps[1:], strict=False)],
        "first_seconds": stamps[1] - stamps[0],
        "disk_bytes_per_token": 0 if now is None or read is None else (now - read) / count,
        "loaded_bytes": loaded,
        "dense_bytes": dense_bytes(model) if keep is False else None,
        "peak_bytes": status("VmHWM"),
        "error": error,
    }


def status(field: str) -> int:
    """Return a size from this process's status: "VmRSS", now resident, or "VmHWM", the most that ever was."""
    text = Path("/proc/self/status").read_text()
    return next(1024 * int(row.split()[1]) for row in text.splitlines() if row.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
