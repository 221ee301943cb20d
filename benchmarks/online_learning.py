"""Inject errors into a family of specialists, correct each once, and say how many are right afterwards.

    python benchmarks/online_learning.py FAMILY [--errors 50] [--output FILE] [--work FOLDER]

An error is a phrasing that no corpus has, with a name for a notation that nobody was taught ("Convert [7, 50] to herd
signs"), which the models answer otherwise than the user wants. What they get right at once is no error and is left
out. Errors differ in their names, so that learning one is not learning another. Each is corrected once, with one value.
Then each is asked again with that value, with three others of the same structure, and with three more in other words:
values and ways of asking that no corpus is trained on and the learner has not seen. "Right" is right in all seven,
exactly, of the model alone; the figures of the whole system (with the codec's check and draws) are beside it. Held out
are the examples that the learner looks at, and others that it does not. What no correction is about is answered by the
adapter as it was before them all, here as in the runtime. At the end everything is taken back and the bytes are
compared. FAMILY itself is not changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specmoe.notation import Value, find_value, parse, render
from specmoe.specialists.corpora import CorpusSettings, Example, generate
from specmoe.specialists.corpora.phrasings import phrasings
from specmoe.specialists.learning import Learner, UpdateSettings, rule_of
from specmoe.specialists.learning.log import Correction
from specmoe.specialists.learning.scores import exact, rows_of
from specmoe.specialists.learning.variations import variations
from specmoe.specialists.runtime import SpecialistRouter

# What users might call the notations: none of these words is in a phrasing of the corpora.
NAMES = {
    ("hlxl", "lc-r"): """
        herd signs,cattle script,ox marks,pasture form,animal writing,barn glyphs,farm letters,hoof print,mouse tracks
        buffalo style,livestock,stable marks,meadow code,ranch notes,horn letters,yoke signs,grazing form,shepherd marks
        crocodile text,fur style,tail notes,zoo letters,creature code,wild marks
    """,
    ("hlxl", "lc-t"): """
        telegraph form,squeezed text,thin braces,wire format,tight form,packed marks,dense form,cable style,narrow text
        slim notation,pressed form,brief marks,lean text,short wire,curt style,terse lines,pocket form,mini marks
        flat text,trim code,spare style,tiny lines,crisp form,quick marks
    """,
    ("hlxl", "lc-b"): """
        hex boxes,byte dress,machine digits,bracket hex,engine form,raw digits,metal form,octet style,core dump
        nibble text,chip letters,drive format,memory look,base sixteen,robot text,silicon form,steel digits
        circuit style,bolt letters,gear code,wired boxes,punch card,relay marks,tape form
    """,
    ("lc-r", "hlxl"): """
        longhand,human form,open form,full spelling,wide text,plain view,people style,clear script,friendly form
        spoken form,desk style,paper form
    """,
    ("lc-t", "hlxl"): """
        roomy text,spaced form,reader style,book form,airy text,office look,teacher form,letter style,kitchen form
        market look,school form,novel style
    """,
}
PHRASINGS = (
    "Convert {text} to {name}", "{name}: {text}", "Write {text} in {name}", "I would love {text} in {name}",
    "Give me {name} for {text}", "{text} as {name}, if I may ask", "My {name} of {text}?", "Use {name} on {text}",
)  # fmt: skip
VALUES = (
    "[7, 50]", '["moon", "tree"]', "{x: 10}", '{name: "stone"}', "&h_river", '[1, "door"]', "{14: {@0: 42}}",
    "[true, 8, null]", '{16: {@0: "hello"}}', "[&h_ast, 3]", "{a: 5, b: 9}", "[12, 7, 101]",
)  # fmt: skip
OTHERS = 3
# Errors are learned and asked about with other random numbers than these.
SEED = 77


@dataclass(frozen=True)
class Injected:
    """An error: what is asked, what is wanted, and the same with other values, half of them in other words."""

    query: str
    wanted: str
    others: list[Example]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", type=Path)
    parser.add_argument("--errors", type=int, default=50)
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--held-out", type=int, default=400, help="examples that the learner does not look at")
    parser.add_argument("--output", type=Path, help="where the report goes as JSON")
    parser.add_argument("--work", type=Path, help="where the copy goes. Default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        copy = (options.work or Path(temporary)) / "family"
        shutil.copytree(options.family, copy, ignore=shutil.ignore_patterns("checkpoints", "corrections.jsonl"))
        report = run(copy, options)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if report["met"] else 1


def run(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    before = digests(folder)
    outcomes = []
    with SpecialistRouter(folder, options.memory) as router:
        learner = Learner(router, UpdateSettings())
        errors = injected(router, options.errors)
        other = held_out(router, options.held_out)
        print(f"{len(errors)} errors; unseen held-out score {other:.3f}", file=sys.stderr, flush=True)
        for number, error in enumerate(errors, 1):
            started, cpu = time.perf_counter(), time.process_time()
            learned = learner.correct(error.query, error.wanted)
            outcomes.append({
                "query": error.query, "wanted": error.wanted, "specialist": learned.correction.specialist,
                "kept": learned.kept, "reason": learned.reason, "steps": learned.steps,
                "held_out_before": learned.before, "held_out_after": learned.after,
                "seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
            })  # fmt: skip
            print(f"{number}: {outcomes[-1]}", file=sys.stderr, flush=True)
        for error, outcome in zip(errors, outcomes, strict=True):
            outcome["right"] = right(router, error)
            outcome["system_right"] = system_right(router, error)
        after = held_out(router, options.held_out)
        kept = len(learner.log.numbers("kept"))
        for _ in range(kept):
            learner.revert()
    count = len(errors)
    fell = sum(outcome["held_out_after"] < outcome["held_out_before"] for outcome in outcomes)
    share = {key: sum(all(outcome[key]) for outcome in outcomes) / max(1, count) for key in ("right", "system_right")}
    restored = digests(folder) == before
    return {
        "errors": count,
        "kept": kept,
        "reverted": [(outcome["query"], outcome["reason"]) for outcome in outcomes if not outcome["kept"]],
        "corrected_query_right": sum(outcome["right"][0] for outcome in outcomes) / max(1, count),
        "other_values_right": sum(sum(o["right"][1 : 1 + OTHERS]) for o in outcomes) / max(1, OTHERS * count),
        "other_words_right": sum(sum(o["right"][1 + OTHERS :]) for o in outcomes) / max(1, OTHERS * count),
        "right_in_all_seven": share["right"],
        "right_in_all_seven_with_verification": share["system_right"],
        "held_out_fell": fell,
        "unseen_held_out_before": other,
        "unseen_held_out_after": after,
        "bytes_restored": restored,
        "met": share["system_right"] >= 0.8 and not fell and restored and count >= options.errors,
        "outcomes": outcomes,
    }


def injected(router: SpecialistRouter, count: int) -> list[Injected]:
    """Returns errors that the models do make."""
    found: list[Injected] = []
    for error in candidates():
        if not right(router, error)[0]:
            found.append(error)
        if len(found) == count:
            break
    return found


def candidates() -> Iterator[Injected]:
    """Yields queries with one name each, the pairs of notations in turn."""
    draw = random.Random(SEED)
    names = {pair: [name.strip() for name in re.split(r"[,\n]", told.strip())] for pair, told in NAMES.items()}
    for row in range(max(map(len, names.values()))):
        for (source, target), told in names.items():
            made: Injected | None = None
            while row < len(told) and made is None:
                value = parse(draw.choice(VALUES), "hlxl")
                made = error_of(value, source, target, draw.choice(PHRASINGS), told[row])
            if made is not None:
                yield made


def error_of(value: Value, source: str, target: str, phrasing: str, name: str) -> Injected | None:
    """Returns an error, None where the texts do not tell the notations apart."""
    query = phrasing.format(text=render(value, source), name=name)
    wanted = str(render(value, target))
    rule = rule_of(query, wanted)
    if rule is None or (rule.source, rule.target) != (source, target):
        return None
    correction = Correction(0, query, wanted, "coordinator")
    same, more = (variations(correction, rule, OTHERS, seed, "test", reworded=0.0) for seed in (SEED, SEED + 1))
    draw = random.Random(f"other words {query}")
    others = [*same, *(reworded for each in more if (reworded := in_other_words(each, name, draw)))]
    return Injected(query, wanted, others) if len(others) == 2 * OTHERS else None


def in_other_words(example: Example, name: str, draw: random.Random) -> Example | None:
    """Returns an example asked as the corpora's test side asks, None where its value would be read as another one."""
    span = find_value(example.prompt)
    assert span is not None
    prompt = draw.choice(phrasings("convert", "test")).replace("{to}", name).replace("{text}", span.text)
    found = find_value(prompt)
    return dataclasses.replace(example, prompt=prompt) if found is not None and found.text == span.text else None


def right(router: SpecialistRouter, error: Injected) -> list[bool]:
    """Returns whether the model alone is right with the corrected value, and with each of the others."""
    asked = [Example(error.query, error.wanted, ""), *error.others]
    name = router.route(error.query).domain or "coordinator"
    return alone(router, asked, name)


def system_right(router: SpecialistRouter, error: Injected) -> list[bool]:
    """Returns the same of the router's answers, with verification."""
    answers = router.query_batch([error.query, *(other.prompt for other in error.others)])
    wanted = [error.wanted, *(other.completion for other in error.others)]
    return [answer.text == text for answer, text in zip(answers, wanted, strict=True)]


def held_out(router: SpecialistRouter, count: int) -> float:
    """Returns the coordinator's share of exactly right answers on examples that the learner does not look at."""
    examples = generate("coordinator", "test", CorpusSettings(test_size=count, seed=SEED))
    return sum(alone(router, examples, "coordinator")) / count


def alone(router: SpecialistRouter, examples: list[Example], name: str) -> list[bool]:
    """Returns which examples a specialist's model has right, each with the adapter that the runtime asks for it."""
    with router.residents.using([name]) as loaded:
        found: dict[int, bool] = {}
        for corrected in (False, True):
            places = [n for n, each in enumerate(examples) if router.rules.corrected(each.prompt, name) == corrected]
            rows = rows_of([examples[place] for place in places], loaded.base.tokenizer)
            with loaded.rows([loaded.who(name, corrected)]):
                found |= dict(zip(places, exact(loaded.base, rows), strict=True))
        return [found[place] for place in range(len(examples))]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*/model/*"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    sys.exit(main())
