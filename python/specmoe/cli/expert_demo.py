"""Prompts, how they are routed, and their answers as they are generated."""

from __future__ import annotations

import dataclasses

import typer

from ..hierarchical import Decoding, Workspace, generate, mixing_weights
from .printer import Printer

PROMPTS = (
    "What is 15 + 27?",
    "Anna has 24 apples, loses 4 and shares the rest equally among 5 friends. How many apples does each friend get?",
    "All robots are brave. All cats are robots. Are all cats brave?",
    "Write a Python function to reverse a string.",
    "Hello! How are you today?",
    "Explain Python's for statement.",
)


class Session:
    """Answers prompts with all experts in memory.

    Args:
        workspace: the folder of experts.
        decoding: how tokens are chosen; each prompt draws from a seed of its own.
        top: the most experts that are mixed.
    """

    def __init__(self, workspace: Workspace, decoding: Decoding, top: int) -> None:
        self.workspace, self.decoding, self.top = workspace, decoding, top
        self.experts = workspace.experts()
        self.asked = 0

    def ask(self, text: str) -> None:
        """Prints a prompt, its routing, and the answer as it comes."""
        route = self.workspace.router.explain(text)
        groups = self.workspace.router.group_probabilities(text)
        typer.echo(f"> {text}")
        typer.echo(f"  group:  {_shares(sorted(groups.items(), key=lambda pair: -pair[1]))}")
        typer.echo(f"  expert: {_shares(sorted(route.probabilities.items(), key=lambda pair: -pair[1])[:3])}", nl=False)
        typer.echo("" if route.domain else "  (not certain)")
        typer.echo(f"  because of: {', '.join(route.reasons[:5]) or 'nothing that it knows'}")
        weights = mixing_weights([route], list(self.experts), self.top)
        printer = Printer(self.workspace.tokenizer)
        decoding = dataclasses.replace(self.decoding, seed=self.decoding.seed + self.asked)
        messages = [{"role": "user", "content": text}]
        (answer,) = generate(self.experts, self.workspace.tokenizer, [messages], weights, decoding, printer.show)
        printer.finish()
        typer.echo("" if answer.stopped else "  (cut at the limit)\n")
        self.asked += 1


def _shares(pairs: list[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in pairs)
