"""A family of specialists from Python: train it first with `specmoe specialists train all`.

python examples/specialists.py [--family runs/specialists] [--memory 3GiB]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from specmoe.specialists.learning import Learner
from specmoe.specialists.runtime import Policy, SpecialistRouter


def main(family: Path, memory: str) -> None:
    # The coordinator stays in memory, the specialists come and go; what is wrong is drawn again four times at most.
    with SpecialistRouter(family, memory, routing="rules", policy=Policy(samples=4)) as router:
        answer = router.query("Convert to LC-R: [1, 2, 3]")
        print(answer.text or answer.reason)
        print(f"  by {answer.specialist or 'nobody'}, {answer.confidence:.0%} sure, verified: {answer.verified}")

        # One batch: each query is answered by its own specialist, on the base that they share.
        queries = ["Convert to LC-T: {x: 10}", "Parse ⟁ast", "What is LC-B?", 'Convert to LC-B: {14: {@0: "hi"}}']
        for answer in router.query_batch(queries):
            print(f"{answer.query} -> {answer.text or answer.reason} [{answer.specialist}]")

        # What is typed so far is enough to load the specialist meanwhile.
        router.expect("Convert to LC-T: [1, ")

        # A phrasing that no corpus has: corrected once, learned with other values, kept if nothing else is lost.
        learner = Learner(router)
        learned = learner.correct("Cattle script for [1, 20]", "🐃1, 20🐄")
        print(f"correction {learned.correction.number}: {'learned' if learned.kept else learned.reason}")
        print(router.query('Cattle script for ["moon", 7]').text)
        if learned.kept:
            learner.revert()
            print("taken back, to the byte")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("runs/specialists"))
    parser.add_argument("--memory", default="3GiB")
    options = parser.parse_args()
    main(options.family, options.memory)
