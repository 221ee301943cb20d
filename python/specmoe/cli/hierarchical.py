"""`specmoe hierarchical`: small experts of five domains, trained from scratch, and a router in two levels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import UsageError, reports_errors

hierarchical = typer.Typer(
    name="hierarchical",
    help="Small experts of five domains, trained from scratch, and a router that mixes them.",
    no_args_is_help=True,
)
FOLDER = Path("runs") / "hierarchical"
DOMAINS = ("math", "reasoning", "code", "conversation", "knowledge")
Folder = Annotated[Path, typer.Option("--experts", help="Folder of the experts.")]
Progress = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Progress bars. Default: on a terminal.", show_default=False),
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token always.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that together have this probability.")]


@hierarchical.command()
@reports_errors
def train(
    expert: Annotated[str, typer.Option(help=f"{', '.join(DOMAINS)}, or all.")] = "all",
    output: Annotated[Path, typer.Option(help="Folder of the experts.")] = FOLDER,
    preset: Annotated[str | None, typer.Option(help="small or medium. Default: small.", show_default=False)] = None,
    init: Annotated[
        str | None, typer.Option(help="Begin as a trained GPT-2: a folder, or a hub name.", show_default=False)
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="DOMAIN=SOURCE: a file or a hub name; may be repeated.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most records of a domain.", show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps. Default: each domain's own.", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Records in a batch.", show_default=False)] = None,
    context: Annotated[int | None, typer.Option(min=16, help="Longest record in tokens.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(show_default=False)] = None,
    progress: Progress = None,
) -> None:
    """Train experts; what is finished stays, and what was interrupted goes on."""
    domains = _domains(expert)
    sources = _sources(source or [])

    from ..hierarchical import Workspace, claim_plan, train_experts
    from ..training import TrainingInterrupted

    plan = claim_plan(
        output, preset=preset, init=init, sources=sources, limit=limit, steps=steps, batch_size=batch_size,
        context=context, seed=seed,
    )  # fmt: skip
    workspace = Workspace(output, plan)
    try:
        train_experts(workspace, domains, typer.echo, progress)
        if expert == "all":
            typer.echo("router: two levels")
            workspace.router  # noqa: B018  (trains it where there is none)
    except TrainingInterrupted as stop:
        command = f"specmoe hierarchical train --expert {expert} --output {output}"
        raise KeyboardInterrupt(f"{stop}; continue with: {command}") from None


@hierarchical.command("eval")
@reports_errors
def evaluate(
    experts: Folder = FOLDER,
    prompts: Annotated[int, typer.Option(min=0, help="Held-out prompts of a domain to answer.")] = 100,
    top: Annotated[int, typer.Option(min=1, help="Most experts that are mixed.")] = 2,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of eval.json and losses.png. Default: the experts'.", show_default=False)
    ] = None,
) -> None:
    """Measure the experts on records that none of them has seen."""
    from ..hierarchical import Decoding, Workspace
    from ..hierarchical import evaluate as measure
    from ..training.files import replace_file
    from ..training.heat_map import plot_heat_map
    from .expert_tables import print_report

    workspace = Workspace(experts)
    decoding = Decoding(temperature, top_p, seed=seed)
    report = measure(workspace, prompts, decoding, top, tell=lambda line: typer.echo(line, err=True))
    folder = experts if output is None else output
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.as_json(), indent=1)
    replace_file(folder / "eval.json", lambda partial: partial.write_text(text))
    title = "Held-out loss, nats per token"
    table = {**report.losses, "routed": report.routed}
    plot_heat_map(table, folder / "losses.png", title, rows="expert", columns="domain")
    print_report(report)
    typer.echo(f"written: {folder / 'eval.json'}, {folder / 'losses.png'}")


@hierarchical.command()
@reports_errors
def demo(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to ask. Default: some prompts, then what is typed.")
    ] = None,
    experts: Folder = FOLDER,
    top: Annotated[int, typer.Option(min=1, help="Most experts that are mixed.")] = 2,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """Show how prompts are routed, and the answers as they are generated."""
    from ..hierarchical import Decoding, Workspace
    from .expert_demo import PROMPTS, Session

    session = Session(Workspace(experts), Decoding(temperature, top_p, seed=seed), top)
    for text in prompt or PROMPTS:
        session.ask(text)
    while not prompt and sys.stdin.isatty():
        text = typer.prompt("prompt (empty ends)", default="", show_default=False)
        if not text.strip():
            break
        session.ask(text)


@hierarchical.command()
@reports_errors
def embed(
    text: Annotated[list[str] | None, typer.Argument(help="Texts whose features are written too.")] = None,
    expert: Annotated[str, typer.Option(help=f"Whose hidden states: {', '.join(DOMAINS)}.")] = "knowledge",
    experts: Folder = FOLDER,
    output: Annotated[Path, typer.Option(help="The features, .npz.")] = Path("features.npz"),
    each: Annotated[int, typer.Option(min=2, help="Most prompts of a domain that the classifier learns from.")] = 500,
) -> None:
    """Write an expert's hidden states as features, with a classifier of domains on top of them."""
    (domain,) = _domains(expert, several=False)
    if output.suffix != ".npz" or not output.absolute().parent.is_dir():
        raise UsageError(f"--output: expected a .npz file in an existing folder, got {output}")
    from ..hierarchical import Workspace
    from ..hierarchical.embedding import embed_records, hidden_features

    workspace = Workspace(experts)
    embedded = embed_records(workspace, domain, each)
    features = None
    if text:
        features = hidden_features(workspace.expert(domain), workspace.tokenizer, text)
        for line, said in zip(text, embedded.classifier(features), strict=True):
            typer.echo(f"{said}: {line}")
    embedded.save(output, text or (), features)
    typer.echo(
        f"{output}: {len(embedded.labels)} held-out prompts, {embedded.features.shape[1]} features of the {domain} "
        f"expert; a classifier trained on {embedded.trained_on} prompts names the domain of {embedded.accuracy:.1%}"
    )


@hierarchical.command()
@reports_errors
def loop(
    expert: Annotated[str, typer.Option(help=f"{', '.join(DOMAINS)}, or all in turn.")] = "all",
    experts: Folder = FOLDER,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Most rounds of each. Default: no limit.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a round.")] = 200,
    patience: Annotated[int, typer.Option(min=1, help="Rounds without a gain before it stops.")] = 2,
    least_gain: Annotated[float, typer.Option(min=0.0, help="Nats per token that count as a gain.")] = 0.002,
    progress: Progress = None,
) -> None:
    """Train finished experts on, round after round, as long as the held-out loss falls; the best is kept."""
    domains = _domains(expert)
    from ..hierarchical import Workspace
    from ..hierarchical.looping import train_on
    from ..training import TrainingInterrupted

    workspace = Workspace(experts)
    try:
        for domain in domains:
            train_on(workspace, domain, rounds, steps, patience, least_gain, typer.echo, progress)
    except TrainingInterrupted as stop:
        raise KeyboardInterrupt(f"{stop}; the same command goes on there") from None


def _domains(expert: str, several: bool = True) -> tuple[str, ...]:
    if expert == "all" and several:
        return DOMAINS
    if expert not in DOMAINS:
        raise UsageError(f"--expert: expected one of {', '.join(DOMAINS)}{', all' if several else ''}, got {expert}")
    return (expert,)


def _sources(given: list[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in given]
    for domain, _, source in pairs:
        if domain not in DOMAINS or not source:
            raise UsageError(f"--source: expected DOMAIN=SOURCE, a domain of {', '.join(DOMAINS)}, got {domain}")
    return {domain: source for domain, _, source in pairs}
