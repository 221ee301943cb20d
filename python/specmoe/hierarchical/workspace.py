"""A folder of experts: the plan, the tokenizer, the router, and one folder for each expert."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from ..training.checkpoints import clean_leftovers, publish, put_back, verify
from ..training.data import DOMAINS, Record, encode_records, train_tokenizer
from ..training.errors import CheckpointError
from ..training.run_state import quiet_progress_bars
from ..training.tuning.tune import MODEL_DIR
from .networks import new_network, pretrained_network, pretrained_tokenizer
from .plan import Plan, read_plan, write_plan
from .records import domain_records
from .router import TwoLevelRouter, train_two_level

TOKENIZER_DIR, ROUTER_DIR = "tokenizer", "router"


class Workspace:
    """Opens a folder of experts; what is shared is made when it is first asked for."""

    def __init__(self, root: Path, plan: Plan | None = None) -> None:
        """Opens the folder.

        Args:
            root: the folder.
            plan: its plan, written when the tokenizer is made; None reads it.

        Raises:
            CheckpointError: it has no plan.
        """
        self.root = root
        self.plan = plan or read_plan(root)
        self._records: dict[str, dict[str, list[Record]]] = {}

    def records(self, domain: str) -> dict[str, list[Record]]:
        """Returns the records of each side of a domain, read once."""
        if domain not in self._records:
            self._records[domain] = domain_records(self.plan, domain)
        return self._records[domain]

    def encoded(self, records: list[Record]) -> Any:
        """Returns records as `encode_records` does, those that fit into the context."""
        return encode_records(records, self.tokenizer, self.plan.size.context)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of all experts; the first time it is trained on all domains' records."""
        path = self.root / TOKENIZER_DIR
        if not path.is_dir():
            clean_leftovers(self.root)
            mixed = [record for domain in DOMAINS for record in self.records(domain)["train"]]
            if self.plan.init is not None:
                made = pretrained_tokenizer(self.plan.init)
            else:
                made = train_tokenizer(mixed, self.plan.size.vocab_size)
            # Only now: a plan whose records or network cannot be had is not kept.
            write_plan(self.root, self.plan)
            publish(self.root, TOKENIZER_DIR, made.save_pretrained)
        verify(path)
        return AutoTokenizer.from_pretrained(path)

    @cached_property
    def router(self) -> TwoLevelRouter:
        """The two-level router; the first time it is trained, which takes about half a minute."""
        path = self.root / ROUTER_DIR
        if not path.is_dir():
            clean_leftovers(self.root)
            prompts = {name: [record.prompt for record in self.records(name)["train"]] for name in DOMAINS}
            publish(self.root, ROUTER_DIR, train_two_level(prompts).save)
        verify(path)
        return TwoLevelRouter.load(path)

    def folder(self, domain: str) -> Path:
        """Returns an expert's folder."""
        return self.root / domain

    def finished(self, domain: str, part: str = "") -> bool:
        """Says whether an expert, or the part of its training with this name, is done and its model whole."""
        put_back(self.folder(domain) / part, MODEL_DIR)
        try:
            verify(self.folder(domain) / part / MODEL_DIR)
        except CheckpointError:
            return False
        return True

    def untrained(self, domain: str) -> GPT2LMHeadModel:
        """Returns the network that an expert begins as."""
        # Each expert begins elsewhere, and always in the same place.
        seed = self.plan.seed * len(DOMAINS) + DOMAINS.index(domain)
        if self.plan.init is not None:
            return pretrained_network(self.plan.init, self.tokenizer, seed)
        return new_network(self.plan.size, self.tokenizer, seed)

    def expert(self, domain: str, part: str = "") -> GPT2LMHeadModel:
        """Returns a trained expert, ready to be asked.

        Args:
            domain: which one.
            part: the part of its training that made it; "" for the last.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        put_back(self.folder(domain) / part, MODEL_DIR)
        path = self.folder(domain) / part / MODEL_DIR
        if not path.is_dir():
            raise CheckpointError(
                f"hierarchical: {path}: expected the {domain} expert, found none; "
                f"`specmoe hierarchical train --expert {domain} --output {self.root}` makes it"
            )
        verify(path)
        with quiet_progress_bars():
            return GPT2LMHeadModel.from_pretrained(path, dtype=torch.float32).eval()

    def experts(self) -> dict[str, GPT2LMHeadModel]:
        """Returns all trained experts.

        Raises:
            CheckpointError: one is missing or damaged.
        """
        return {domain: self.expert(domain) for domain in DOMAINS}
