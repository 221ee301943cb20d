"""Records from files, and what is said of those that cannot be read."""

from __future__ import annotations

import json

import pytest

from specmoe.training import DataError
from specmoe.training.data import Record, load_domain


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    # `datasets` copies what it reads.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def by_prompt(records):
    return sorted(records, key=lambda record: record.prompt)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a b", "completion": "c"},
        {"question": "a b", "answer": "c"},
        {"instruction": "a b", "output": "c"},
        {"prompt": [{"role": "user", "content": "a b"}], "solution": "c"},
        {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]},
        {"conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}]},
    ],
    ids=["prompt", "question", "instruction", "dapo", "messages", "sharegpt"],
)
def test_columns_are_recognized(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert load_domain("mine", str(path)) == [Record("a b", "c", "mine")]


def test_dialogues_give_each_answer_with_what_came_before(tmp_path):
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    records = load_domain("mine", str(path))
    assert Record("three", "four", "mine", history=(("one", "two"),)) in records and len(records) == 2


def test_csv_and_text(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("prompt,completion\na,1\nb,2\na,3\n,4\n")
    with pytest.raises(DataError, match="row 1: expected text"):
        load_domain("mine", str(table))
    table.write_text("prompt,completion\na,one\nb,two\nA,three\n")
    assert by_prompt(load_domain("mine", str(table))) == [Record("a", "one", "mine"), Record("b", "two", "mine")]
    text = tmp_path / "lines.txt"
    text.write_text("the quick brown fox jumps over the dog\n\nshort\n")
    (record,) = load_domain("mine", str(text))
    assert record == Record("Continue: the quick", "brown fox jumps over the dog", "mine")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "", "got an empty file"),
        ("rows.jsonl", "{not json", "not loaded"),
        ("rows.jsonl", '{"a": 1}\n', "expected columns prompt and completion"),
        ("rows.jsonl", '{"prompt": " ", "completion": "x"}\n', "found none"),
        ("rows.bin", "x", "expected one of .jsonl"),
    ],
)
def test_bad_files(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        load_domain("math", str(path))


def test_missing_sources(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="found none"):
        load_domain("math", str(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="expected one of math, reasoning"):
        load_domain("poems")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="nobody/nothing: not loaded"):
        load_domain("math", "nobody/nothing")
