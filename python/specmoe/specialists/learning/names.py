"""What a correction calls a notation: the words of its phrasing that are not words of asking.

"I would love [7, 50] in herd signs" calls one "herd signs": whoever says that in other words means the same.
"""

from __future__ import annotations

import re
from functools import cache

from ..corpora.phrasings import TASKS, phrasings
from ..corpora.sides import TEST, TRAIN

_WORD = re.compile(r"[^\W\d_][\w'-]*")
# Besides those of the corpora's phrasings.
_COMMON = """
    a an the this that these those my your our his her its their it i you we he she they me us him them some any
    would could should may might must can will shall do does did is are was were be been am have has had
    love like want need wish ask get give make let use see hear help show tell try go come take put keep bring
    in into to as at on onto of for from with without by via and or if but so not then than when where while
    how what which who whom whose why please thanks thank hey hello hi ok okay just only also too very quick quickly
    possible possibly maybe kindly able one ones
""".split()
# Of asking by themselves, and a part of the name behind one: "pasture form".
_KINDS = frozenset("form text version notation code style format value short".split())
# Behind these stands what something is to become.
_TOWARDS = {"in", "into", "to", "as", "for"}


@cache
def _asking() -> frozenset[str]:
    told = (text for task in TASKS for side in (TRAIN, TEST) for text in phrasings(task, side))
    return frozenset(_COMMON) | {word.casefold() for text in told for word in _WORD.findall(text)}


def name_in(before: str, after: str) -> str:
    """Returns the name in what stands around a value, as it is written there; "" where there is none.

    It is the longest run of words that are not of asking; of several the one behind "in", "to" and the like, or the
    last.
    """
    best, rank = "", (0, False)
    for prose in (before, after):
        for words in _runs(prose):
            at = words[0].start()
            earlier = _WORD.findall(prose[:at])
            towards = bool(earlier) and earlier[-1].casefold() in _TOWARDS
            if (len(words), towards) >= rank:
                best, rank = prose[at : words[-1].end()], (len(words), towards)
    return best


def names(prose: str, name: str) -> bool:
    """Returns whether a name is among the words of a text, whatever their case and spacing."""
    said, wanted = (" ".join(_WORD.findall(text.casefold())) for text in (prose, name))
    return f" {wanted} " in f" {said} "


def _runs(prose: str) -> list[list[re.Match[str]]]:
    """Returns the runs of words that are not of asking, with nothing but spaces between them."""
    runs: list[list[re.Match[str]]] = [[]]
    end = 0
    for word in _WORD.finditer(prose):
        said = word.group().casefold()
        if said in _asking() and not (runs[-1] and said in _KINDS and not prose[end : word.start()].strip()):
            runs.append([])
        elif runs[-1] and prose[end : word.start()].strip():
            runs.append([word])
        else:
            runs[-1].append(word)
        end = word.end()
    return [run for run in runs if run]
