"""`specmoe generate`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import UsageError
from .printer import Printer, StatusLine


def generate(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="Directory of a model.", show_default=False),
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="The same, as an option.", show_default=False)] = None,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the continuation.")] = 500,
    temperature: Annotated[float, typer.Option(min=0.0, help="Softmax temperature; 0 is greedy.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the K likeliest tokens; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 1337,
    device: Annotated[str, typer.Option(help="auto, cuda, mps, directml or cpu.")] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(help='Memory for experts, such as "6GiB": they stay on disk, in a store.', show_default=False),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="The store. [default: one in the cache folder, written the first time]", show_default=False),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="nf4 or int8, for experts in a store.", show_default=False)
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="A quarter less on disk, without loss, for bfloat16 experts in a store.")
    ] = False,
    predictor: Annotated[
        str,
        typer.Option(
            help="What guesses experts: adaptive, next_gate, previous_token, none, or a .npz of `predict train`."
        ),
    ] = "adaptive",
) -> None:
    """Continue a prompt, printing the text as it is generated."""
    folder = _folder(directory, model)
    if memory is None and (store is not None or quantize is not None or pack):
        raise UsageError("--store, --quantize, --pack: expected together with --memory, got them alone")
    if quantize not in (None, "nf4", "int8"):
        raise UsageError(f"--quantize: expected nf4 or int8, got {quantize!r}")

    import torch
    from transformers import set_seed

    network: Any
    if memory is None:
        from ..training.device import choose_device, torch_device

        place = torch_device(choose_device(device))
        network, tokenizer = _load(folder)
        network.to(place)
        engine: Any = nullcontext()
    else:
        if device not in ("auto", "cpu"):
            raise UsageError(f"--device: expected cpu or auto with --memory, got {device}")
        place = torch.device("cpu")
        tokenizer = _tokenizer(folder)
        engine = _offloaded(folder, memory, store, quantize, pack, predictor)
        network = engine.model
    with engine as opened:
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).input_ids
        if network.config.model_type == "specmoe" and (unknown := sorted(set(prompt) - set(tokenizer.decode(ids[0])))):
            raise UsageError(f"--prompt: expected characters of the model's vocabulary, got {''.join(unknown)!r}")
        if ids.shape[1] == 0:
            raise UsageError("--prompt: expected at least one character, got none")
        set_seed(seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k}
        printer = Printer(tokenizer, None if opened is None else StatusLine(opened))
        try:
            printer.show(ids)
            with torch.no_grad():
                _continue(network, ids.to(place), max_new_tokens, printer, sampling)
        finally:
            printer.finish()


def _continue(network: Any, ids: Any, count: int, printer: Printer, sampling: dict[str, Any]) -> None:
    """Generates `count` tokens; where the context is full, goes on from its second half."""
    import torch

    limit = getattr(network.config, "max_position_embeddings", None) or sys.maxsize
    encoder_decoder = getattr(network.config, "is_encoder_decoder", False)
    while count > 0:
        if ids.shape[1] >= limit:
            ids = ids[:, -max(1, limit // 2) :]
        step = min(count, limit - ids.shape[1])
        before = 0 if encoder_decoder else ids.shape[1]
        printer.skip_prompt()
        ids = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=step,
            pad_token_id=network.generation_config.pad_token_id or 0,
            streamer=printer,
            **sampling,
        )
        # The model may end before that, and an encoder's text is not continued.
        if encoder_decoder or ids.shape[1] - before < step:
            return
        count -= step


def _folder(directory: Path | None, option: Path | None) -> Path:
    if (directory is None) == (option is None):
        raise UsageError("model: expected one directory, as argument or with --model")
    folder = directory if directory is not None else option
    assert folder is not None
    if not folder.is_dir():
        raise UsageError(f"model: expected a model directory, found none at {folder}")
    if not (folder / "config.json").is_file():
        raise UsageError(f"model: {folder / 'config.json'}: expected a configuration, found no such file")
    return folder


def _offloaded(folder: Path, memory: str, store: Path | None, quantize: str | None, pack: bool, predictor: str) -> Any:
    """Opens, or writes first, the store of a model's experts, and loads the rest of it."""
    from ..offload import offload, parse_bytes
    from ..offload.checkpoint import build_checkpoint_store
    from ..offload.engine.stores import default_store
    from .progress import progress_bar

    parse_bytes(memory, argument="--memory")
    path = store or default_store(folder, quantize, pack)
    if not path.exists():
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        print(f"store: writing {path} (once)", file=sys.stderr)
        with progress_bar("writing experts") as step:
            build_checkpoint_store(folder, path, quantize=quantize, pack=pack, progress=step, replace=False).close()
    asked = None if predictor == "none" else predictor
    return offload(folder, path, memory=memory, quantize=quantize, predictor=asked)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    import specmoe.transformer  # noqa: F401  (registers the architecture)

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UsageError(f"model: {folder}: its tokenizer cannot be loaded: {error}") from error


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
