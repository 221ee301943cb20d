"""Expert parallelism: the experts of a layer spread over the ranks of a torch.distributed process group.

Letters: W ranks of the group; T tokens of this rank, E experts of all ranks, K experts per token, H hidden,
I intermediate, M rows that this rank receives.
"""

from moe_kernels.parallel.checkpoint import full_state_dict
from moe_kernels.parallel.dispatch import expert_parallel
from moe_kernels.parallel.parameters import average_expert_gradients_, expert_parameters
from moe_kernels.parallel.shards import ExpertShards

__all__ = ["ExpertShards", "average_expert_gradients_", "expert_parallel", "expert_parameters", "full_state_dict"]
