"""Agreement between processes: scores are averaged, and gradients reduced in their new shapes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _distributed_c10d as _C
from torch.nn.parallel import DistributedDataParallel


def around() -> Any:
    """Return the DistributedDataParallel whose forward pass runs now, None where there is none."""
    return DistributedDataParallel._active_ddp_module


def mean(values: dict[str, tuple[Tensor, int]], wrapper: Any) -> dict[str, tuple[Tensor, int]]:
    """Return the sums of scores [units], and of counts, over the processes of a wrapper.

    Every process gives the same names. Scores may be signed.
    """
    if wrapper is None or dist.get_world_size(wrapper.process_group) == 1 or not values:
        return values
    names = sorted(values)
    pieces = []
    for name in names:
        scores, count = values[name]
        pieces += [scores, scores.new_tensor([count])]
    flat = torch.cat(pieces)
    dist.all_reduce(flat, group=wrapper.process_group)
    found, place = {}, 0
    for name in names:
        units = len(values[name][0])
        found[name] = flat[place : place + units], int(flat[place + units])
        place += units + 1
    return found


def renew(wrapper: Any) -> None:
    """Let DistributedDataParallel reduce parameters that have other shapes than before.

    Its reducer has buckets for the shapes that it was made for: a new one takes its place, as when
    the wrapper was made.
    """
    if wrapper is None:
        return
    for parameter in wrapper.module.parameters():
        parameter.grad = None  # may be a view of an old bucket
    parameters, sparse = wrapper._build_params_for_reducer()
    names = wrapper._build_debug_param_to_name_mapping(parameters)
    hooks = list(wrapper._comm_hooks)
    wrapper.reducer = wrapper.logger = None
    wrapper._ddp_init_helper(parameters, sparse, names, wrapper.static_graph)
    for hook, hook_state in hooks:
        _C._register_comm_hook(wrapper.reducer, hook_state, hook)
