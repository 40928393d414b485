"""Ranks: processes that each hold a part of one batch. They check that they make the same calls, and sum over all."""

import contextlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import RankError
from ..passes import norm

PRESENT, FAILED, AT_END = range(3)


class Work(Protocol):
    """A collective operation that has been started."""

    def wait(self) -> Any: ...


class Ranks:
    """The processes of a group, as one of them sees them.

    At the start of each collective call the ranks meet: they exchange what they are about to do, and raise if it
    differs. In a group of size 1 nothing is exchanged, and values are returned as they are.

    Args:
        group: A process group; None for this process alone.
        device: Device of the tensors that are exchanged.

    Attributes:
        size: Number of ranks.
        rank: Number of this rank.
        request: A number that this rank sends to all when they meet, such as a signal; 0 for none.
        requested: The highest request of all ranks when they last met.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None, device: torch.device | None = None) -> None:
        self.group, self.device = group, device
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)
        self.request = self.requested = 0
        self._name = ""
        self._depth = 0
        self._counts: list[list[int]] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        return self  # a handle

    def __reduce__(self) -> tuple[Any, ...]:
        return Ranks, ()  # where it is unpickled there is no such group

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        """Surrounds a call that all ranks make: if it raises before they meet in it, the others raise too."""
        if self.size == 1:
            yield
            return
        self._name, self._counts, self._depth = name, None, self._depth + 1
        try:
            yield
        except Exception as error:
            if self._counts is None and not isinstance(error, RankError):
                self._counts = []  # an outer call need not report it again
                with contextlib.suppress(RankError):  # this rank's own error is the one to show
                    self._meet(FAILED, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._counts = None

    def totals(self, options: str, *counts: int) -> tuple[int, ...]:
        """Meets the other ranks, once in each call, and sums counts of samples over them.

        Args:
            options: The options of the call, in words; the same on all ranks.
            counts: This rank's counts.

        Raises:
            RankError: A rank failed before, is at the end of its epoch, or makes another call.
        """
        if self.size == 1:
            return counts
        if self._counts is None:
            self._counts = self._meet(PRESENT, f"{self._name}() with {options}", *counts)
        return tuple(map(sum, zip(*self._counts)))

    def at_end(self) -> None:
        """Meets the other ranks at the end of an epoch; raises RankError if one of them has a batch left."""
        if self.size > 1:
            self._meet(AT_END, "the end of its epoch")

    def _meet(self, state: int, words: str, *counts: int) -> list[list[int]]:
        mine = torch.tensor([state, zlib.crc32(words.encode()), self.request, *counts, 0, 0][:5], device=self.device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(rows, mine, group=self.group)
            found: list[list[int]] = torch.stack(rows).tolist()
            self.requested = max(row[2] for row in found)
            if all(row[:2] == found[0][:2] for row in found):
                return [row[3 : 3 + len(counts)] for row in found]
            all_words: list[Any] = [None] * self.size
            dist.all_gather_object(all_words, words, group=self.group)
        if state != FAILED:
            raise RankError(_disagreement([row[0] for row in found], all_words))
        return []

    def check_same(self, descriptions: Mapping[str, Any], argument: str) -> None:
        """Raises RankError on all ranks if a description differs between one of them and rank 0."""
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(everyone, dict(descriptions), group=self.group)
        for rank, theirs in enumerate(everyone):
            for name in {**everyone[0], **theirs}:
                first, other = (one.get(name, "missing") for one in (everyone[0], theirs))
                if first != other:
                    raise RankError(
                        f"`{argument}` must be the same on all ranks, found that {name} is {first} on rank 0 "
                        f"and {other} on rank {rank}. Build it from the same code and options."
                    )

    def gathered(self, value: Any) -> list[Any]:
        """Returns every rank's value, plain data, in order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def start_sum(self, tensor: Tensor) -> Work:
        """Begins to sum a tensor over the ranks, in place."""
        with self._waiting():
            work: Work = dist.all_reduce(tensor, group=self.group, async_op=True)
        return work

    def wait(self, work: Work) -> None:
        """Waits for a sum."""
        with self._waiting():
            work.wait()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over the ranks; differentiable any number of times, also in forward mode."""
        if self.size == 1:
            return tensor
        found: Tensor = _Sum.apply(tensor, self)
        return found

    def sums(self, first: Tensor, *others: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """Sums scalars over the ranks, in one collective and without a graph; None stays None."""
        if self.size == 1:
            return first, list(others)
        given = [first, *(other for other in others if other is not None)]
        total, *totals = self.sum(torch.stack([term.detach().to(first.dtype) for term in given])).unbind()
        following = iter(totals)
        return total, [None if other is None else next(following).to(other.dtype) for other in others]

    def joined_mean(self, mean: Tensor, share: float) -> Tensor:
        """The mean over all samples, of which this rank holds a share; differentiable in this rank's mean."""
        if self.size == 1:
            return mean
        part = mean * share
        return part + (self.sum(part.detach()) - part.detach())

    def joined_rows(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in order; differentiable in this rank's."""
        if self.size == 1:
            return rows
        assert self._counts is not None  # by totals()
        sizes = [counts[0] for counts in self._counts]
        before = sum(sizes[: self.rank])
        everyone = rows.new_zeros(sum(sizes), *rows.shape[1:])
        everyone[before : before + len(rows)] = rows.detach()
        parts = list(self.sum(everyone).split(sizes))
        parts[self.rank] = rows
        return torch.cat(parts)

    def norm(self, tensors: Iterable[Tensor]) -> Tensor:
        """The Euclidean norm of all entries of several tensors together, on all ranks."""
        found = norm(tensors)
        return found if self.size == 1 else self.sum(found.square()).sqrt()

    @contextlib.contextmanager
    def own_random_numbers(self, devices: Iterable[int]) -> Iterator[None]:
        """Draws different random numbers on each rank inside; generators that were equal before are equal after."""
        if self.size == 1:
            yield
            return
        seed = int(torch.randint(2**62, ())) + self.rank
        devices = list(devices)
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            yield

    def from_first(self, tensor: Tensor) -> Tensor:
        """Copies rank 0's values to all ranks in place, as bytes: gloo lacks int16, and (torch 2.7) complex numbers."""
        assert self.group is not None
        with self._waiting():
            dist.broadcast(tensor.view(torch.uint8), src=dist.get_global_rank(self.group, 0), group=self.group)
        return tensor

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises are kinds of it
            raise RankError(
                f"rank {self.rank} of {self.size} got no answer from the others: {str(error).strip()}. One of them has "
                "stopped, has left the training loop, or was not heard of until the process group's timeout; "
                "the first message of each process tells why."
            ) from error


class _Sum(torch.autograd.Function):
    """The sum over ranks. Each rank differentiates its own part of a whole, so cotangents are summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        ranks.wait(ranks.start_sum(total))
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(cotangents[0]), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        total: Tensor = ctx.ranks.sum(tangents[0])
        return total


def _disagreement(states: Sequence[int], words: Sequence[str]) -> str:
    """The message for ranks without an error of their own: which one failed, ended too early, or makes another call."""
    if FAILED in states:
        rank = states.index(FAILED)
        return f"rank {rank} stopped: {words[rank].rstrip('.')}. The other ranks stop with it; nothing was computed."
    found = "; ".join(f"rank {rank} is in {one}" for rank, one in enumerate(words))
    if AT_END in states:
        return (
            f"`loader` must give each rank the same number of batches, found: {found}. "
            "Use torch.utils.data.DistributedSampler, which evens them out."
        )
    return f"ranks must make the same calls with the same options, found: {found}. Run the same program on each."


def checked_process_group(group: "dist.ProcessGroup | None", device: torch.device) -> "dist.ProcessGroup":
    """Returns a process group, the default one if None, that has the collectives needed on a device.

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
    except Exception as error:  # backends raise errors of any kind
        raise RuntimeError(
            f"`process_group` must be able to all_reduce, all_gather and broadcast tensors on {device}, found that its "
            f"backend {dist.get_backend(found)!r} says: {error}. Use 'gloo' for CPUs and 'nccl' for CUDA devices, and "
            "see that all processes run."
        ) from error
    return found
