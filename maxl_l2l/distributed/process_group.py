"""The process group: one of torch.distributed that can do what training needs."""

from __future__ import annotations

import torch
import torch.distributed as dist


def checked_process_group(group: dist.ProcessGroup | None, device: torch.device) -> dist.ProcessGroup:
    """Returns a group, the default one if None, that can do what is needed with tensors on a device.

    Raises:
        RuntimeError: torch.distributed is not initialised, this process is not in the group, or its backend
            lacks a collective.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "`process_group` must be one of torch.distributed, found that it is not initialized. Call "
            "torch.distributed.init_process_group() first, and start the program with torchrun."
        )
    found = group or dist.group.WORLD
    assert found is not None
    if dist.get_rank(found) < 0:
        raise RuntimeError(
            "`process_group` must have this process as a member, found that it has not. "
            "Call distribute() in its members alone."
        )
    probe = torch.zeros(1, device=device)
    try:
        dist.all_reduce(probe, group=found)
        dist.all_gather([torch.zeros_like(probe) for _ in range(dist.get_world_size(found))], probe, group=found)
        dist.broadcast(probe, src=dist.get_global_rank(found, 0), group=found)
    except Exception as error:  # backends raise what they like
        raise RuntimeError(
            f"`process_group` must be able to all_reduce, all_gather and broadcast tensors on {device}, found that its "
            f"backend {dist.get_backend(found)!r} says: {error}. Use 'gloo' for CPUs and 'nccl' for CUDA devices, and "
            "see that all processes run."
        ) from error
    return found
