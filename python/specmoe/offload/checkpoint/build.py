"""From a checkpoint to a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..store import ExpertStore, StoreError, build_resumable
from ..store.packing import NAME as PACKED
from .experts import ExpertSource
from .files import Checkpoint


def build_checkpoint_store(
    model: str | Path,
    path: str | Path,
    *,
    quantize: str | None = None,
    pack: bool = False,
    progress: Callable[[int, int], None] | None = None,
    replace: bool = True,
) -> ExpertStore:
    """Write the experts of a checkpoint to a store, a tensor at a time, and open it; interrupted, it can be continued.

    Args:
        model: directory of the checkpoint.
        path: where the store shall be.
        quantize: None, "nf4" or "int8".
        pack: take a quarter less of the disk for experts in bfloat16, without loss; each read is then unpacked.
        progress: called with (experts written, experts in all).
        replace: what is at `path` is replaced when the new one is complete; with False it is left, and opened.

    Raises:
        CheckpointError: the checkpoint is damaged, or has no experts of a known kind.
        StoreError: the disk is full, another process builds the same store, or experts cannot be packed.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise StoreError(f"store {path}: expected an existing folder {path.parent}")
    checkpoint = Checkpoint(model)
    source = ExpertSource(checkpoint, quantize)
    build_resumable(
        path,
        source.keys,
        source.expert,
        fingerprint=f"{checkpoint.fingerprint()} {quantize}",
        packing=PACKED if pack else "",
        source=f"{checkpoint.config.get('model_type')} {checkpoint.fingerprint()}",
        groups=tuple(group.name for group in source.groups),
        quantization=quantize or "",
        progress=progress,
        replace=replace,
    )
    return ExpertStore.open(path)
