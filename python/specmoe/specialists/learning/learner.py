"""Corrections: stored, learned with old examples beside them, and kept only if nothing else is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.data import encode_record
from ...training.reporter import Reporter
from ..corpora import SPECIALISTS, CorpusSettings, Example, generate
from ..corpora.coordinator import COORDINATOR
from ..corpora.sides import TEST, TRAIN
from ..training.fillers import with_fillers
from ..training.settings import OFFLINE
from .alone import alone
from .blend import Blend
from .log import KEPT, REVERTED, UNDONE, WAITING, Correction, CorrectionLog
from .original import original_folder, original_name
from .rules import Phrasings, Rule, rule_of
from .scores import HeldOut, exact, rows_of
from .update import Rows, UpdateSettings, update
from .variations import in_plain_words, variations
from .versions import drop_version, keep_version, replace_weights, restore_version, version_folder, weights_digest

if TYPE_CHECKING:
    # The runtime reads the rules that were learned.
    from ..runtime.loaded import Loaded
    from ..runtime.router import SpecialistRouter

# Among so many times the values that are checked those are found that the model can convert.
_DRAWN = 3
# Other values of each earlier correction that are learned again.
_AGAIN = 8


@dataclass(frozen=True)
class Learned:
    """What has become of a correction.

    Attributes:
        correction: the correction, stored.
        kept: whether the adapter has changed.
        reason: why not.
        steps: optimizer steps that were tried.
        before, after: share of the held-out examples that are exactly right; `after` of the adapter that is there now.
    """

    correction: Correction
    kept: bool
    reason: str
    steps: int
    before: float
    after: float


class Learner:
    """Learns corrections for the specialists of a router; what is kept is used by the router at once."""

    def __init__(
        self, router: SpecialistRouter, settings: UpdateSettings | None = None, progress: bool | None = None
    ) -> None:
        """Reads what was corrected before.

        Args:
            router: whose specialists learn.
            settings: how; None for the defaults.
            progress: show a bar; None shows one where standard error is a terminal.

        Raises:
            ValueError: the file of corrections is damaged.
        """
        self.router = router
        self.settings = settings or UpdateSettings()
        self.progress = progress
        self.log = CorrectionLog(router.folder)
        self._corpora: dict[tuple[str, str], list[Example]] = {}
        self._encoded: dict[tuple[str, str], Rows] = {}
        # Of the held-out examples, which the adapter with this digest has right.
        self._right: dict[str, tuple[str, list[bool]]] = {}

    def correct(self, query: str, answer: str, specialist: str | None = None) -> Learned:
        """Stores a correction and learns it.

        Args:
            query: what was asked.
            answer: what is right.
            specialist: who learns it; None for whom the router chooses.

        Returns:
            Whether the adapter has learned it; where not, the adapter is as it was, byte for byte.

        Raises:
            ValueError: an empty query or answer, an answer that the codec finds wrong, more than the model's context,
                or an unknown specialist.
            KeyboardInterrupt: Ctrl-C; the correction is stored, the adapter is as it was.
        """
        if not query.strip() or not answer.strip():
            raise ValueError("correction: expected a query and an answer, got an empty one")
        rule_of(query, answer)
        with self._alone():
            members = self.router.residents.members
            # The coordinator answers where the router chooses nobody.
            name = specialist or self.router.route(query).domain or COORDINATOR.name
            if name not in members or members[name].adapter is None:
                able = ", ".join(each for each, member in members.items() if member.adapter)
                raise ValueError(f"correction: expected a specialist with an adapter ({able}), got {name}")
            with self.router.residents.using([name]) as loaded:
                length = len(encode_record(loaded.base.tokenizer, Example(query, answer, name)).input_ids)
                if length > loaded.context:
                    raise ValueError(
                        f"correction: expected at most {loaded.context} tokens with its answer, got {length}"
                    )
            return self._learn(self.log.add(query, answer, name))

    def learn_waiting(self) -> list[Learned]:
        """Learns the corrections that were stored and not learned, as after Ctrl-C."""
        with self._alone():
            return [self._learn(self.log.corrections[number - 1]) for number in self.log.numbers(WAITING)]

    def revert(self, specialist: str | None = None) -> Correction:
        """Takes back the last correction that was kept, of one specialist or of all: the adapter's old bytes return.

        Raises:
            ValueError: none was kept, or the adapter has been trained since.
            CheckpointError: the version before it is missing or damaged.
        """
        with self._alone():
            kept = self.log.numbers(KEPT, specialist)
            if not kept:
                of = f" by {specialist}" if specialist else ""
                raise ValueError(f"revert: expected a correction that was kept{of}")
            correction = self.log.corrections[kept[-1] - 1]
            place, before = self._adapter(correction.specialist), self._version(correction)
            now = weights_digest(place)
            # What is there already comes of a revert that a crash has ended.
            reverted = before.is_dir() and weights_digest(before) == now
            if not reverted and now != self.log.reasons[correction.number]:
                raise ValueError(
                    f"revert: {place}: expected the adapter of correction {correction.number}, found another"
                )
            restore_version(place, correction.number)
            self.router.residents.forget(correction.specialist)
            self.log.decide(correction.number, UNDONE, "taken back")
            self.router.residents.recount(correction.specialist)
            drop_version(place, correction.number)
            self.router.rules.read()
            return correction

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within the block no other process changes the family, and what others have changed before is known."""
        with alone(self.router.folder):
            log = CorrectionLog(self.router.folder)
            if (log.corrections, log.states) != (self.log.corrections, self.log.states):
                self.log = log
                for name in self.router.residents.names:
                    self.router.residents.forget(name)
                self.router.rules.read()
            for number in self.log.numbers(WAITING):
                # A crash came between the new adapter and the line that says so.
                correction = self.log.corrections[number - 1]
                member = self.router.residents.members.get(correction.specialist)
                if member and member.adapter and self._version(correction).is_dir():
                    restore_version(member.adapter, number)
                    self.router.residents.forget(member.name)
                    drop_version(member.adapter, number)
            yield

    def _learn(self, correction: Correction) -> Learned:
        name = correction.specialist
        rule = rule_of(correction.query, correction.answer, name)
        with self.router.residents.using([name]) as loaded:
            before = loaded.bank.adapter(name)
            after = [before]
            try:
                outcome = self._tried(loaded, correction, rule)
                if outcome.kept:
                    # On the disk before anyone is told; the version first, so that there always is a way back.
                    keep_version(self._adapter(name), correction.number)
                    replace_weights(self._adapter(name), loaded.bank.adapter(name))
                    after = [loaded.bank.adapter(name)]
                    if original_name(name) not in loaded.names:
                        after.append(dataclasses.replace(before, name=original_name(name)))
            finally:
                loaded.change(add=after)
        if outcome.kept:
            self.log.decide(correction.number, KEPT, weights_digest(self._adapter(name)))
            self.router.residents.recount(name)
        else:
            self.log.decide(correction.number, REVERTED, outcome.reason)
        self.router.rules.read()
        return outcome

    def _tried(self, loaded: Loaded, correction: Correction, rule: Rule | None) -> Learned:
        name, settings, tokenizer = correction.specialist, self.settings, loaded.base.tokenizer
        own = Example(correction.query, correction.answer, name)
        spare = _DRAWN * settings.checks
        more = variations(correction, rule, settings.examples + spare, settings.seed) if rule else []
        learned, drawn = more[spare:], more[:spare]
        again, still = self._earlier(name)
        new = rows_of([own, *learned], tokenizer)
        # Half of the old rows are of earlier corrections, however few those are beside the corpus.
        old = self._rows(name, TRAIN, tokenizer), rows_of(again, tokenizer)
        asked, earlier = rows_of([own], tokenizer), rows_of(still, tokenizer)

        def which(rows: Rows) -> list[bool]:
            with loaded.rows([name]):
                return exact(loaded.base, rows)

        def right(rows: Rows) -> int:
            return sum(which(rows))

        # The rule is what is to be learned: a value that the model cannot convert in any words says nothing of it.
        able = which(rows_of([in_plain_words(each, rule) for each in drawn], tokenizer)) if rule else []
        # Where it can convert too few, the others count as well: there are never fewer checks.
        checked = sorted(zip(drawn, able, strict=True), key=lambda pair: not pair[1])[: settings.checks] if rule else []
        others = rows_of([each for each, _ in checked], tokenizer)
        held_out, others_right = self._held_out(loaded, correction, which)
        before, total = held_out.before + others_right, len(self._corpus(name, TEST))
        kept_before = which(earlier)
        blend = Blend(loaded.bank.trainable())
        scores = [before]
        reasons = [""]

        def missing() -> str:
            if not right(asked):
                return "it still answers something else"
            if (count := right(others)) < settings.share * len(others):
                return f"only {count} of {len(others)} other values are right"
            return ""

        def lost() -> str:
            if gone := sum(was and not now for was, now in zip(kept_before, which(earlier), strict=True)):
                return f"{gone} of {len(earlier)} earlier corrections would be lost"
            count, held = held_out.right()
            count += others_right
            if not held:
                return f"the held-out score would fall from {before} to {count} or fewer of {total}"
            scores.append(count)
            return ""

        def is_learned() -> bool:
            reasons[0] = missing()
            if not reasons[0]:
                reasons[0] = lost()
                if reasons[0] and blend.find(settings.blends, lambda: not (missing() or lost())):
                    reasons[0] = ""
            return not reasons[0]

        with Reporter(settings.steps, self.progress) as reporter:
            steps = update(loaded, name, new, old, blend, settings, is_learned, reporter.advance)
        return Learned(correction, not reasons[0], reasons[0], steps, before / total, scores[-1] / total)

    def _kept(self, name: str) -> list[Correction]:
        return [self.log.corrections[number - 1] for number in self.log.numbers(KEPT, name)]

    def _earlier(self, name: str) -> tuple[list[Example], list[Example]]:
        """Returns examples of the corrections kept so far: some to learn again, and the corrections themselves."""
        again: list[Example] = []
        still: list[Example] = []
        for each in self._kept(name):
            own = Example(each.query, each.answer, name)
            rule = rule_of(each.query, each.answer, name)
            again += [own, *(variations(each, rule, _AGAIN, self.settings.seed) if rule else [])]
            still.append(own)
        return again, still

    def _held_out(
        self, loaded: Loaded, correction: Correction, which: Callable[[Rows], list[bool]]
    ) -> tuple[HeldOut, int]:
        """Returns the held-out examples that corrections are about, this one too, and how many of the rest are right.

        The adapter that is learning answers no others: the rest stay with it as it was before all corrections.
        """
        name = correction.specialist
        prompts = [example.prompt for example in self._corpus(name, TEST)]
        rows, right = self._rows(name, TEST, loaded.base.tokenizer), self._originally(loaded, name)
        before, now = Phrasings(self._kept(name)), Phrasings([*self._kept(name), correction])
        its = [place for place, prompt in enumerate(prompts) if now.hold(prompt, name)]
        answered = [place for place in its if before.hold(prompts[place], name)]
        for place, is_right in zip(answered, which([rows[place] for place in answered]), strict=True):
            right[place] = is_right
        held_out = HeldOut(which, [rows[place] for place in its], [right[place] for place in its])
        return held_out, sum(right) - held_out.before

    def _originally(self, loaded: Loaded, name: str) -> list[bool]:
        """Returns which held-out examples the adapter has right as it was before its corrections."""
        digest = weights_digest(original_folder(self._adapter(name)) or self._adapter(name))
        if self._right.get(name, ("", []))[0] != digest:
            with loaded.rows([loaded.who(name, corrected=False)]):
                right = exact(loaded.base, self._rows(name, TEST, loaded.base.tokenizer))
            self._right[name] = digest, right
        return list(self._right[name][1])

    def _rows(self, name: str, side: str, tokenizer: Any) -> Rows:
        if (name, side) not in self._encoded:
            self._encoded[name, side] = rows_of(self._corpus(name, side), tokenizer)
        return self._encoded[name, side]

    def _corpus(self, name: str, side: str) -> list[Example]:
        if (name, side) not in self._corpora:
            sizes = CorpusSettings(size=self.settings.replay, test_size=self.settings.held_out, seed=self.settings.seed)
            examples = generate(name if name in SPECIALISTS else COORDINATOR.name, side, sizes)
            if side == TRAIN:
                # Other words as in its training: what is held to in few ways of asking drifts in the others.
                examples = with_fillers(examples, OFFLINE.fillers, self.settings.seed)
            self._corpora[name, side] = examples
        return self._corpora[name, side]

    def _version(self, correction: Correction) -> Path:
        return version_folder(self._adapter(correction.specialist), correction.number)

    def _adapter(self, name: str) -> Path:
        place = self.router.residents.members[name].adapter
        assert place is not None  # checked when the correction came
        return place
