"""`specmoe generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError


def generate(
    model: Annotated[Path, typer.Argument(help="Directory of a model, as `specmoe train` writes it.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation.")] = 500,
    temperature: Annotated[float, typer.Option(min=0.0, help="Softmax temperature; 0 is greedy.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest tokens; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 1337,
    device: Annotated[str, typer.Option(help="auto, cuda, mps, directml or cpu.")] = "auto",
) -> None:
    """Continue a prompt, printing the text as it is generated."""
    _check_directory(model)

    import torch
    from transformers import set_seed

    from ..training.device import choose_device, torch_device

    place = torch_device(choose_device(device))
    network, tokenizer = _load(model)
    network.to(place)
    ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).input_ids
    if unknown := sorted(set(prompt) - set(tokenizer.decode(ids[0]))):
        raise UsageError(f"--prompt: expected characters of the model's vocabulary, got {''.join(unknown)!r}")
    if ids.shape[1] == 0:
        raise UsageError("--prompt: expected at least one character, got none")
    set_seed(seed)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k}
    network.generate(
        ids.to(place),
        attention_mask=torch.ones_like(ids, device=place),
        max_new_tokens=max_new_tokens,
        pad_token_id=network.generation_config.pad_token_id or 0,
        streamer=_Printer(tokenizer),
        **sampling,
    )


class _Printer:
    """Prints tokens as they come; a token is printed when the text it completes is valid."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pending: list[int] = []

    def put(self, value: Any) -> None:
        self.pending += value.reshape(-1).tolist()
        text = self.tokenizer.decode(self.pending)
        # An unfinished multi-byte character decodes to the replacement character.
        if not text.endswith("\ufffd"):
            self._write(text)

    def end(self) -> None:
        self._write(self.tokenizer.decode(self.pending) + "\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self.pending = []


def _check_directory(model: Path) -> None:
    if not model.is_dir():
        raise UsageError(f"model: expected a model directory, found none at {model}")
    if not (model / "config.json").is_file():
        raise UsageError(f"model: {model / 'config.json'}: expected a configuration, found no such file")


def _load(model: Path) -> tuple[Any, Any]:
    """Loads model and tokenizer; a directory with a manifest is verified first."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import specmoe.transformer  # noqa: F401  (registers the architecture)

    from ..training.checkpoints import MANIFEST, verify
    from ..training.run_state import quiet_progress_bars

    if (model / MANIFEST).is_file():
        verify(model)
    with quiet_progress_bars():
        try:
            return AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
        except OSError as error:
            raise UsageError(f"model: {model}: {error}") from error
