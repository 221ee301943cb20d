"""The generated corpora: they are right, seeded, and their two sides differ in structure and in phrasing."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from specmoe.notation import Contract, convert, parse, readings, render, same
from specmoe.specialists.corpora import (
    SIDES,
    SPECIALISTS,
    CorpusSettings,
    generate,
    read_examples,
    write_corpora,
    write_examples,
)
from specmoe.specialists.corpora.example import Example
from specmoe.specialists.corpora.explanations import FACTS, explain
from specmoe.specialists.corpora.phrasings import _BODIES, TASKS, phrasings
from specmoe.specialists.corpora.random_values import VALUE_KINDS
from specmoe.specialists.corpora.shapes import shape_of
from specmoe.specialists.corpora.sides import is_new_word, side_of_shape
from specmoe.specialists.corpora.words import COMMON
from specmoe.training import DataError
from specmoe.training.data import train_tokenizer
from specmoe.training.data.prepare import encode_records

SETTINGS = CorpusSettings(size=2500, test_size=800)
KINDS = {"primitives", "arrays", "objects", "contracts", "nested", "handles", "parse", "explain"}


@pytest.fixture(scope="module")
def corpora() -> dict[tuple[str, str], list[Example]]:
    return {(name, side): generate(name, side, SETTINGS) for name in SPECIALISTS for side in SIDES}


def of_side(corpora, side):
    return [example for (_, its), examples in corpora.items() if its == side for example in examples]


def test_every_conversion_is_what_the_codec_says(corpora):
    for example in of_side(corpora, "train") + of_side(corpora, "test"):
        if not example.is_conversion:
            continue
        value = parse(example.answer, "hlxl")
        assert example.completion == render(value, example.target)
        source = render(value, example.source)
        assert source in example.prompt
        assert convert(source, example.target, example.source) == example.completion
        assert shape_of(value) == example.shape


def test_what_is_harder_is_trained_more_often_than_it_is_tested(corpora):
    def share(side):
        asked = [example.source for example in corpora["coordinator", side] if example.kind in VALUE_KINDS]
        return asked.count("lc-b") / len(asked)

    # 3 of 12 pairs of notations, and 3 x 2.5 of 9 + 3 x 2.5.
    assert share("test") == pytest.approx(0.25, abs=0.06)
    assert share("train") == pytest.approx(7.5 / 16.5, abs=0.04)


def test_sizes_and_no_prompt_twice(corpora):
    for (name, side), examples in corpora.items():
        assert len(examples) == (SETTINGS.size if side == "train" else SETTINGS.test_size)
        assert len({example.prompt for example in examples}) == len(examples)
        assert {example.domain for example in examples} == {name}
        assert {example.kind for example in examples} == set(SPECIALISTS[name].kinds)
    assert set(SPECIALISTS["ascii"].kinds) == set(SPECIALISTS["runic"].kinds) == KINDS
    assert set(SPECIALISTS["coordinator"].kinds) == KINDS | {"routing"}


def test_no_structure_and_no_phrasing_of_the_test_side_is_trained(corpora):
    train, test = of_side(corpora, "train"), of_side(corpora, "test")
    trained_shapes = {example.shape for example in train if example.shape}
    assert not trained_shapes & {example.shape for example in test}
    assert not {example.phrasing for example in train} & {example.phrasing for example in test}
    # Nor does any prompt of the test side fit a phrasing of the training side.
    for task in TASKS:
        assert not set(phrasings(task, "train")) & set(phrasings(task, "test"))
        bodies = {side: {body.removeprefix("|") for body in _BODIES[task][side]} for side in SIDES}
        assert not bodies["train"] & bodies["test"]
    assert all(side_of_shape(shape) == "train" for shape in trained_shapes)


def test_words_of_the_test_side_are_in_part_new(corpora):
    def words(examples):
        # Bytes are beginnings of words, and the gpu specialist has words of its own.
        held = (re.sub(r'b"\w+"', "", example.answer) for example in examples if example.domain != "gpu")
        return {word for answer in held for word in re.findall(r"[a-z]{4,}", answer)} & set(COMMON)

    train, test = words(of_side(corpora, "train")), words(of_side(corpora, "test"))
    assert not any(is_new_word(word) for word in train)
    assert sum(is_new_word(word) for word in test) > 40


def test_what_has_few_forms_is_trained():
    for value in (None, True, False, 7, "x", [], {}, [1], [1] * 5, {"x": 1}, Contract(14, {0: 1})):
        assert side_of_shape(shape_of(value)) == "train"
    for value in (123, -12, [1] * 4, ["a"] * 3):
        assert side_of_shape(shape_of(value)) == "test"


def test_the_test_side_has_many_structures(corpora):
    for name in SPECIALISTS:
        for kind in ("contracts", "nested"):
            shapes = Counter(example.shape for example in corpora[name, "test"] if example.kind == kind)
            assert len(shapes) > 20 and shapes.most_common(1)[0][1] < 0.3 * shapes.total()


def test_values_stay_in_their_sizes(corpora):
    def numbers(value):
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        parts = (
            value.fields.values()
            if isinstance(value, Contract)
            else value.values()
            if isinstance(value, dict)
            else value
        )
        if isinstance(value, Contract | dict | list):
            for part in parts:
                yield from numbers(part)

    for example in of_side(corpora, "train") + of_side(corpora, "test"):
        if example.answer:
            assert len(example.answer) <= SETTINGS.text_length
            largest = max(numbers(parse(example.answer, "hlxl")), default=0)
            assert largest <= (255 if "lc-b" in (example.source, example.target) else 9999)


def test_the_source_is_named_where_the_text_could_be_another(corpora):
    for example in of_side(corpora, "train") + of_side(corpora, "test"):
        if example.is_conversion and "{source}" not in example.phrasing:
            text = render(parse(example.answer, "hlxl"), example.source)
            read, _ = readings(text)
            assert same(next(iter(read.values())), parse(example.answer, "hlxl"))
            assert next(iter(read)) == example.source


def test_routes(corpora):
    for example in corpora["ascii", "test"]:
        assert example.route == "ascii"
    for example in corpora["runic", "test"]:
        assert example.route == "runic"
    for example in corpora["gpu", "test"]:
        assert example.route == "gpu" and re.search(r"90[012]", example.prompt)
    for example in corpora["coordinator", "test"]:
        if example.is_conversion:
            notations = {example.source, example.target} - {"hlxl"}
            assert example.route == {("lc-t",): "ascii", ("lc-r",): "runic"}.get(tuple(notations), "coordinator")
        elif example.kind == "routing":
            assert example.completion in SPECIALISTS and example.route == "coordinator"


def test_seeds():
    small = CorpusSettings(size=50, test_size=50)
    assert generate("runic", "train", small) == generate("runic", "train", small)
    assert generate("runic", "train", small) != generate("runic", "train", CorpusSettings(50, 50, seed=1))
    # More examples begin with the same ones.
    assert generate("runic", "train", CorpusSettings(size=80))[:50] == generate("runic", "train", small)


@pytest.mark.parametrize("name", SPECIALISTS)
def test_three_thousand_test_cases_of_each(name):
    assert len({example.prompt for example in generate(name, "test", CorpusSettings(test_size=3000))}) == 3000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("null", "This is null."),
        ("-4", "This is the integer -4."),
        ('"two words"', "This is a string of 9 characters."),
        ("[1, true]", "This is an array with integer, boolean."),
        ("{}", "This is an object with nothing."),
        ("{14: {@0: 1}}", "This is a contract 14 (integer) with integer."),
        ("{7: {}}", "This is a contract 7 (not common) with nothing."),
    ],
)
def test_explanations(text, sentence):
    assert explain(parse(text, "hlxl")) == sentence
    assert FACTS["contract 901"] == "Contract 901 is: kernel."


def test_files(tmp_path):
    settings = CorpusSettings(size=20, test_size=10)
    written = write_corpora(tmp_path, settings, ["runic", "gpu"])
    assert [path.name for path in written] == [
        "runic.train.jsonl",
        "runic.test.jsonl",
        "gpu.train.jsonl",
        "gpu.test.jsonl",
    ]
    assert list(read_examples(tmp_path / "runic.test.jsonl")) == generate("runic", "test", settings)
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="line 1: expected an example"):
        list(read_examples(tmp_path / "wrong.jsonl"))
    assert write_examples([], tmp_path / "none.jsonl") == 0


def test_examples_are_records_of_the_training_data():
    examples = generate("runic", "train", CorpusSettings(size=30))
    tokenizer = train_tokenizer(examples, vocab_size=300)
    assert len(encode_records(examples, tokenizer, max_length=256)) == 30


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="specialist: expected coordinator, ascii, runic, gpu, got 'x'"):
        generate("x", "train")
    with pytest.raises(ValueError, match="side: expected train or test, got 'dev'"):
        generate("runic", "dev")
    with pytest.raises(ValueError, match="size: expected 1 or more, got 0"):
        CorpusSettings(size=0)
    with pytest.raises(ValueError, match="expected sizes that allow"):
        generate("ascii", "train", CorpusSettings(text_length=1))
