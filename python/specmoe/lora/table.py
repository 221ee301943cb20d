"""The table of expert by domain."""

from __future__ import annotations

from .evaluate import Evaluation


def table(evaluation: Evaluation) -> str:
    """Returns the losses as a Markdown table, systems down, domains across; the best expert of a domain is marked."""
    domains = list(next(iter(evaluation.losses.values())))
    best = {d: min(evaluation.experts, key=lambda name: evaluation.losses[name][d], default=None) for d in domains}
    lines = [["", *domains], ["---", *(["--:"] * len(domains))]]
    for system, losses in evaluation.losses.items():
        marks = ["*" if best[domain] == system else "" for domain in losses]
        lines.append([system, *(f"{losses[d]:.3f}{mark}" for d, mark in zip(losses, marks, strict=True))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
