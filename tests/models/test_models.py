"""Every model of the installed transformers that has experts: the same with our experts as with its own."""

from __future__ import annotations

import re
from pathlib import Path

import model_walk
import pytest
import torch
import transformers
from model_table import documented, page, walk

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.disable_progress_bar()
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def test_every_model_gives_what_it_gives_with_transformers_own_experts():
    results = list(walk())
    text = page(results)
    print(text)
    wrong = [f"{case.config.__name__}: {'; '.join(result.problems)}" for case, result in results if result.problems]
    assert not wrong, "\n".join(wrong)
    unseen = set(model_walk.expert_classes()) - {e for case, _ in results for e in case.experts}
    assert not unseen, "no model was found for these experts"
    documents = (ROOT / "docs/models.md").read_text()
    if f"transformers {transformers.__version__} " in documents:
        assert documented(documents) == documented(text), "run `python scripts/list_models.py`"


def test_the_readme_counts_what_is_listed():
    counted = re.search(r"all (\d+)\s+configuration classes", (ROOT / "README.md").read_text())
    assert int(counted.group(1)) == len(documented((ROOT / "docs/models.md").read_text()))


@pytest.mark.slow
def test_every_model_in_bfloat16():
    wrong = [f"{case.config.__name__}: {'; '.join(r.problems)}" for case, r in walk(torch.bfloat16) if r.problems]
    assert not wrong, "\n".join(wrong)
