"""What a correction says in general: a phrasing, and what is to be done with the value in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...notation import NotationError, Span, find_value, parse, render, same
from ..requests import Request, asks_to_explain, understand
from ..verification import verify
from .log import KEPT, Correction, CorrectionLog
from .names import name_in, names

_TEXTS = ("hlxl", "lc-t", "lc-r", "lc-b")


@dataclass(frozen=True)
class Rule:
    """A phrasing and the notations that it is about.

    Attributes:
        before, after: what stands around the value.
        source, target: the value's notation and the answer's.
        specialist: who has learned it.
    """

    before: str
    after: str
    source: str
    target: str
    specialist: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """The phrasing, case and spacing apart."""
        return _plain(self.before), _plain(self.after)

    @cached_property
    def name(self) -> str:
        """What the target is called, "" where it has no name of its own; see `names.name_in`."""
        named = understand(f"{self.before}[1]{self.after}").target
        return "" if named else name_in(self.before, self.after)


def rule_of(query: str, answer: str, specialist: str = "") -> Rule | None:
    """Returns the rule of a correction: the one notation in which the answer is the query's value.

    Returns:
        None where there is no value, or the answer is not it, or is it in several notations (`42` is `42` in three).

    Raises:
        ValueError: the query says which notation it wants, and the answer is not the value in that one.
    """
    request = understand(query)
    if request.span is None:
        return None
    span = request.span
    before, after = query[: span.start], query[span.start + len(span.text) :]
    if request.target:
        if not (told := verify(query, answer)).verified:
            raise ValueError(f"correction: expected the query's value in {request.target.upper()}: {told.reason}")
        return Rule(before, after, request.source, request.target, specialist)
    found = [(source, target) for source in span.readings for target in _TEXTS if _writes(answer, span, source, target)]
    if len({target for _, target in found}) != 1:
        return None
    return Rule(before, after, *found[0], specialist)


class Phrasings:
    """What corrections are about: their phrasings and their names with any value; without a rule, their very words.

    Args:
        corrections: any number of them.
    """

    def __init__(self, corrections: Iterable[Correction]) -> None:
        self._rules: list[Rule] = []
        self._queries: set[tuple[str, str]] = set()
        for each in corrections:
            if (rule := rule_of(each.query, each.answer, each.specialist)) is not None:
                # What was corrected last counts.
                self._rules.insert(0, rule)
            else:
                self._queries.add((_plain(each.query), each.specialist))

    def find(self, text: str, specialist: str | None = None) -> tuple[Rule, Span] | None:
        """Returns the rule of a query and the value in it, None where there is none.

        A query that says no notation and has the name of a rule in it is that rule's, in whatever words; of several
        names the longest counts, and none where two rules of one name want different things.

        Args:
            text: the query.
            specialist: whose rules; None for everybody's.

        Raises:
            ValueError: the query is too long to look for a value.
        """
        rules = [rule for rule in self._rules if specialist in (None, rule.specialist)]
        if not rules or (span := find_value(text)) is None:
            return None
        rules = [rule for rule in rules if rule.source in span.readings]
        before, after = text[: span.start], text[span.start + len(span.text) :]
        key = _plain(before), _plain(after)
        for rule in rules:
            if rule.key == key:
                return rule, span
        prose = f"{before}\n{after}"
        named = [rule for rule in rules if rule.name and names(prose, rule.name)]
        if not named or asks_to_explain(prose) or understand(text).target:
            return None
        best = max(named, key=lambda rule: len(rule.name))
        same_name = {(rule.source, rule.target) for rule in named if len(rule.name) == len(best.name)}
        return (best, span) if len(same_name) == 1 else None

    def hold(self, text: str, specialist: str) -> bool:
        """Returns whether one of the corrections of a specialist is about a query."""
        if (_plain(text), specialist) in self._queries:
            return True
        try:
            return self.find(text, specialist) is not None
        except ValueError:
            return False


class LearnedRules:
    """The rules of the corrections that were kept: with them the codec knows what a corrected phrasing asks for.

    Args:
        folder: the family's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read()

    def read(self) -> None:
        """Reads the corrections again.

        Raises:
            ValueError: their file is damaged.
        """
        log = CorrectionLog(self.folder)
        kept = [log.corrections[number - 1] for number in log.numbers(KEPT)]
        # Where a query's own words say what it asks for, nothing had to be learned about them.
        self._new = Phrasings(each for each in kept if not understand(each.query).target)
        self._all = Phrasings(kept)

    def find(self, text: str) -> tuple[Rule, Span] | None:
        """Returns the rule of a query and the value in it; see `Phrasings.find`."""
        return self._new.find(text)

    def understand(self, text: str) -> Request:
        """Returns what a query asks for; see `requests.understand`."""
        if (found := self.find(text)) is None:
            return understand(text)
        rule, span = found
        return Request(span, rule.source, rule.target, learned=True)

    def specialist(self, text: str) -> str | None:
        """Returns who has learned a query's phrasing, None where nobody has."""
        try:
            found = self.find(text)
        except ValueError:
            return None
        return found[0].specialist if found else None

    def corrected(self, text: str, specialist: str) -> bool:
        """Returns whether a correction that a specialist has learned is about a query."""
        return self._all.hold(text, specialist)


def rules_of(corrections: Iterable[Correction]) -> list[Rule]:
    """Returns the rules of corrections, of those that have one."""
    found = (rule_of(each.query, each.answer, each.specialist) for each in corrections)
    return [rule for rule in found if rule is not None]


def _writes(answer: str, span: Span, source: str, target: str) -> bool:
    value = span.readings[source]
    try:
        return same(parse(answer, target), value) and render(value, target) == answer
    except NotationError:
        return False


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
