"""Write docs/models.md: every model of the installed transformers that has experts, and how ours compare.

python scripts/list_models.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/models")]

import transformers  # noqa: E402
from model_table import page, row, walk  # noqa: E402


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    for result in walk():
        print(row(*result), flush=True)
        results.append(result)
    wrong = [case.config.__name__ for case, result in results if result.problems]
    if wrong:
        print(f"not written, these are wrong: {', '.join(wrong)}")
        return 1
    (ROOT / "docs/models.md").write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
