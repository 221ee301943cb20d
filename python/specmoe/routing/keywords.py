"""The baseline: the first domain with a keyword in the query, otherwise reasoning."""

from __future__ import annotations

import re

from ..training.data.records import DOMAINS
from .route import Route

# In the order in which they are tried.
KEYWORDS: dict[str, tuple[str, ...]] = {
    "math": ("calculate", "math", "+", "-", "*", "/", "="),
    "code": ("code", "python", "function", "program"),
    "knowledge": ("explain", "what is", "why", "how"),
    "conversation": ("hello", "hi", "how are", "help"),
}
OTHERWISE = "reasoning"


class KeywordRouter:
    """Looks for words, and for signs of arithmetic; its confidence is a guess, not a calibrated probability."""

    domains = DOMAINS

    def __init__(self) -> None:
        self._patterns = {
            domain: [(word, re.compile(rf"\b{word}\b" if word[0].isalpha() else re.escape(word))) for word in words]
            for domain, words in KEYWORDS.items()
        }

    def route(self, text: str) -> Route:
        """Returns the choice for a query; an empty one is abstained from."""
        lowered = text.lower()
        if not lowered.strip():
            return Route(None, 1 / len(self.domains), dict.fromkeys(self.domains, 1 / len(self.domains)))
        hits = {
            domain: tuple(word for word, pattern in patterns if pattern.search(lowered))
            for domain, patterns in self._patterns.items()
        }
        domain = next((domain for domain in KEYWORDS if hits[domain]), OTHERWISE)
        counts = {name: 1 + 4 * (name == domain) + len(hits.get(name, ())) for name in self.domains}
        total = sum(counts.values())
        probabilities = {name: count / total for name, count in counts.items()}
        return Route(domain, probabilities[domain], probabilities, hits.get(domain) or ("no keyword",))
