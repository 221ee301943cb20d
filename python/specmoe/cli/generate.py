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
    printer = _Printer(tokenizer)
    printer.show(ids)
    with torch.no_grad():
        _continue(network, ids.to(place), max_new_tokens, printer, sampling)
    printer.finish()


def _continue(network: Any, ids: Any, count: int, printer: _Printer, sampling: dict[str, Any]) -> None:
    """Generates `count` tokens; where the context is full, goes on from its second half."""
    import torch

    limit = network.config.max_position_embeddings
    while count > 0:
        if ids.shape[1] >= limit:
            ids = ids[:, -max(1, limit // 2) :]
        step = min(count, limit - ids.shape[1])
        printer.skip_prompt()
        ids = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=step,
            pad_token_id=network.generation_config.pad_token_id or 0,
            streamer=printer,
            **sampling,
        )
        count -= step


class _Printer:
    """Prints tokens as they come, as soon as they complete a character."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pending: list[int] = []
        self.skipping = False

    def skip_prompt(self) -> None:
        """The next tokens that `generate` hands over are the prompt, which was shown before."""
        self.skipping = True

    def put(self, value: Any) -> None:
        """Takes tokens from `generate`."""
        if not self.skipping:
            self.show(value)
        self.skipping = False

    def end(self) -> None:
        """`generate` is done; the text may go on."""

    def show(self, value: Any) -> None:
        """Prints tokens."""
        self.pending += value.reshape(-1).tolist()
        text = self.tokenizer.decode(self.pending)
        # An unfinished multi-byte character decodes to the replacement character.
        if not text.endswith("\ufffd"):
            self._write(text)

    def finish(self) -> None:
        """Prints what is left and ends the line."""
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
