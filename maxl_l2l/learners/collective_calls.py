"""Collective calls: what all ranks do together, and what must be the same on all of them before they begin."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch.distributed as dist
from torch import nn

from ..distributed import Ranks, checked_process_group, send_from_first, synchronised
from ..passes import COMPUTING, RandomState, cuda_devices


class HasRanks(Protocol):
    """What the methods of :func:`collective` belong to."""

    ranks: Ranks


Owner = TypeVar("Owner", bound=HasRanks)
Arguments = ParamSpec("Arguments")
ResultType = TypeVar("ResultType")


def collective(
    method: Callable[Concatenate[Owner, Arguments], ResultType],
) -> Callable[Concatenate[Owner, Arguments], ResultType]:
    """Has a method tell the other ranks if its checks fail, so that none waits for this one; one thread at a time."""

    @functools.wraps(method)
    def call(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> ResultType:
        with COMPUTING, self.ranks.call(method.__name__):
            return method(self, *args, **kwargs)

    return call


@contextlib.contextmanager
def in_step(network: nn.Module, generator: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Restores the random state if what runs inside raises; ranks draw different numbers and share statistics."""
    devices = cuda_devices(network)
    with (
        RandomState(devices).restored_on_error(),
        ranks.own_random_numbers(devices),
        synchronised(network, ranks),
        synchronised(generator, ranks),
    ):
        yield


def joined_ranks(learner: nn.Module, settings: dict[str, Any], process_group: "dist.ProcessGroup | None") -> Ranks:
    """Has the processes of a group begin with the same learner: rank 0's parameters and buffers.

    Args:
        learner: What is trained.
        settings: What it is made of beside its networks.
        process_group: Of torch.distributed; the default group if None.

    Raises:
        RuntimeError: As in :meth:`AuxiliaryLabelGenerator.distribute`.
    """
    device = next(learner.parameters()).device
    ranks = Ranks(checked_process_group(process_group, device), device)
    ranks.check_same(settings | _tensors(learner), "maxl")
    ranks.check_same({"the order of parameters": [name for name, _ in learner.named_parameters()]}, "maxl")
    send_from_first(ranks, learner)
    return ranks


def _tensors(learner: nn.Module) -> dict[str, Any]:
    """Shape and dtype of each parameter and buffer, and which are frozen, in words."""
    frozen = {name for name, parameter in learner.named_parameters() if not parameter.requires_grad}
    return {
        name: f"{list(tensor.shape)} {tensor.dtype}{' frozen' * (name in frozen)}"
        for name, tensor in (*learner.named_parameters(), *learner.named_buffers())
    }
