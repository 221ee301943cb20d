"""Learning from corrections: `Learner(router).correct(query, answer)`."""

from .learner import Learned, Learner
from .log import Correction, CorrectionLog
from .rules import LearnedRules, Rule, rule_of
from .update import UpdateSettings

__all__ = ["Correction", "CorrectionLog", "Learned", "LearnedRules", "Learner", "Rule", "UpdateSettings", "rule_of"]
