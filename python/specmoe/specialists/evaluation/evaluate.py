"""Every specialist on its held-out cases: the model alone, the system that verifies, and the codec beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ...lora.losses import record_losses
from ...lora.train import peak_memory
from ...notation import NotationError, render
from ...training.data import encode_records
from ..corpora import CorpusSettings, Example
from ..family import open_family
from ..requests import understand
from ..routing import RuleRouter
from ..runtime.answering import Ask, Policy, answer_all
from ..runtime.loaded import Loaded
from ..runtime.router import trained_router
from .cases import test_cases
from .scores import ALONE, CODEC, VERIFIED, Evaluation, Tally
from .speaking import Speakers

_WRONG = 40
# Of a case, in tokens; none of the corpora is longer with a tokenizer of bytes.
_LONGEST = 1024


def evaluate_family(
    folder: Path,
    size: int = 3000,
    *,
    seed: int = 0,
    policy: Policy | None = None,
    batch: int = 128,
    progress: bool | None = None,
) -> Evaluation:
    """Evaluates the specialists of a family.

    Args:
        folder: the family's folder.
        size: conversions in all; the explanations that come along are scored apart.
        seed: of the cases.
        policy: how the system that verifies answers; None for the defaults.
        batch: most prompts at once.
        progress: show a bar; None shows one where standard error is a terminal.

    Raises:
        CheckpointError: there is no family, or a file of it is damaged.
        ValueError: no specialist is trained.
    """
    policy = policy or Policy()
    family = open_family(folder)
    names = family.specialists
    if not names:
        raise ValueError(f"specialists: {folder}: expected a trained specialist, found none")
    cases = test_cases(names, size, seed)
    before = peak_memory()
    speakers = Speakers(family, policy, batch)
    found = Evaluation()
    console = Console(stderr=True)
    with Progress(console=console, disable=progress is False or progress is None and not console.is_terminal) as bar:
        _alone(found, speakers, cases, bar)
        _verified(found, speakers, cases, bar)
    _codec(found, cases)
    _losses(found, speakers, cases)
    _routing(found, cases, family.folder)
    base_bytes = sum(path.stat().st_size for path in family.base_folder.glob("*.safetensors"))
    adapters = {name: (family.adapter_folder(name) / "adapter_model.safetensors").stat().st_size for name in names}
    found.figures = {
        "base": family.base,
        "specialists": list(names),
        "conversions": found.total(ALONE).cases,
        "seed": seed,
        "policy": dataclasses.asdict(policy),
        "corpus": dataclasses.asdict(CorpusSettings()),
        "batch": batch,
        "base bytes": base_bytes,
        "adapter bytes": adapters,
        "load seconds, base and all adapters": speakers.load_seconds,
        "tokens per second, generated, in batches": speakers.tokens / max(speakers.seconds, 1e-9),
        "peak memory bytes, before loading": before,
        "peak memory bytes": peak_memory(),
    }
    return found


def _alone(found: Evaluation, speakers: Speakers, cases: Mapping[str, Sequence[Example]], bar: Progress) -> None:
    asked = [(name, example) for name, examples in cases.items() for example in examples]
    task = bar.add_task("model alone", total=len(asked))
    asks = [Ask(name, example.prompt) for name, example in asked]
    replies = speakers.answer(asks, lambda done: bar.update(task, completed=done))
    for (name, example), reply in zip(asked, replies, strict=True):
        right = reply.text == example.completion
        if not example.is_conversion:
            found.texts.setdefault(name, {}).setdefault(example.kind, Tally()).add(True, right)
            continue
        found.count(ALONE, name, example, True, right)
        if not right and sum(each["specialist"] == name for each in found.wrong) < _WRONG:
            found.wrong.append(
                {"specialist": name, "prompt": example.prompt, "wanted": example.completion, "got": reply.text}
            )


def _verified(found: Evaluation, speakers: Speakers, cases: Mapping[str, Sequence[Example]], bar: Progress) -> None:
    asked = [(name, example) for name, examples in cases.items() for example in examples if example.is_conversion]
    task = bar.add_task("with verification", total=None)
    router = RuleRouter()
    answers = answer_all(
        [example.prompt for _, example in asked],
        [router.route(example.prompt) for _, example in asked],
        speakers.names,
        speakers.answer,
        speakers.policy,
    )
    bar.update(task, total=len(asked), completed=len(asked))
    for (name, example), answer in zip(asked, answers, strict=True):
        given = not answer.abstained
        # What the case wants decides, and not what the query was understood as.
        found.count(VERIFIED, name, example, given, answer.text == example.completion)


def _codec(found: Evaluation, cases: Mapping[str, Sequence[Example]]) -> None:
    for name, examples in cases.items():
        for example in examples:
            if example.is_conversion:
                text = _converted(example.prompt)
                found.count(CODEC, name, example, bool(text), text == example.completion)


def _converted(prompt: str) -> str:
    """Returns what the codec makes of a query, "" where it cannot."""
    request = understand(prompt)
    try:
        return str(render(request.value, request.target)) if request.target else ""
    except (NotationError, ValueError):
        return ""


def _losses(found: Evaluation, speakers: Speakers, cases: Mapping[str, Sequence[Example]]) -> None:
    for name, examples in cases.items():
        rows = encode_records([e for e in examples if e.is_conversion], speakers.tokenizer, _LONGEST)
        with speakers.using(name) as loaded:

            def chosen(places: list[int], name: str = name, loaded: Loaded = loaded) -> AbstractContextManager[None]:
                # Of what no correction is about, as nearly all of it.
                return loaded.rows([loaded.who(name, corrected=False)] * len(places))

            model, pad = loaded.base.model, loaded.base.tokenizer.pad_token_id
            found.loss[name] = record_losses(model, rows, pad, chosen).mean


def _routing(found: Evaluation, cases: Mapping[str, Sequence[Example]], folder: Path) -> None:
    examples = [example for each in cases.values() for example in each]
    for label, router in (("rules", RuleRouter()), ("trained", trained_router(folder))):
        right = sum(router.route(example.prompt).domain == example.route for example in examples)
        found.routing[label] = right / len(examples)
