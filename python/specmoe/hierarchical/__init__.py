"""Small experts of five domains in three groups, a router in two levels, and their mixture.

    workspace = Workspace(Path("runs/hierarchical"))
    report = evaluate(workspace)

`specmoe hierarchical train --expert all` makes the folder.
"""

from .decoding import GREEDY, Decoding
from .evaluation import Report, evaluate
from .generation import Answer, generate
from .mixture import MixedStream, mixing_weights
from .plan import Plan, claim_plan, read_plan
from .router import TwoLevelRouter, train_two_level
from .training import train_expert, train_experts
from .workspace import Workspace

__all__ = [
    "GREEDY",
    "Answer",
    "Decoding",
    "MixedStream",
    "Plan",
    "Report",
    "TwoLevelRouter",
    "Workspace",
    "claim_plan",
    "evaluate",
    "generate",
    "mixing_weights",
    "read_plan",
    "train_expert",
    "train_experts",
    "train_two_level",
]
