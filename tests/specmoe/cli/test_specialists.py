"""`specmoe specialists`."""

from __future__ import annotations

import json


def test_corpus(specmoe, tmp_path):
    outcome = specmoe("specialists", "corpus", "--output", tmp_path, "--size", 12, "--test-size", 6, "--only", "ascii")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == f"{tmp_path / 'ascii.train.jsonl'}: 12 examples"
    rows = [json.loads(line) for line in (tmp_path / "ascii.test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6
    keys = {"prompt", "completion", "kind", "source", "target", "answer", "route", "domain", "shape", "phrasing"}
    assert set(rows[0]) == keys
    assert json.loads((tmp_path / "corpus.json").read_text())["seed"] == 0


def test_an_unknown_specialist(specmoe, tmp_path):
    outcome = specmoe("specialists", "corpus", "--output", tmp_path, "--only", "x")
    assert outcome.code == 2
    assert "specialist: expected coordinator, ascii, runic, gpu, got 'x'" in outcome.err
