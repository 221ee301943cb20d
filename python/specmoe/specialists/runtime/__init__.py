"""A family of specialists that answers: `SpecialistRouter("runs/specialists").query("Convert to LC-R: [1, 2, 3]")`."""

from .answer import Answer, Attempt
from .answering import Ask, Policy, Reply, answer_all
from .members import FamilyError, Member, members_of
from .router import ROUTING, SpecialistRouter

__all__ = [
    "ROUTING",
    "Answer",
    "Ask",
    "Attempt",
    "FamilyError",
    "Member",
    "Policy",
    "Reply",
    "SpecialistRouter",
    "answer_all",
    "members_of",
]
