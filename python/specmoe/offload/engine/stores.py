"""The store that a model is offloaded to: opened where there is one, written where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import nn

from ..budget import fits_page_cache, free_memory
from ..checkpoint import Checkpoint, build_checkpoint_store
from ..locations import cache_dir
from ..store import ExpertKey, ExpertStore, StoreError, build_store, discard_log
from ..store.builder import remove_unlocked
from .adapters import expert_weights, moe_blocks


def build_model_store(
    model: nn.Module, path: str | Path, *, source: str = "", progress: Callable[[int, int], None] | None = None
) -> ExpertStore:
    """Write all experts of a model to a store and open it (see `ExpertStore.build`)."""
    blocks = moe_blocks(model)
    keys = [ExpertKey(block.layer, e) for block in blocks for e in range(block.num_experts)]
    build_store(path, keys, lambda key: expert_weights(blocks[key.layer], key.expert), source=source, progress=progress)
    return ExpertStore.open(path)


def default_store(folder: str | Path, quantize: str | None = None, pack: bool = False) -> Path:
    """Return where a checkpoint's store is kept unless somebody says otherwise."""
    kind = (f"-{quantize}" if quantize else "") + ("-packed" if pack else "")
    name = f"{Path(folder).absolute().name}-{Checkpoint(folder).fingerprint()}{kind}"
    return cache_dir() / "stores" / f"{name}.store"


def model_store(
    model: nn.Module, store: ExpertStore | str | Path | None, budget: int, direct: bool | None
) -> tuple[ExpertStore, bool]:
    """Return a model's store, and whether this module opened it."""
    if isinstance(store, ExpertStore):
        return store, False
    if store is not None:
        if not Path(store).exists():
            build_model_store(model, store).close()
        return _open(Path(store), budget, direct), True
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    remove_dead_stores(folder)
    path = folder / f"offload-{os.getpid()}-{os.urandom(4).hex()}.store"
    try:
        build_model_store(model, path).close()
        return _open(path, budget, direct), True
    finally:
        # It is read through the open file, and gone when that is closed, however the process ends. Windows keeps the
        # name while it is open: the next call removes it.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)


def remove_dead_stores(folder: Path) -> list[Path]:
    """Delete what killed processes have left of models in memory, written in full or in part; return it."""
    removed = remove_unlocked(path for path in folder.glob(".offload-*-*.store.*.tmp") if not _alive(path))
    for path in folder.glob("offload-*-*.store"):
        if not _alive(path):
            with suppress(PermissionError):
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _alive(path: Path) -> bool:
    """Whether the process that a store is named after runs."""
    number = path.name.split("-")[1]
    if not number.isdigit():
        return True
    process = int(number)
    if os.name != "posix":
        # There `os.kill` ends what it asks about; and an open file cannot be deleted, whoever has it open.
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Somebody else's.
    return True


def checkpoint_store(
    folder: str | Path,
    store: ExpertStore | str | Path | None,
    quantize: str | None,
    pack: bool,
    check: bool,
    budget: int,
    direct: bool | None,
) -> tuple[ExpertStore, bool]:
    """Return a checkpoint's store, written if there is none, and whether this module opened it."""
    if isinstance(store, ExpertStore):
        opened, owned = store, False
    else:
        path = default_store(folder, quantize, pack) if store is None else Path(store)
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            discard_log(path)
        else:
            build_checkpoint_store(folder, path, quantize=quantize, pack=pack, replace=False).close()
        opened, owned = _open(path, budget, direct), True
    try:
        if quantize is not None and opened.layout.quantization != quantize:
            raise StoreError(
                f"store {opened.path}: expected it to be quantized to {quantize}, got "
                f"{opened.layout.quantization or 'weights as they are'}"
            )
        if pack and not opened.layout.packing:
            raise StoreError(f"store {opened.path}: expected it to be packed, got weights as they are: write it anew")
        if check and not opened.layout.source.endswith(Checkpoint(folder).fingerprint()):
            raise StoreError(f"store {opened.path}: it was made from another model than the one in {folder}")
    except BaseException:
        if owned:
            opened.close()
        raise
    return opened, owned


def _open(path: Path, budget: int, direct: bool | None) -> ExpertStore:
    if direct is None:
        direct = not fits_page_cache(path.stat().st_size, budget, free_memory())
    return ExpertStore.open(path, direct=direct)
