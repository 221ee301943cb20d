"""The router that is used when none is named: trained once on the default domains, then read from the cache."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import xxhash

from ..training.data import DOMAINS, load_domain, split
from .linear import LinearRouter
from .phrasings import patterns
from .training import RouterSettings, train_router


def default_router(settings: RouterSettings | None = None, seed: int = 0) -> LinearRouter:
    """Returns the router of the five domains; the first call trains it, which takes about 20 seconds.

    It is trained on the training side of each domain's split, so that the other sides stay unseen.

    Args:
        settings: how to train; None for the defaults.
        seed: of the domains' records and their split.
    """
    settings = settings or RouterSettings()
    path = _cached(settings, seed)
    if path.is_file():
        try:
            return LinearRouter.load(path)
        except ValueError:
            pass  # damaged: trained anew and replaced
    prompts = {
        domain: [record.prompt for record in split(load_domain(domain, seed=seed), seed=seed)["train"]]
        for domain in DOMAINS
    }
    router = train_router(prompts, settings)
    router.save(path)
    return router


def _cached(settings: RouterSettings, seed: int) -> Path:
    """Returns where the router lies whose data and settings are these."""
    told = [repr(dataclasses.astuple(settings)), str(seed), sys.version, os.environ.get("MOE_DATA_DIR", "")]
    told += [line for domain in DOMAINS for line in patterns(domain)]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specmoe"
    return folder / f"router-{xxhash.xxh64_hexdigest(chr(0).join(told).encode())}.npz"
