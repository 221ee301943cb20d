"""The default records of the five domains."""

from __future__ import annotations

import ast

import pytest

from specmoe.training import DataError
from specmoe.training.data import DOMAINS, GROUPS, Record, is_right, load_domain, split, unique
from specmoe.training.data.code_functions import read_functions
from specmoe.training.data.dialogues import generate_conversation
from specmoe.training.data.knowledge_texts import read_docstrings, read_topics, read_wikitext
from specmoe.training.data.math_problems import generate_math, read_gsm8k
from specmoe.training.data.reasoning_problems import generate_reasoning


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("MOE_DATA_DIR", raising=False)


def test_every_domain_is_in_one_group():
    assert sorted(domain for group in GROUPS.values() for domain in group) == sorted(DOMAINS)


@pytest.mark.parametrize("generate", [generate_math, generate_reasoning], ids=["math", "reasoning"])
def test_answers_are_in_their_completions(generate):
    for record in generate(500, seed=3):
        assert is_right(record.completion, record.answer), record


def test_equations_are_solved():
    equations = [r for r in generate_math(300, 0) if "x +" in r.prompt and r.prompt.startswith("Solve:")]
    assert len(equations) > 10
    for record in equations:
        left, right = record.prompt.removeprefix("Solve: ").split(" = ")
        value = eval(left.replace("x", f"*{record.answer}").lstrip("*"))  # 3x is 3*x
        assert value == int(right), record


@pytest.mark.parametrize("domain", ["math", "reasoning", "conversation", "knowledge"])
def test_defaults_need_no_network_and_are_seeded(domain):
    records = load_domain(domain, limit=300)
    assert records == load_domain(domain, limit=300)
    assert len(unique(records)) == len(records) == 300
    assert all(record.domain == domain and record.prompt and record.completion for record in records)
    if domain in ("math", "conversation"):
        assert records != load_domain(domain, limit=300, seed=1)


def test_code_is_functions_without_their_docstrings(tmp_path):
    (tmp_path / "module.py").write_text(
        'class A:\n    def area(self, r):\n        """Area of a circle. In square meters."""\n\n        return 3 * r\n'
        "def undocumented():\n    return 1\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_module.py").write_text('def f():\n    """Says f."""\n    return 1\n')
    (tmp_path / "broken.py").write_text("def f(:\n")
    (record,) = read_functions(tmp_path)
    assert "area" in record.prompt and "Area of a circle." in record.prompt and "square" not in record.prompt
    assert record.completion == "def area(self, r):\n    return 3 * r"
    ast.parse(record.completion)


def test_a_folder_without_code_is_said(tmp_path):
    with pytest.raises(DataError, match="expected Python files, found none"):
        list(read_functions(tmp_path))


def test_dialogues_go_on():
    first, second = list(generate_conversation(2, 0))
    assert second.history == ((first.prompt, first.completion),)
    assert "{" not in first.prompt + first.completion + second.prompt + second.completion


def test_topics_are_prose():
    for record in read_topics():
        assert len(record.completion) >= 60 and "\n" not in record.completion


def test_docstrings_are_asked_for_by_module_and_class(tmp_path):
    prose = "Shapes of a plane, measured in meters, with their areas and their sides."
    (tmp_path / "shapes.py").write_text(
        f'"""Shapes.\n\n{prose}\n\n    an example\n"""\n'
        f'class Circle:\n    """{prose}\n\n    {prose.upper()}\n    """\n'
        f'class _Hidden:\n    """{prose}"""\n'
    )
    (tmp_path / "_private.py").write_text(f'"""{prose}"""\n')
    module, first, second = read_docstrings(tmp_path)
    assert "Python's module shapes" in module.prompt and module.completion == prose
    assert "Python's class shapes.Circle" in first.prompt and first.completion == prose
    assert "(2)" in second.prompt and second.completion == prose.upper()


def test_knowledge_is_enough_without_a_network():
    assert len(load_domain("knowledge")) >= 2000


def test_gsm8k(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    path.write_text('{"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\\n#### 4"}\n')
    assert list(read_gsm8k(path)) == [Record("Two and two?", "2+2=4\nAnswer: 4", "math", "4")]
    path.write_text('{"question": "?"}\n')
    with pytest.raises(DataError, match="line 1: expected a question and an answer"):
        list(read_gsm8k(path))


def test_wikitext(tmp_path):
    path = tmp_path / "wiki.txt"
    text = (
        "The harbour , known since 1200 , is in the north @-@ east of the town 's old centre , and still in use today ."
    )
    path.write_text(f" \n = Harbour = \n \n {text} \n \n = = History = = \n \n {text} \n")
    first, second = read_wikitext(path)
    assert "Harbour" in first.prompt and "history" in second.prompt
    assert first.completion.startswith("The harbour, known since 1200, is in the north-east of the town's old")
    path.write_text("no headings")
    with pytest.raises(DataError, match="expected WikiText's articles"):
        list(read_wikitext(path))


def test_splits_are_by_prompt_and_stay():
    records = list(generate_reasoning(2000, 0))
    sides = split(records)
    keys = {name: {record.key for record in side} for name, side in sides.items()}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"]
    assert sum(map(len, sides.values())) == len(unique(records))
    # A prompt stays on its side when others come and go.
    fewer = split(records[:1000])
    assert {r.key for r in fewer["test"]} <= keys["test"]
    with pytest.raises(DataError, match="expected enough records for a"):
        split(records[:2])


def test_equal_prompts_differ_by_what_was_said_before():
    alone, after = Record("Yes", "ok", "conversation"), Record(" yes ", "ok", "conversation", history=(("a", "b"),))
    assert alone.key != after.key
    assert unique([alone, Record("YES", "no", "conversation"), after]) == [alone, after]
