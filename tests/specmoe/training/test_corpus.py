"""Where the text comes from, and what is said when it is not there."""

from __future__ import annotations

import os
import sys
import urllib.error
from pathlib import Path

import pytest

from specmoe.training import DataError
from specmoe.training import corpus as corpus_module
from specmoe.training.corpus import load_text

SHAKESPEARE = Path(os.environ.get("MOE_DATA_DIR", "")) / "tinyshakespeare.txt"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Makes every download fail and the cache empty; returns the cache's parent."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(corpus_module.urllib.request, "urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_embedded_text_is_english_prose():
    text = load_text("pydoc")
    assert len(text) > 100_000
    assert "statement" in text


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo é".encode())
    assert load_text(str(path)) == "one\r\ntwo é"


@pytest.mark.parametrize("name", ["missing.txt", "./missing", "~/missing/file"])
def test_a_missing_file_is_named(name):
    with pytest.raises(DataError, match="dataset: no such file: .*missing"):
        load_text(name)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected a text file, got the directory"):
        load_text(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00bad", "expected a readable UTF-8 text file"), (b"", "expected text, got an empty file")],
    ids=["binary", "empty"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "data.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"data.bin: {message}"):
        load_text(str(path))


def test_a_corrupt_tiny_shakespeare_is_refused_with_both_checksums(tmp_path, monkeypatch):
    (tmp_path / "tinyshakespeare.txt").write_text("First Citizen")
    monkeypatch.setenv("MOE_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"tinyshakespeare.txt: expected SHA-256 86c4e6aa\w+, got \w{64}"):
        load_text("tinyshakespeare")


def test_a_failed_download_says_what_was_tried(no_network, monkeypatch):
    monkeypatch.delenv("MOE_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="not in MOE_DATA_DIR= and the download of https://.* failed: .*no network"):
        load_text("tinyshakespeare")


def test_a_download_with_the_wrong_content_is_not_kept(no_network, monkeypatch):
    class Reply:
        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def read(self):
            return b"<html>not found</html>"

    monkeypatch.delenv("MOE_DATA_DIR", raising=False)
    monkeypatch.setattr(corpus_module.urllib.request, "urlopen", lambda *args, **kwargs: Reply())
    with pytest.raises(DataError, match="input.txt: expected SHA-256"):
        load_text("tinyshakespeare")
    assert not no_network.exists()


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="MOE_DATA_DIR has no tinyshakespeare.txt")
def test_tiny_shakespeare_is_the_known_file(no_network):
    text = load_text("tinyshakespeare")
    assert (len(text), len(set(text))) == (1_115_394, 65)


def test_python_without_the_embedded_text_gets_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="installed without pydoc_data"):
        load_text("pydoc")


class FakeRows:
    column_names = ["title", "body"]

    def __getitem__(self, name):
        return {"title": ["a", "b"], "body": ["first", "second"]}[name]


def test_a_hub_data_set_is_one_column_joined(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: FakeRows())
    assert load_text("someone/prose-v1.0", "body") == "first\nsecond"
    with pytest.raises(DataError, match="text_column: expected one of title, body, got 'text'"):
        load_text("someone/prose")


def test_a_hub_data_set_that_is_not_there_is_named(monkeypatch):
    import datasets

    def refuse(name, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="'someone/prose' is neither .* loaded from the hub: ConnectionError: offline"):
        load_text("someone/prose")
