"""One tiny model, saved and loaded with each implementation of its experts, and what they give side by side."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from model_walk import Case, build, is_experts_class
from tiny_models import EXPERTS, TOP_K
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_kernels.integrations.recognition import Recognized, recognize
from moe_kernels.testing import TOLERANCE, relative_error

BATCH, TOKENS, NEW_TOKENS = 2, 12, 8
# Where rounding moves a token to another expert in any of the runs, they compute different functions: then another
# input is drawn, at most so many.
SEEDS = 16
# Parameters with fewer numbers are judged together: one number's error is a draw, and says little of the next. Where
# they look wrong, so many more inputs say whether they are.
FEW, MORE_DRAWS = 16, 4
# transformers' other ways to compute the same: with eager, three draws of what rounding does.
THEIRS = ("grouped_mm", "batched_mm")
# Configurations whose model takes embeddings only: its tokens are another model's.
EMBEDDINGS_ONLY = ("Qwen3OmniMoeTalkerConfig", "Qwen3OmniMoeTalkerTextConfig")


class Run(NamedTuple):
    """What a model gives. `routing` has the indices that each expert module was called with; `silent` are those modules
    that got no gradient."""

    output: Tensor | None
    loss: Tensor | None
    gradients: dict[str, Tensor]
    tokens: Tensor | None
    routing: dict[str, Tensor]
    silent: frozenset[str] = frozenset()


class Result(NamedTuple):
    """How far two runs in one dtype are from float64, as relative RMS errors: (transformers' worst, ours)."""

    computed: str
    output: tuple[float, float] | None
    loss: tuple[float, float] | None
    gradient: tuple[float, float] | None
    worst: str
    same_tokens: bool | None
    problems: tuple[str, ...]


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Give every parameter a size at which it matters; initializers with small numbers leave experts without a say."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            parameter.add_(noise, alpha=0.1)
        else:
            parameter.copy_(noise if "embed" in name else noise * parameter.shape[-1] ** -0.5)
    for buffer in model.buffers():
        if buffer.dtype == torch.int64 and buffer.dim() == 2 and buffer.shape[1] == TOP_K:
            # A table of each token's experts.
            buffer.copy_(torch.rand(len(buffer), EXPERTS, generator=generator).argsort(1)[:, :TOP_K])


def inputs_for(case: Case, model: PreTrainedModel, seed: int) -> dict[str, Tensor]:
    """Draw arguments for a model's forward."""
    generator = torch.Generator().manual_seed(seed)
    wanted = inspect.signature(model.forward).parameters
    if "pixel_values" in wanted and "input_ids" not in wanted:
        patch = model.config.num_channels * model.config.patch_size**2
        return {"pixel_values": torch.randn(16, patch, generator=generator), "grid_thw": torch.tensor([[1, 4, 4]])}
    ids = torch.randint(3, 60, (BATCH, TOKENS), generator=generator)
    inputs = {"input_ids": ids}
    if case.config.__name__ in EMBEDDINGS_ONLY:
        inputs = {
            "inputs_embeds": torch.randn(BATCH, TOKENS, model.config.get_text_config().hidden_size, generator=generator)
        }
    if "labels" in wanted:
        inputs["labels"] = ids if model.can_generate() else ids % model.config.num_labels
    if "decoder_input_ids" in wanted:
        # It would draw them.
        inputs["decoder_input_ids"] = ids.flip(1)
    if "moe_mm_token_type_ids" in wanted:
        # Words and images have experts of their own.
        inputs["moe_mm_token_type_ids"] = ids % 2
    return inputs


def run(model: PreTrainedModel, inputs: dict[str, Tensor], generates: bool) -> Run:
    """Forward, backward, and, where the model can, greedy generation."""
    model.eval()
    calls: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if is_experts_class(type(module)):
            module.register_forward_hook(lambda _, args, __, name=name: calls.setdefault(name, []).append(args[1]))
    inputs = {n: v.to(model.dtype) if v.is_floating_point() else v for n, v in inputs.items()}
    tokens = generate(model, inputs) if generates else None
    if not has_forward(model):
        return Run(None, None, {}, tokens, {n: torch.cat(i) for n, i in calls.items()})
    calls.clear()
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    out = model(**inputs, **options)
    output = out.logits if "logits" in out else out[0]
    loss = out.loss if "loss" in out else None
    random = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    (loss if loss is not None else (output * random).sum()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    routing = {n: torch.cat(i) for n, i in calls.items()}
    silent = frozenset(n for n in routing if not model.get_submodule(n).down_proj.grad.any())
    return Run(output.detach(), None if loss is None else loss.detach(), gradients, tokens, routing, silent)


def has_forward(model: PreTrainedModel) -> bool:
    """Whether a model is one; some are several, which only `generate` calls in turn."""
    return "input" not in inspect.signature(model.forward).parameters


@torch.no_grad()
def generate(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Return greedily generated tokens, eight more for each prompt."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    options: dict[str, Any] = {n: v for n, v in inputs.items() if n not in ("labels", "decoder_input_ids")}
    options |= {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    if not has_forward(model):
        options = {"input_ids": inputs["input_ids"], "thinker_max_new_tokens": NEW_TOKENS, "return_audio": False}
    if hasattr(model.config, "canvas_length"):
        # It samples, for as many steps as it is told.
        options = {"input_ids": inputs["input_ids"], "max_new_tokens": NEW_TOKENS, "max_denoising_steps": 3}
        torch.manual_seed(3)
    tokens = model.generate(**options)
    return getattr(tokens, "sequences", tokens)


def _errors(theirs: list[Tensor], ours: Tensor, exact: Tensor, scale: float = 0.0) -> tuple[float, float]:
    return max(relative_error(t, exact, scale) for t in theirs), relative_error(ours, exact, scale)


def within(errors: tuple[float, float] | None, dtype: torch.dtype, count: int) -> bool:
    """Whether ours is right: within the table's tolerance, or no further from float64 than transformers' own is.

    The table's numbers are for one op. A model is many of them in a row, and sums that cancel on top of that; how far
    rounding alone carries such a result is measured by the same model with transformers' three implementations. Theirs
    may be exceeded twice, and where there are only a few numbers, whose error is a draw and no mean, up to six times.
    """
    return errors is None or errors[1] <= max(TOLERANCE[dtype], (2 + 4 * count**-0.5) * errors[0])


def _says_something(errors: tuple[float, float] | None, dtype: torch.dtype) -> bool:
    """Whether transformers' own error is small enough for ours to be compared with it."""
    return errors is None or errors[0] <= 100 * TOLERANCE[dtype]


def _reference(model: PreTrainedModel, eager: PreTrainedModel, inputs: dict[str, Tensor]) -> Run:
    try:
        return run(model, inputs, False)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        # Some models have float32 written into them. Then what is measured is the distance to eager.
        return run(eager, inputs, False)


def compare(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> Result:
    """Build, save, load with each implementation, and compare."""
    torch.manual_seed(0)
    model = build(case.model)
    randomize(model)
    model.save_pretrained(folder)

    def load(implementation: str, dtype: torch.dtype = dtype) -> PreTrainedModel:
        return case.model.from_pretrained(folder, experts_implementation=implementation, dtype=dtype)

    names = ["eager", *(name for name in THEIRS if _accepts(load, name))]
    generates = model.can_generate() and "inputs_embeds" not in inputs_for(case, model, 1)

    def draw(seed: int, generates: bool) -> tuple[dict[str, Tensor], PreTrainedModel, list[Run], Run, Run]:
        inputs, mine = inputs_for(case, model, seed), load("moe_kernels")
        theirs = [run(load(name), inputs, generates and name == "eager") for name in names]
        exact = _reference(load("eager", torch.float64), load("eager"), inputs)
        return inputs, mine, theirs, run(mine, inputs, generates), exact

    for seed in range(1, SEEDS + 1):
        inputs, mine, theirs, ours, exact = draw(seed, generates)
        if all(_same_routing(ours, other) for other in (*theirs, exact)):
            break
    result = judge(mine, theirs, ours, exact, dtype)
    few = few_errors(theirs, ours, exact, dtype)
    if not few_within(few, dtype):
        for more in range(seed + 1, seed + 1 + MORE_DRAWS):
            _, _, others, own, doubles = draw(more, False)
            if all(_same_routing(own, other) for other in (*others, doubles)):
                few += few_errors(others, own, doubles, dtype)
        # One gradient that nearly cancels would outweigh all others in a mean of squares: each counts by its ratio.
        ratio = math.exp(sum(math.log(of_ours / of_theirs) for (of_theirs, of_ours), _ in few) / len(few))
        if not within((1.0, ratio), dtype, sum(count for _, count in few)):
            result = result._replace(problems=(*result.problems, f"gradients of parameters with few numbers {few}"))
    return result._replace(problems=result.problems + _switched(load("eager"), inputs, ours))


# Of each parameter, the errors of both sides and how many numbers it has.
FewErrors = list[tuple[tuple[float, float], int]]


def few_errors(theirs: list[Run], ours: Run, exact: Run, dtype: torch.dtype) -> FewErrors:
    """The errors of the gradients of parameters with few numbers."""
    few = []
    for name, want in exact.gradients.items():
        if want.numel() < FEW:
            errors = _errors([t.gradients[name] for t in theirs], ours.gradients[name], want, _floor(exact))
            if _says_something(errors, dtype):
                few.append((errors, want.numel()))
    return few


def few_within(few: FewErrors, dtype: torch.dtype) -> bool:
    """Whether they are right, all together."""
    if not few:
        return True
    theirs, ours = (sum(errors[i] ** 2 for errors, _ in few) ** 0.5 / len(few) ** 0.5 for i in range(2))
    return within((theirs, ours), dtype, sum(count for _, count in few))


def _floor(exact: Run) -> float:
    """A gradient that is zero but for rounding has no relative error: below this norm it is measured against it."""
    norms = [g.double().norm() for g in exact.gradients.values()]
    return 1e-5 * float(torch.stack(norms or [torch.zeros(())]).norm())


def _accepts(load: Callable[[str], PreTrainedModel], name: str) -> bool:
    try:
        load(name)
    except ValueError as error:
        # A tower without experts is asked as well, and refuses one of the names.
        assert "does not support setting experts implementation" in str(error), error
        return False
    return True


def _same_routing(one: Run, other: Run) -> bool:
    if one.output is None or other.output is None:
        return True
    return one.routing.keys() == other.routing.keys() and all(
        torch.equal(indices, other.routing[name]) for name, indices in one.routing.items()
    )


def _switched(model: PreTrainedModel, inputs: dict[str, Tensor], ours: Run) -> tuple[str, ...]:
    """A model that is switched over later is the same as one that was loaded so."""
    model.set_experts_implementation("moe_kernels")
    if not has_forward(model):
        return ()
    output = run(model, inputs, False).output
    # The CPU kernels give the same bits for the same arguments.
    return () if torch.equal(output, ours.output) else ("set_experts_implementation gives something else",)


def judge(model: PreTrainedModel, theirs: list[Run], ours: Run, exact: Run, dtype: torch.dtype) -> Result:
    """Say how far apart the runs are and what is wrong."""
    problems = []
    output = loss = gradient = None
    worst, unsaid = "", []
    if exact.output is not None:
        output = _errors([t.output for t in theirs], ours.output, exact.output)
        loss = None if exact.loss is None else _errors([t.loss for t in theirs], ours.loss, exact.loss)
        if not within(output, dtype, exact.output.numel()) or not within(loss, dtype, 1):
            problems.append(f"output {output}, loss {loss}")
        if not _says_something(output, dtype) or not _says_something(loss, dtype):
            problems.append(f"transformers is not near itself in float64: output {output}, loss {loss}")
    if set(ours.gradients) != set(theirs[0].gradients):
        problems.append(f"gradients of other parameters: {sorted(set(ours.gradients) ^ set(theirs[0].gradients))[:3]}")
    floor = _floor(exact)
    for name, want in exact.gradients.items():
        errors = _errors([t.gradients[name] for t in theirs], ours.gradients[name], want, floor)
        if not _says_something(errors, dtype):
            unsaid.append(name)
        elif want.numel() >= FEW and not within(errors, dtype, want.numel()):
            problems.append(f"gradient of {name} {errors}")
        if gradient is None or errors[1] > gradient[1]:
            gradient, worst = errors, name
    if len(unsaid) > 0.05 * len(exact.gradients):
        problems.append(f"transformers is not near itself in float64: gradients of {unsaid}")
    if not ours.routing or not _same_routing(ours, theirs[0]):
        problems.append("experts were called otherwise than by transformers, with every input")
    if exact.silent:
        problems.append(f"no gradient, so that nothing was compared: {sorted(exact.silent)}")
    # In 16 bits the largest two logits may be one number.
    comparable = ours.tokens is not None and dtype == torch.float32
    same = torch.equal(ours.tokens, theirs[0].tokens) if comparable else None
    if same is False:
        problems.append("generated tokens differ")
    found = {recognize(m) for m in model.modules() if is_experts_class(type(m))}
    computed = sorted({_computed(f) for f in found})
    return Result(", ".join(computed), output, loss, gradient, worst, same, tuple(problems))


def _computed(found: Recognized) -> str:
    if not found.activation or found.post_norm:
        return f"in steps: {found.reason}"
    return found.activation if found.limit is None else f"{found.activation} clamped at {found.limit:g}"
