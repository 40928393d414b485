"""Collective calls: methods that all ranks call together, and what must be equal on all of them before the first."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch.distributed as dist
from torch import nn

from ..distributed import Ranks, checked_process_group, send_from_first, synchronised
from ..passes import COMPUTING, RandomState, cuda_devices


class HasRanks(Protocol):
    """An object with ranks, whose methods can be :func:`collective`."""

    ranks: Ranks


Owner = TypeVar("Owner", bound=HasRanks)
Arguments = ParamSpec("Arguments")
ResultType = TypeVar("ResultType")


def collective(
    method: Callable[Concatenate[Owner, Arguments], ResultType],
) -> Callable[Concatenate[Owner, Arguments], ResultType]:
    """Makes a method report failed checks to the other ranks, so that none waits; one thread at a time runs it."""

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
    """Makes the processes of a group start with the same learner; see :meth:`AuxiliaryLabelGenerator.distribute`."""
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
