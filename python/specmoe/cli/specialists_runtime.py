"""`specmoe specialists query`, `chat`, `correct`, `revert` and `merge`: a trained family at work."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import FAILURE_EXIT_CODE, UsageError, reports_errors

if TYPE_CHECKING:
    from ..specialists.runtime import Answer, SpecialistRouter

RUNS = Path("runs/specialists")
Folder = Annotated[Path, typer.Option("--family", help="The folder that `specmoe specialists train` wrote.")]
Memory = Annotated[str, typer.Option(help='What the process may take with its models, such as "3GiB".')]
Routing = Annotated[str, typer.Option(help="rules, trained, or confidence (unsure: the two likeliest answer).")]
Samples = Annotated[int, typer.Option(min=0, help="Answers drawn again from a model whose likeliest one is wrong.")]
Seed = Annotated[int, typer.Option(help="Of what is drawn.")]
# Values begin with a minus sign as well.
PLAIN = {"ignore_unknown_options": True}


def query(
    texts: Annotated[list[str], typer.Argument(help="Queries in plain words; several make one batch.")],
    family: Folder = RUNS,
    memory: Memory = "3GiB",
    routing: Routing = "rules",
    samples: Samples = 4,
    seed: Seed = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Also say what was tried.")] = False,
) -> None:
    """Answer queries, each by the specialist that suits it; ends with 1 where one has no answer."""
    with _router(family, memory, routing, samples, seed) as router:
        answers = router.query_batch(texts)
    for answer in answers:
        typer.echo(told(answer, explain))
    if any(answer.abstained for answer in answers):
        raise typer.Exit(FAILURE_EXIT_CODE)


def chat(
    family: Folder = RUNS,
    memory: Memory = "3GiB",
    routing: Routing = "rules",
    samples: Samples = 4,
    seed: Seed = 0,
) -> None:
    """Answer line by line. `/correct ANSWER` corrects the last answer, `/revert` takes it back, Ctrl-D ends."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What is no text is nonsense, and nonsense has an answer too.
        sys.stdin.reconfigure(errors="replace")
    with _router(family, memory, routing, samples, seed) as router:
        router.residents.expect("coordinator")
        converse(router, sys.stdin.readline, sys.stdin.isatty())


def converse(router: SpecialistRouter, read: Callable[[], str], prompts: bool) -> None:
    """Reads queries and prints answers until there are no more lines.

    Args:
        router: who answers.
        read: returns the next line with its end, "" at the end of the input.
        prompts: whether somebody types.
    """
    commands, last = _Commands(router), None
    if prompts:
        typer.echo("Ask, for example: Convert to LC-R: [1, 2, 3]. /help for more, Ctrl-D ends.", err=True)
    while True:
        try:
            if prompts:
                typer.echo("> ", nl=False)
            line = read()
            if not line:
                break
            line = line.strip()
            if line.startswith("/"):
                if line.split()[0] in ("/quit", "/exit"):
                    break
                typer.echo(commands.run(line, last))
            elif line:
                last = router.query(line)
                typer.echo(told(last, False))
        except KeyboardInterrupt as stop:
            # What was being typed or answered is dropped, and nothing else.
            typer.echo(f"\n{str(stop) or 'interrupted'}; Ctrl-D ends", err=True)
        except (ValueError, OSError, RuntimeError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    if prompts:
        typer.echo()


class _Commands:
    """What a line that begins with a slash does."""

    def __init__(self, router: SpecialistRouter) -> None:
        self.router = router
        self._learner: Any = None

    @property
    def learner(self) -> Any:
        if self._learner is None:
            from ..specialists.learning import Learner

            self._learner = Learner(self.router)
        return self._learner

    def run(self, line: str, last: Answer | None) -> str:
        name, _, rest = line.partition(" ")
        if name == "/correct" and last is not None:
            return told_learned(self.learner.correct(last.query, rest))
        if name == "/correct":
            return "there is no answer to correct yet"
        if name == "/revert":
            correction = self.learner.revert()
            return f"correction {correction.number} taken back; {correction.specialist} is as it was before"
        if name == "/why" and last is not None:
            return told(last, True)
        if name == "/memory":
            from ..offload.budget import format_bytes

            residents = self.router.residents
            used = format_bytes(residents.bytes_of(residents.names))
            return f"in memory: {', '.join(residents.names) or 'no model'}; {used} of {format_bytes(residents.budget)}"
        return "/correct ANSWER, /revert, /why (what was tried), /memory, /quit"


def correct(
    text: Annotated[str, typer.Argument(help="The query.")],
    answer: Annotated[str, typer.Argument(help="What is right.")],
    family: Folder = RUNS,
    specialist: Annotated[str | None, typer.Option(help="Who learns it. Default: whom the router chooses.")] = None,
    memory: Memory = "3GiB",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps at most.")] = 120,
) -> None:
    """Correct an answer: it is stored, learned, and kept if nothing else is lost; ends with 1 where it is not."""
    from ..specialists.learning import Learner, UpdateSettings

    with _router(family, memory) as router:
        learned = Learner(router, UpdateSettings(steps=steps)).correct(text, answer, specialist)
    typer.echo(told_learned(learned))
    if not learned.kept:
        raise typer.Exit(FAILURE_EXIT_CODE)


def revert(
    family: Folder = RUNS,
    specialist: Annotated[str | None, typer.Option(help="Whose last one. Default: the last one of all.")] = None,
    memory: Memory = "3GiB",
) -> None:
    """Take back the last correction that was kept: the adapter has its old bytes again."""
    from ..specialists.learning import Learner

    with _router(family, memory) as router:
        correction = Learner(router).revert(specialist)
    typer.echo(f"correction {correction.number} taken back; {correction.specialist} is as it was before")


def merge(
    name: Annotated[str, typer.Argument(help="The specialist whose adapter is merged into its base.")],
    output: Annotated[Path, typer.Option(help="The folder to write, an ordinary model.")],
    family: Folder = RUNS,
    examples: Annotated[int, typer.Option(min=1, help="Test examples to compare on.")] = 100,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seed: Seed = 0,
) -> None:
    """Merge an adapter into its dequantized base for faster answers, and say how far the two are apart."""
    if dtype not in ("float32", "bfloat16"):
        raise UsageError(f"--dtype: expected float32 or bfloat16, got {dtype}")
    from ..specialists.runtime.merging import merge_specialist

    report = merge_specialist(family, name, output, examples, dtype, seed)
    fidelity = report.fidelity
    typer.echo(
        f"{output}: logits differ by {fidelity.mean:.2g} on average and {fidelity.largest:.2g} at most; the likeliest "
        f"token agrees in {fidelity.agreement:.2%}; exact answers {report.exact_unmerged:.1%} unmerged, "
        f"{report.exact_merged:.1%} merged; a forward takes {report.speedup:.2f} times less time"
    )


def told(answer: Answer, explain: bool) -> str:
    """Returns an answer as lines."""
    if answer.abstained:
        lines = [f"no answer: {answer.reason}"]
    else:
        how = "verified" if answer.verified else f"not verified: {answer.reason}"
        lines = [answer.text, f"  [{answer.specialist}, {answer.confidence:.0%} sure, {how}]"]
    if explain:
        why = ", ".join(answer.route.reasons)
        lines.append(f"  route: {answer.route.domain} ({answer.route.confidence:.0%}{f': {why}' if why else ''})")
        for attempt in answer.attempts:
            result = "right" if attempt.verified else attempt.reason or "not checked"
            drawn = ", drawn" if attempt.sampled else ""
            lines.append(f"  {attempt.specialist}{drawn}: {attempt.text[:80]} ({result})")
    return "\n".join(lines)


def told_learned(learned: Any) -> str:
    """Returns what has become of a correction, as a line."""
    held_out = f"held-out score {learned.before:.1%} before, {learned.after:.1%} now"
    what = "learned" if learned.kept else f"stored but not learned, the adapter is as it was: {learned.reason}"
    return (
        f"correction {learned.correction.number} for {learned.correction.specialist}: {what}; "
        f"{learned.steps} steps; {held_out}"
    )


def _router(family: Path, memory: str, routing: str = "rules", samples: int = 4, seed: int = 0) -> SpecialistRouter:
    from ..specialists.runtime import Policy, SpecialistRouter

    return SpecialistRouter(family, memory, routing=routing, policy=Policy(samples=samples, seed=seed))


def register(specialists: typer.Typer) -> None:
    """Adds the commands to `specmoe specialists`."""
    for command in (query, chat, correct, revert, merge):
        specialists.command(context_settings=PLAIN if command in (query, correct) else None)(reports_errors(command))
