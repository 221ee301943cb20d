"""An answer is read by the codec and compared with the value that was asked about."""

from __future__ import annotations

from dataclasses import dataclass

from ..notation import NotationError, Value, parse, render, same
from .requests import understand


@dataclass(frozen=True)
class Verification:
    """What the codec says of an answer.

    Attributes:
        verified: whether the answer is the prompt's value in the target notation.
        reason: why not, "" where it is.
        text: the answer as the codec writes it, "" where it is not verified.
    """

    verified: bool
    reason: str = ""
    text: str = ""


def verify(prompt: str, answer: str, target: str = "", source: str = "") -> Verification:
    """Returns whether an answer is right: it is read in the target notation and compared with the prompt's value.

    The value of the prompt is never written in the target notation: the codec judges the answer and does not make it.

    Args:
        prompt: the query with the value in it.
        answer: what a model answered.
        target: the notation of the answer; "" for what the prompt asks for.
        source: the notation of the prompt's value; "" for what the prompt says.
    """
    try:
        request = understand(prompt)
    except ValueError as error:
        return Verification(False, str(error))
    target = target or request.target
    if request.span is None:
        return Verification(False, "the query has no value")
    if not target:
        return Verification(False, "the query names no notation to write")
    source = source or request.source
    if source not in request.span.readings:
        return Verification(False, f"the query's value {_shortened(request.span.text)} is not of {source.upper()}")
    try:
        given = parse(answer, target)
    except NotationError as error:
        return Verification(False, str(error))
    wanted = request.span.readings[source]
    if not same(given, wanted):
        return Verification(False, f"the answer means {_hlxl(given)}, the query's value {_hlxl(wanted)}")
    return Verification(True, text=str(render(given, target)))


def _hlxl(value: Value) -> str:
    return _shortened(str(render(value, "hlxl")))


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
