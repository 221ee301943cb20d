"""The base that needs no network: made once, whole or not at all, and shared by families."""

from __future__ import annotations

import pytest

from specmoe.specialists.bases.default import BaseSettings, default_base
from specmoe.specialists.bases.tokenizer import VOCABULARY, byte_tokenizer
from specmoe.specialists.corpora import CorpusSettings, generate
from specmoe.specialists.family import DEFAULT
from specmoe.specialists.training import prepare_family
from specmoe.training import TrainingInterrupted
from specmoe.training.data import encode_records
from specmoe.training.tuning import trainer as trainer_module

SETTINGS = BaseSettings(
    hidden_size=64, intermediate_size=64, layers=1, heads=2, context=256, examples={"runic": 60, "ascii": 40}, steps=6,
    batch_size=8, precision="float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("specmoe.specialists.bases.default._VALIDATION", 10)


def test_it_is_made_once_and_the_same_after_an_interruption(monkeypatch, tmp_path):
    whole = default_base(SETTINGS, progress=False)
    weights = (whole / "model.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("specmoe.specialists.bases.default.tune", None)
        assert default_base(SETTINGS, progress=False) == whole

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    real, calls = trainer_module.TuneTrainer.training_step, iter(range(1, 100))

    def step(self, *args, **kwargs):
        self.run.stop.requested |= next(calls) == 3
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module.TuneTrainer, "training_step", step)
        with pytest.raises(TrainingInterrupted, match="after step 3"):
            default_base(SETTINGS, progress=False)
    again = default_base(SETTINGS, progress=False)
    assert again.parent != whole.parent
    assert (again / "model.safetensors").read_bytes() == weights
    assert [path.name for path in again.parent.iterdir()] == [again.name]


def test_a_damaged_one_is_made_again():
    folder = default_base(SETTINGS, progress=False)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"no")
    default_base(SETTINGS, progress=False)
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_family_has_its_own_copy_and_the_quantized_one(tmp_path):
    pytest.importorskip("bitsandbytes")
    family = prepare_family(tmp_path / "family", None, SETTINGS, progress=False)
    assert family.base == DEFAULT
    pretrained = default_base(SETTINGS, progress=False) / "model.safetensors"
    assert (family.full_precision_folder / "model.safetensors").read_bytes() == pretrained.read_bytes()
    assert (family.base_folder / "model.safetensors").stat().st_size < pretrained.stat().st_size


def test_a_rune_is_one_token_and_a_letter_of_a_word_too():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) <= VOCABULARY
    # The space belongs to what stands behind it.
    assert len(tokenizer.tokenize("🐊14🐁0 42🐂")) == 3 + 2 + 1 + 1 + 2
    assert len(tokenizer.tokenize(" ⟁∅⊤⊥⊠◇◆")) == 7
    assert len(tokenizer.tokenize("apple_tree")) == 10
    assert len(tokenizer.tokenize("HLXL to LC-T")) == 1 + 3 + 3


@pytest.mark.parametrize("name", ["coordinator", "ascii", "runic", "gpu"])
@pytest.mark.parametrize("side", ["train", "test"])
def test_every_example_fits_and_comes_back(name, side):
    tokenizer = byte_tokenizer()
    examples = generate(name, side, CorpusSettings(size=200, test_size=200))
    assert len(encode_records(examples, tokenizer, 256)) == 200
    for example in examples:
        assert tokenizer.decode(tokenizer(example.completion)["input_ids"]) == example.completion
