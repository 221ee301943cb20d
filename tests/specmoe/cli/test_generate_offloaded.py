"""`specmoe generate --memory`: text from a model whose experts are on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from ..offload.tiny_checkpoints import VOCABULARY, write_checkpoint

WORDS = {f"w{i}" for i in range(VOCABULARY)}


def make_model(kind: str, folder: Path) -> Path:
    write_checkpoint(kind, folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    plain = Tokenizer(WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss_mxfp4", "switch"])
def test_text_and_status(specmoe: Any, kind: str, tmp_path: Path, cache: Path) -> None:
    model = make_model(kind, tmp_path / "model")
    options = ("--prompt", "w5 w6 w7", "--max-new-tokens", 6, "--temperature", 0)
    first = specmoe("generate", "--model", model, "--memory", "500KiB", *options)
    assert first.code == 0, first.err
    assert (
        first.out.startswith("w5 w6 w7")
        and all(word in WORDS for word in first.out.split())
        and len(first.out.split()) >= 4
    )
    assert "writing" in first.err and "of experts in memory" in first.err and "tokens/s" in first.err
    assert len(list((cache / "stores").iterdir())) == 1
    again = specmoe("generate", model, "--memory", "5MiB", *options)
    assert again.out == first.out and "writing" not in again.err


def test_packed(specmoe: Any, tmp_path: Path, cache: Path) -> None:
    model = make_model("qwen3_moe", tmp_path / "model")
    options = ("--prompt", "w5 w6", "--max-new-tokens", 4, "--temperature", 0)
    plain = specmoe("generate", model, "--memory", "1MiB", *options)
    packed = specmoe("generate", model, "--memory", "1MiB", "--pack", *options)
    assert packed.code == 0 and packed.out == plain.out, packed.err
    assert any(path.name.endswith("-packed.store") for path in (cache / "stores").iterdir())
    done = specmoe("generate", model, "--pack", *options)
    assert done.code == 2 and "--pack: expected together with --memory" in done.err


def test_quantized(specmoe: Any, tmp_path: Path) -> None:
    model, store = make_model("qwen3_moe", tmp_path / "model"), tmp_path / "small.store"
    options = ("--memory", "1MiB", "--prompt", "w5", "--max-new-tokens", 2, "--store", store)
    assert specmoe("generate", model, "--quantize", "nf4", *options).code == 0
    done = specmoe("generate", model, "--quantize", "int8", *options)
    assert done.code == 1 and "expected it to be quantized to int8, got nf4" in done.err


def test_what_a_user_can_put_right_is_one_line(specmoe: Any, tmp_path: Path) -> None:
    model = make_model("qwen3_moe", tmp_path / "model")
    for options, message in (
        ((), "model: expected one directory"),
        ((model, "--model", model), "model: expected one directory"),
        ((tmp_path / "no",), "expected a model directory, found none"),
        ((model, "--memory", "lots"), "--memory: expected a positive size"),
        ((model, "--memory", "1KiB"), "memory: expected at least"),
        ((model, "--store", tmp_path / "s"), "expected together with --memory"),
        ((model, "--memory", "1MiB", "--device", "cuda"), "--device: expected cpu or auto"),
    ):
        done = specmoe("generate", *options)
        assert done.code == 2 and message in done.err, done.err
        assert len([line for line in done.err.splitlines() if line.startswith("error")]) == 1
