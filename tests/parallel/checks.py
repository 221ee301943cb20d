"""What the ranks do in the tests: each function runs in every process of `group` (see worker.py).

Every rank has the whole problem too, and compares its own part with what one process computes.
"""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_kernels import MoELayer, explain, quantize_experts
from moe_kernels.losses import load_balance_loss
from moe_kernels.ops.fused_experts import fused_experts
from moe_kernels.parallel import (
    ExpertShards,
    average_expert_gradients_,
    expert_parallel,
    expert_parameters,
    full_state_dict,
)
from moe_kernels.testing import ExpertInputs, assert_close, expert_inputs, naive_experts, relative_error


def raises(error: type[Exception], *parts: str) -> Any:
    """A context that requires an exception with each part in its message."""

    class _Raises:
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: Any, value: Any, trace: Any) -> bool:
            assert kind is not None, f"no {error.__name__}"
            if issubclass(kind, error):
                for part in parts:
                    assert part in str(value), f"{part!r} is not in: {value}"
                return True
            return False

    return _Raises()


def parts(tokens: list[int], rank: int) -> slice:
    return slice(sum(tokens[:rank]), sum(tokens[: rank + 1]))


def total(value: Tensor, group: Any) -> Tensor:
    value = value.clone()
    dist.all_reduce(value, group=group)
    return value


def block(
    group: Any, tokens: list[int], E: int, K: int, routing: str, dtype: str, bias: bool, transposed: bool
) -> None:
    """expert_parallel with given indices, forward and every gradient, against float64."""
    H, I, T, kind = 24, 20, sum(tokens), getattr(torch, dtype)
    inputs = expert_inputs(T, E, K, H, I, bias=bias, transposed=transposed, routing=routing).to(kind)
    wide = inputs.to(torch.float64)
    wide = ExpertInputs(*(t if t is None or t is wide.indices else t.clone() for t in wide))
    leaves = [t.requires_grad_() for t in wide if t is not None and t.is_floating_point()]
    want = naive_experts(wide, transposed=transposed)
    seed = torch.randn(T, H, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(kind)
    want.backward(seed.double())

    shards = ExpertShards(group, E)
    mine, owned = parts(tokens, shards.rank), slice(shards.first, shards.last)
    local = ExpertInputs(
        inputs.x[mine].clone(),
        inputs.indices[mine],
        inputs.weights[mine].clone(),
        *(None if t is None else t[owned].clone() for t in inputs[3:]),
    )
    params = tuple(t.requires_grad_() for t in local[3:] if t is not None)
    local.x.requires_grad_(), local.weights.requires_grad_()

    def experts(rows: Tensor, indices: Tensor, ones: Tensor) -> Tensor:
        return fused_experts(
            rows,
            indices,
            ones,
            local.gate_up,
            local.down,
            transposed=transposed,
            gate_up_bias=local.gate_up_bias,
            down_bias=local.down_bias,
        )

    out = expert_parallel(local.x, local.indices, local.weights, experts, shards, parameters=params)
    assert out.dtype == kind
    out.backward(seed[mine])
    got = [out, local.x.grad, local.weights.grad]
    wanted = [want[mine], wide.x.grad[mine], wide.weights.grad[mine]]
    for what, a, b in zip(("out", "x", "weights"), got, wanted, strict=True):
        # A rank with few tokens has few sums, which may cancel; the norm is that of a mean rank.
        norm = float(torch.linalg.vector_norm({"out": want, "x": wide.x.grad, "weights": wide.weights.grad}[what]))
        assert_close(a, b, kind, what, scale=norm / len(tokens))
    assert len(leaves) == 4 + 2 * bias
    if shards.num_local:
        for a, b, what in zip(params, leaves[2:], ("gate_up", "down", "gate_up_bias", "down_bias"), strict=False):
            assert_close(a.grad, b.grad[owned], kind, what, scale=float(b.grad.norm()) / len(tokens))


def layer(group: Any, tokens: list[int], E: int, options: dict[str, Any]) -> None:
    """MoELayer(process_group), forward and every gradient, against the plain layer on each rank's tokens in turn."""
    H, I, K = 24, 20, 2
    torch.manual_seed(0)
    full = MoELayer(H, I, E, K, **options)
    x = torch.randn(sum(tokens), H, requires_grad=True)
    seed = torch.randn(sum(tokens), H)
    split = MoELayer(H, I, E, K, process_group=group, **options)
    split.load_state_dict(full.state_dict())
    shards = split.expert_shards
    assert split.experts.down_proj.shape[0] == shards.num_local
    pieces = [parts(tokens, r) for r in range(len(tokens))]
    want = torch.cat([full(x[piece]) for piece in pieces])
    want.backward(seed)
    mine = pieces[shards.rank]
    own = x[mine].detach().requires_grad_()
    out, router = split(own, return_router=True)
    out.backward(seed[mine])
    assert_close(out, want[mine])
    assert_close(own.grad, x.grad[mine], what="x")
    assert router.counts.shape == (E,)
    for (name, a), b in zip(split.named_parameters(), full.parameters(), strict=True):
        if name.startswith("experts."):
            if shards.num_local:
                assert_close(a.grad, b.grad[shards.first : shards.last], what=name)
        else:
            assert_close(total(a.grad, group), b.grad, what=name)


def same_bits(group: Any, E: int) -> None:
    """A token's output has the same bits on one rank and on many; frozen inputs, an evaluation without gradients."""
    torch.manual_seed(0)
    x = torch.randn(12, 24).bfloat16()
    alone = MoELayer(24, 20, E, 2, process_group=new_group_of_one(), dtype=torch.bfloat16)
    split = MoELayer(24, 20, E, 2, process_group=group, dtype=torch.bfloat16)
    split.load_state_dict(alone.state_dict())
    mine = parts([12 // group.size()] * group.size(), group.rank())
    with torch.no_grad():
        assert torch.equal(split(x[mine]), alone(x)[mine])


_alone: list[Any] = []


def new_group_of_one() -> Any:
    # With local synchronization only the members take part in making a group.
    if not _alone:
        _alone.append(dist.new_group([dist.get_rank()], use_local_synchronization=True))
    return _alone[0]


def who_needs_gradients(group: Any) -> None:
    """Frozen x, frozen experts, x with a gradient on one rank only: no exchange waits for a rank that has none."""
    torch.manual_seed(0)
    first = group.rank() == 0
    for x_needs, experts_need, gate_needs in ((False, True, True), (first, False, False), (False, False, first)):
        split = MoELayer(8, 8, 4, 2, process_group=group)
        split.experts.requires_grad_(experts_need)
        split.gate.requires_grad_(gate_needs)
        x = torch.randn(5, 8, requires_grad=x_needs)
        split(x).sum().backward()
        assert (x.grad is not None) == x_needs
        assert (split.gate.weight.grad is not None) == gate_needs
        assert (split.experts.down_proj.grad is not None) == experts_need
    split = MoELayer(8, 8, 4, 2, process_group=group).requires_grad_(False)
    assert not split(torch.randn(5, 8)).requires_grad


def no_grad_on_one_rank(group: Any) -> None:
    split = MoELayer(8, 8, 4, 2, process_group=group)
    with torch.set_grad_enabled(group.rank() != 1), raises(ValueError, "grad mode", "ranks [1]"):
        split(torch.randn(5, 8))


def autocast_and_checkpointing(group: Any) -> None:
    """Activations are computed again in backward, with their exchanges; under autocast rows travel in bfloat16."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    split = MoELayer(24, 20, 5, 2, process_group=group)
    x = torch.randn(7, 24, requires_grad=True)
    results = []
    for again in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            out = checkpoint(split, x, use_reentrant=False) if again else split(x)
        assert out.dtype == torch.bfloat16
        results.append(torch.autograd.grad(out.float().square().sum(), [x, *split.parameters()]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def compiled(group: Any) -> None:
    """torch.compile breaks its graph around the exchange, and the result is the same."""
    torch.manual_seed(0)
    split = MoELayer(24, 20, 5, 2, process_group=group)
    x = torch.randn(7, 24, requires_grad=True)
    fast = torch.compile(split, backend="eager")
    got, want = fast(x), split(x)
    assert_close(got, want)
    a, b = (torch.autograd.grad(y.square().sum(), [x, *split.parameters()]) for y in (got, want))
    for one, other in zip(a, b, strict=True):
        assert_close(one, other)


def checkpoints(group: Any, folder: str) -> None:
    """Full to shards and back; a shard of another rank, another E, a shard in a plain layer are refused."""
    E = 6
    torch.manual_seed(0)
    full = MoELayer(8, 12, E, 2, bias=True)
    split = MoELayer(8, 12, E, 2, bias=True, process_group=group)
    split.load_state_dict(full.state_dict())
    gathered = full_state_dict(split)
    assert list(gathered) == list(full.state_dict())
    for name, value in full.state_dict().items():
        assert torch.equal(gathered[name], value), name
    MoELayer(8, 12, E, 2, bias=True).load_state_dict(gathered)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), split)
    partly = full_state_dict(model, rank0_only=True)
    assert ("1.experts.down_proj" in partly) == (group.rank() == 0) and "0.weight" in partly
    twice = full_state_dict(torch.nn.ModuleDict({"one": split, "other": split}))
    assert list(twice) == [f"{use}.{name}" for use in ("one", "other") for name in full.state_dict()]
    for name, value in twice.items():
        assert torch.equal(value, gathered[name.partition(".")[2]]), name
    dropped = full_state_dict(torch.nn.ModuleDict({"one": split, "other": split}), rank0_only=True)
    assert ("other.experts.down_proj" in dropped) == (group.rank() == 0)

    path = os.path.join(folder, f"shard{group.rank()}.pt")
    torch.save(split.state_dict(), path)
    dist.barrier(group)
    own = torch.load(path)
    copied = MoELayer(8, 12, E, 2, bias=True, process_group=group)
    copied.load_state_dict(own)
    assert torch.equal(copied.experts.down_proj, split.experts.down_proj)
    other = torch.load(os.path.join(folder, f"shard{(group.rank() + 1) % group.size()}.pt"))
    with raises(RuntimeError, "experts.gate_up_proj: expected", "another rank"):
        copied.load_state_dict(other)
    with raises(RuntimeError, "experts.down_proj: expected all 6 experts", "full_state_dict"):
        full.load_state_dict(own)
    with raises(RuntimeError, "expected all 7 experts, or this rank's", "got 6 experts"):
        MoELayer(8, 12, 7, 2, bias=True, process_group=group).load_state_dict(full.state_dict())
    meta = MoELayer(8, 12, E, 2, bias=True, process_group=group, device="meta")
    meta.load_state_dict(gathered, assign=True)
    assert meta.experts.down_proj.untyped_storage().nbytes() == split.experts.down_proj.nbytes


def quantized(group: Any) -> None:
    """Each rank quantizes its own experts; the whole is the quantized layer of one process."""
    torch.manual_seed(0)
    full = MoELayer(64, 64, 5, 2)
    split = MoELayer(64, 64, 5, 2, process_group=group)
    split.load_state_dict(full.state_dict())
    assert explain(split)[0].computed == f"fused_experts, silu, {split.expert_shards}"
    for model in (full, split):
        quantize_experts(model, "int8")
    assert explain(split)[0].computed.endswith(f"int8, {split.expert_shards}")
    x = torch.randn(10, 64, requires_grad=True)
    want, got = full(x), split(x)
    assert_close(got, want)
    grads = (torch.autograd.grad(out.square().sum(), x)[0] for out in (got, want))
    assert_close(*grads)
    with raises(ValueError, "full_state_dict: experts: expected", "QuantizedExperts"):
        full_state_dict(split)


def first_values(group: Any) -> None:
    """Ranks that are seeded alike draw one layer, whatever their number; a copy shares the group, a pickle has none."""
    torch.manual_seed(3)
    alone = MoELayer(8, 12, 5, 2, process_group=new_group_of_one())
    after = torch.rand(())
    torch.manual_seed(3)
    split = MoELayer(8, 12, 5, 2, process_group=group)
    assert torch.rand(()) == after
    shards = split.expert_shards
    assert torch.equal(split.experts.gate_up_proj, alone.experts.gate_up_proj[shards.first : shards.last])
    assert torch.equal(split.gate.weight, alone.gate.weight)
    assert alone.experts.gate_up_proj.flatten(1).unique(dim=0).shape[0] == 5
    assert copy.deepcopy(split).expert_shards is shards
    with raises(TypeError, "state_dict"):
        pickle.dumps(split)


def statistics(group: Any, tokens: list[int]) -> None:
    """Counts and load-balance loss are those of all tokens, and its gradient is theirs once it is averaged."""
    torch.manual_seed(0)
    full, split = MoELayer(8, 12, 5, 2), MoELayer(8, 12, 5, 2, statistics_group=group)
    split.load_state_dict(full.state_dict())
    x = torch.randn(sum(tokens), 8)
    _, want = full(x, return_router=True)
    _, got = split(x[parts(tokens, group.rank())], return_router=True)
    assert torch.equal(got.counts, want.counts)
    gating = split.route(x[parts(tokens, group.rank())])[1]
    assert_close(load_balance_loss(gating.counts, gating.mean_probability, group), want.load_balance_loss)
    assert_close(got.load_balance_loss, want.load_balance_loss)
    want.load_balance_loss.backward()
    got.load_balance_loss.backward()
    assert_close(total(split.gate.weight.grad, group) / group.size(), full.gate.weight.grad, torch.float32)


def disagreement(group: Any) -> None:
    E = 4 + 2 * (group.rank() == 1)
    split = MoELayer(8, 8, E, 2, process_group=group)
    with raises(ValueError, "MoELayer: num_experts: expected", "on rank"):
        split(torch.randn(3, 8))
    split = MoELayer(8, 8, 4, 1 + (group.rank() == 1), process_group=group)
    with raises(ValueError, "MoELayer: top_k: expected", "on rank"):
        split(torch.randn(3, 8))


def wrong_groups(group: Any) -> None:
    with raises(TypeError, "process_group: expected a ProcessGroup or a DeviceMesh, got int"):
        MoELayer(8, 8, 4, 2, process_group=3)
    with raises(TypeError, "statistics_group: expected a ProcessGroup"):
        MoELayer(8, 8, 4, 2, statistics_group="all")
    with raises(ValueError, "a group that this process belongs to"):
        MoELayer(8, 8, 4, 2, process_group=dist.GroupMember.NON_GROUP_MEMBER)
    split = MoELayer(8, 8, 4, 2, process_group=group, device="meta")
    with raises(ValueError, "process_group: expected a backend for device meta"):
        split(torch.randn(3, 8, device="meta"))


def fsdp(group: Any, wrap: str) -> None:
    """Training steps with FSDP2 around an expert-parallel layer equal those of one process on all tokens.

    Wraps: the whole model without the experts; the other modules; all in DistributedDataParallel instead; or, on a
    grid of ranks, the whole model over all of them and the experts over those that have the same ones.
    """
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    tokens = [3, 5, 0, 4][: group.size()]
    torch.manual_seed(0)
    mesh = DeviceMesh.from_group(group, "cpu")
    grid = init_device_mesh("cpu", (2, group.size() // 2), mesh_dim_names=("copies", "experts"))
    owners = grid["experts"] if wrap == "grid" else mesh

    def model(**options: Any) -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Linear(8, 8), MoELayer(8, 12, 6, 2, **options), torch.nn.Linear(8, 3))

    full, split = model(), model(process_group=owners)
    split.load_state_dict(full.state_dict())
    experts = expert_parameters(split)
    assert list(experts) == ["1.experts.gate_up_proj", "1.experts.down_proj"]
    called: torch.nn.Module = split
    if wrap == "ignored":
        fully_shard(split, mesh=mesh, ignored_params=set(experts.values()))
    elif wrap == "ddp":
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(split, list(experts))
        called = DistributedDataParallel(split, process_group=group)
    elif wrap == "grid":
        fully_shard(split[1].experts, mesh=grid["copies"])
        fully_shard(split, mesh=mesh)
    else:
        for module in (split[0], split[1].gate, split[2]):
            fully_shard(module, mesh=mesh)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (full, split)]
    x, y = torch.randn(sum(tokens), 8), torch.randn(sum(tokens), 3)
    mine = parts(tokens, group.rank())
    for _ in range(2):
        # The mean over the ranks of each one's sum, which is what FSDP2 makes of the gradients.
        ((full(x) - y).square().sum() / group.size()).backward()
        (called(x[mine]) - y[mine]).square().sum().backward()
        average_expert_gradients_(split)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    want = full.state_dict()
    for name, value in full_state_dict(split).items():
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        assert relative_error(value, want[name]) < 1e-5, name


def dies(group: Any, how: str, seconds: float) -> None:
    """The last rank leaves in the middle of a forward; the others raise, in two calls of so many seconds together."""
    import time

    split = MoELayer(8, 8, 4, 2, process_group=group)
    split(torch.randn(3, 8))
    if group.rank() == group.size() - 1:

        def leave(*_: Any) -> None:
            if how == "exit":
                os._exit(1)
            time.sleep(3600)

        split.experts.register_forward_pre_hook(leave)
    # The first forward, which imports and connects, is behind.
    begin = time.monotonic()
    for _ in range(2):
        with raises(RuntimeError, ""):
            split(torch.randn(3, 8)).sum().backward()
    assert time.monotonic() - begin < seconds, f"{time.monotonic() - begin} s"
