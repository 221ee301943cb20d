"""A torch that is built without torch.distributed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import torch
# torch's compiler would miss the names that go below.
import torch._dynamo
import torch.distributed as dist
dist.is_available = lambda: False
for name in ("ProcessGroup", "GroupMember", "all_to_all_single", "get_backend_config"):
    delattr(dist, name)
import moe_kernels
moe_kernels.MoELayer(8, 8, 4, 2)(torch.randn(3, 8)).sum().backward()
try:
    moe_kernels.MoELayer(8, 8, 4, 2, process_group=object())
except ValueError as error:
    print(error)
"""


def test_everything_else_works_and_a_group_is_refused():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "process_group: expected None, as this torch is built without torch.distributed" in done.stdout
