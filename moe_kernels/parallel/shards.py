"""Which rank owns which experts, and what is asked of a process group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from moe_kernels.validation import check_range, fail

OP = "MoELayer"


def _resolve(process_group: Any, argument: str) -> Any:
    """Return the ProcessGroup of a group or of a one-dimensional DeviceMesh, or say what is wrong with it."""
    if not dist.is_available():
        fail(OP, argument, "None, as this torch is built without torch.distributed", process_group)
    if hasattr(process_group, "get_group") and hasattr(process_group, "mesh_dim_names"):
        if process_group.ndim != 1:
            fail(OP, argument, "a mesh of one dimension (mesh['ep'])", f"{process_group.ndim} dimensions")
        process_group = process_group.get_group()
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        fail(OP, argument, "a group that this process belongs to", "NON_GROUP_MEMBER")
    if not isinstance(process_group, dist.ProcessGroup):
        fail(OP, argument, "a ProcessGroup or a DeviceMesh", type(process_group).__name__, TypeError)
    return process_group


class Group:
    """A process group as a module's attribute: copies of the module share it, and it is not saved.

    Args:
        process_group: a torch.distributed ProcessGroup, or a DeviceMesh of one dimension.
        argument: its name in messages.

    Raises:
        ValueError, TypeError: the group cannot be used; the message says why.
    """

    def __init__(self, process_group: Any, argument: str) -> None:
        self.group = _resolve(process_group, argument)
        self.size: int = self.group.size()
        self.rank: int = self.group.rank()
        self._argument = argument

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        # A process group is a connection, which cannot be copied.
        return self

    def __reduce__(self) -> Any:
        got = "the layer itself, whose process group no other process can use"
        fail(OP, self._argument, "a layer's state_dict() to be saved or sent", got, TypeError)


class ExpertShards(Group):
    """The experts of a layer and their owners: rank r has a contiguous range of them.

    The first E mod W ranks have one expert more than the others; with more ranks than experts the last ones have none
    and still route their own tokens.

    Args:
        process_group: a torch.distributed ProcessGroup, or a DeviceMesh of one dimension.
        num_experts: E, the same on every rank.

    Raises:
        ValueError, TypeError: the group cannot be used; the message says why.
    """

    def __init__(self, process_group: Any, num_experts: int) -> None:
        check_range(OP, "num_experts", num_experts, 1)
        super().__init__(process_group, "process_group")
        self.num_experts = num_experts
        each, more = divmod(num_experts, self.size)
        # Bounds of the ranks' ranges, W + 1 entries, half-open.
        self.bounds = [r * each + min(r, more) for r in range(self.size + 1)]
        # The largest number of experts that a rank has.
        self.most = each + (more > 0)
        # Place r·most + i of a table by rank holds expert bounds[r] + i; E stands for none.
        self._table = [
            self.bounds[r] + i if self.bounds[r] + i < self.bounds[r + 1] else num_experts
            for r in range(self.size)
            for i in range(self.most)
        ]
        self._tables: dict[torch.device, Tensor] = {}
        self._agreed = False

    @property
    def first(self) -> int:
        """This rank's first expert."""
        return self.bounds[self.rank]

    @property
    def last(self) -> int:
        """The expert after this rank's last one."""
        return self.bounds[self.rank + 1]

    @property
    def num_local(self) -> int:
        """How many experts this rank has."""
        return self.last - self.first

    def __repr__(self) -> str:
        return f"experts {self.first} to {self.last} of {self.num_experts}, rank {self.rank} of {self.size}"

    def by_owner(self, counts: Tensor) -> Tensor:
        """Lay out a number of each expert (E) by owner: (W, most), zero where a rank has fewer experts."""
        table = self._tables.get(counts.device)
        if table is None:
            table = self._tables[counts.device] = torch.tensor(self._table, device=counts.device)
        return F.pad(counts, (0, 1))[table].view(self.size, self.most)

    def check_device(self, x: Tensor) -> None:
        """Require a group whose backend serves x's device."""
        config = dist.get_backend_config(self.group)
        # "cpu:gloo,cuda:nccl", or the name of one backend.
        pairs = dict(pair.split(":", 1) for pair in config.split(",") if ":" in pair)
        if pairs and x.device.type not in pairs:
            fail(OP, "process_group", f"a backend for device {x.device.type}, where x is", config)

    def check_agreement(self, x: Tensor, top_k: int) -> None:
        """Require of every rank the same E, H, K and dtype, once: it is a collective, in the first forward.

        Without it a rank that differs would show itself by rows of the wrong length, or by a timeout.
        """
        if self._agreed:
            return
        names = ("num_experts", "hidden_size", "top_k", "bytes of a value of x")
        mine = torch.tensor([self.num_experts, x.shape[1], top_k, x.element_size()], device=x.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.group)
        for rank, theirs in enumerate(torch.stack(parts).tolist()):
            for name, got, expected in zip(names, theirs, mine.tolist(), strict=True):
                if got != expected:
                    fail(OP, name, f"{expected}, as rank {self.rank} has", f"{got} on rank {rank}")
        self._agreed = True
