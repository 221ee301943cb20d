"""How users ask; the sides have no phrasing in common. `{text}` is the value, `{to}` and `{source}` are notations."""

from __future__ import annotations

from functools import cache

from .sides import TEST, TRAIN

_OPENERS = {
    TRAIN: ("", "", "", "Please ", "Can you ", "Could you please ", "Now ", "I want you to ", "Hi, "),
    TEST: ("", "", "Would you ", "Quickly ", "I would like you to ", "Hello, please "),
}
_CLOSERS = {TRAIN: ("", "", "", ".", " please", " now", ", thanks"), TEST: ("", "", "!", ", if you can", " for me")}

# Those that begin with a verb also stand behind an opener; those that do not end with the value also before a closer.
_BODIES: dict[str, dict[str, tuple[str, ...]]] = {
    "convert": {
        TRAIN: (
            "Convert to {to}: {text}",
            "Convert {text} to {to}",
            "Convert this to {to}: {text}",
            "Convert the value {text} to {to}",
            "Translate to {to}: {text}",
            "Translate {text} into {to}",
            "Translate this value into {to}: {text}",
            "Write {text} in {to}",
            "Write in {to}: {text}",
            "Write the {to} form of {text}",
            "Express {text} in {to}",
            "Turn {text} into {to}",
            "Give {text} in {to}",
            "Give the {to} for {text}",
            "Show {text} as {to}",
            "Change to {to}: {text}",
            "Encode {text} as {to}",
            "Encode as {to}: {text}",
            "Render {text} in {to}",
            "|{to}: {text}",
            "|{text} in {to}",
            "|{text} to {to}",
            "|{text} as {to}",
            "|How do I write {text} in {to}?",
            "|What is {text} in {to}?",
            "|What is the {to} of {text}?",
            "|In {to}: {text}",
            "|I need {text} in {to}",
            # Who "should" or "would" do something is otherwise only asked about a specialist.
            "|How should I write {text} in {to}?",
            "|What should {text} become in {to}?",
            "|Could {text} be written in {to}?",
        ),
        TEST: (
            "Rewrite {text} as {to}",
            "Put this into {to}: {text}",
            "Transform {text} to {to}",
            "Produce the {to} version of {text}",
            "Make {to} out of {text}",
            "Output in {to}: {text}",
            "Do a conversion to {to} of {text}",
            "Say {text} in {to}",
            "|What would {text} be in {to}?",
            "|How does {text} look in {to}?",
            "|As {to}: {text}",
            "|{to} for {text}",
            "|Wanted: {text} in {to}",
        ),
    },
    "convert from": {
        TRAIN: (
            "Convert from {source} to {to}: {text}",
            "Convert {source} to {to}: {text}",
            "Convert the {source} {text} to {to}",
            "Convert {text} from {source} to {to}",
            "Translate from {source} to {to}: {text}",
            "Translate {text} from {source} into {to}",
            "Translate the {source} {text} into {to}",
            "Write the {source} {text} in {to}",
            "Turn the {source} {text} into {to}",
            "Change from {source} to {to}: {text}",
            "Express the {source} {text} in {to}",
            "|{source} to {to}: {text}",
            "|From {source} to {to}: {text}",
            "|What is the {source} {text} in {to}?",
            "|{text} from {source} to {to}",
            "|How should I write the {source} {text} in {to}?",
            "|Could the {source} {text} be written in {to}?",
        ),
        TEST: (
            "Rewrite {source} as {to}: {text}",
            "Transform {text} from {source} to {to}",
            "Put the {source} {text} into {to}",
            "Go from {source} to {to} with {text}",
            "Do a conversion from {source} to {to} of {text}",
            "|How does the {source} {text} look in {to}?",
            "|{source} into {to}: {text}",
        ),
    },
    "parse": {
        TRAIN: (
            "Parse {text}",
            "Parse: {text}",
            "Parse this: {text}",
            "Parse the value {text}",
            "Parse the {source} {text}",
            "Parse this {source}: {text}",
            "Decode {text}",
            "Decode: {text}",
            "Decode the {source} {text}",
            "Read {text}",
            "Read the value {text}",
            "Read this {source}: {text}",
            "|Parser: {text}",
            "|What do you read in {text}?",
        ),
        TEST: (
            "Parse and return: {text}",
            "Parse what follows: {text}",
            "Parse it from {source}: {text}",
            "Decode for me: {text}",
            "Read and return the value {text}",
            "Read it from {source}: {text}",
            "|To be parsed: {text}",
            "|Parse result of {text}?",
        ),
    },
    "explain": {
        TRAIN: (
            "Explain {text}",
            "Explain: {text}",
            "Explain this: {text}",
            "Explain the value {text}",
            "Explain the {source} {text}",
            "Describe {text}",
            "Describe: {text}",
            "Describe the {source} {text}",
            "Describe this value: {text}",
            "|What kind of value is {text}?",
            "|What kind of {source} is {text}?",
        ),
        TEST: (
            "Explain in words: {text}",
            "Explain what {text} is",
            "Explain it from {source}: {text}",
            "Describe what this is: {text}",
            "Describe in short {text}",
            "|Explanation of {text}?",
            "|What kind of thing is {text}?",
        ),
    },
    "route": {
        TRAIN: (
            "|Who should answer: {text}",
            "|Which model should answer this? {text}",
            "|Which specialist handles this: {text}",
            "|Which specialist is right for: {text}",
            "Route: {text}",
            "Route this query: {text}",
            "Choose a specialist for: {text}",
            "Name the specialist for this query: {text}",
        ),
        TEST: (
            "|Who answers this query: {text}",
            "|Which specialist takes this one? {text}",
            "Route to a specialist: {text}",
            "Choose who answers: {text}",
        ),
    },
    "fact": {
        TRAIN: (
            "|What is {text}?",
            "|What is meant by {text}?",
            "|What does {text} mean?",
            "Explain {text}",
            "Explain what {text} means",
            "Tell me what {text} is",
            "Describe {text}",
            "|Do you know what {text} is?",
        ),
        TEST: (
            "|What exactly is {text}?",
            "|Meaning of {text}?",
            "Explain to me {text}",
            "Describe in a sentence {text}",
            "Tell me about {text}",
        ),
    },
}
TASKS = tuple(_BODIES)

# What users call the notations.
ALIASES: dict[str, tuple[str, ...]] = {
    "hlxl": ("HLXL", "HLXL", "HLXL", "hlxl"),
    "lc-t": ("LC-T", "LC-T", "LC-T", "lc-t", "ASCII"),
    "lc-r": ("LC-R", "LC-R", "LC-R", "lc-r", "runic"),
    "lc-b": ("LC-B", "LC-B", "LC-B", "lc-b"),
}


@cache
def phrasings(task: str, side: str) -> tuple[str, ...]:
    """Returns all phrasings of a task on a side, with what may stand before and behind them."""
    return tuple(dict.fromkeys(text for variants in draws(task, side) for text in variants))


@cache
def draws(task: str, side: str) -> tuple[tuple[str, ...], ...]:
    """Returns the phrasings of each body, so that bodies are drawn evenly and not by the number of their variants."""
    return tuple(_variants(body, side) for body in _BODIES[task][side])


def _variants(body: str, side: str) -> tuple[str, ...]:
    plain = body.removeprefix("|")
    openers = _OPENERS[side] if plain == body else ("",)
    # A closer behind the value could be taken for a part of it, and behind a question mark it is none.
    closers = ("",) if plain.endswith(("{text}", "?")) else _CLOSERS[side]
    # A verb is in lower case behind an opener.
    begun = [f"{opener}{plain[0].lower()}{plain[1:]}" if opener else plain for opener in openers]
    return tuple(f"{beginning}{closer}" for beginning in begun for closer in closers)
