"""Replay: iterating over data loaders so that another process can continue at the same batch.

A loader's iterator can't be saved. But its batches follow from the random states at its beginning and at the latest
batches. So these states are saved, and the batches are drawn again from there, without training.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..passes import RandomNumbers

NEXT = "next"
END = object()


class Reader:
    """Iterates over a loader, and keeps the random states from which the same place can be reached again.

    Args:
        loader: A data loader.
        argument: Its name, for messages.
        numbers: The random numbers that its batches depend on.
    """

    def __init__(self, loader: Iterable[Any], argument: str, numbers: RandomNumbers) -> None:
        self.loader, self.argument, self.numbers = loader, argument, numbers
        self.iterator: Iterator[Any] | None = None
        self.start: dict[str, Any] | None = None
        self.count = 0
        # For workers the sampler runs so many batches ahead, and may draw random numbers at each.
        ahead = (getattr(loader, "num_workers", None) or 0) * (getattr(loader, "prefetch_factor", None) or 0)
        self.last: deque[dict[str, Any]] = deque(maxlen=ahead + 1)

    def begin(self) -> None:
        """Begins a pass."""
        self.start, self.count = self.numbers.state(), 0
        self.last.clear()
        self.iterator = iter(self.loader)

    def next(self) -> Any:
        """Returns the next batch, and begins a pass if there is none; END after the last."""
        if self.iterator is None:
            self.begin()
        assert self.iterator is not None
        before = self.numbers.state()
        batch = next(self.iterator, END)
        if batch is not END:
            self.count += 1
            self.last.append(before)
        return batch

    def place(self) -> dict[str, Any]:
        """Returns where this pass stands."""
        return {"start": self.start, "last": list(self.last), "count": self.count}

    def go_to(self, place: dict[str, Any], leave: Callable[[], None]) -> list[Any]:
        """Repeats the pass of another reader, over an equal loader, up to its place; calls leave before each batch.

        Returns:
            The first and the last batch, if there was one. They are those of the other reader. Batches between differ
            if they depend on random numbers that training steps drew from too.
        """
        if place["start"] is None:
            return []
        self.numbers.restore(place["start"])
        self.begin()
        first = last = None
        for number in range(place["count"]):
            known = number - place["count"] + len(place["last"])
            if known >= 0:
                self.numbers.restore(place["last"][known])
            leave()
            last = self.next()
            if last is END:
                raise ValueError(too_short(self.argument, number, place["count"]))
            first = last if number == 0 else first
        return [first, last] if place["count"] else []


class Pairs:
    """A pass over a loader, each batch with its meta batch; :attr:`place` says where it stands.

    Args:
        loader: Training batches.
        meta_loader: Meta batches, started again when they end; ``"next"`` for the training batch after each (the first
            after the last); None for none.
        numbers: What the batches depend on.

    Attributes:
        done: Number of pairs that are done.
        place: For :meth:`go_to`, the place where :meth:`mark` was last called; tensors and plain data.
    """

    def __init__(self, loader: Iterable[Any], meta_loader: Iterable[Any] | str | None, numbers: RandomNumbers) -> None:
        self.numbers, self.main = numbers, Reader(loader, "loader", numbers)
        given = None if meta_loader is None or isinstance(meta_loader, str) else meta_loader
        self.meta = None if given is None else Reader(given, "meta_loader", numbers)
        self.with_next = isinstance(meta_loader, str)
        self.ends: list[Any] = []  # the first batch and the latest, of which the next pairs are made
        self.done = 0
        self.place = self._here()

    def next(self) -> tuple[Any, Any] | None:
        """Returns the next pair; None after the last."""
        if self.with_next:
            return self._next_two()
        batch = self.main.next()
        if batch is END:
            return None
        return batch, None if self.meta is None else self._next_meta(self.meta)

    def mark(self) -> None:
        """Notes that the last pair is done."""
        self.done += 1
        self.place = self._here()

    def go_to(self, place: dict[str, Any], leave: Callable[[], None] = lambda: None) -> None:
        """Goes to a place in equal loaders, and restores the random states of that place.

        Args:
            place: The place.
            leave: Called before each batch; may raise.

        Raises:
            ValueError: The loaders yield fewer batches than have been done.
        """
        self.ends = self.main.go_to(place["main"], leave)
        if self.meta is not None:
            self.meta.go_to(place["meta"], leave)
        self.numbers.restore(place["random"])
        self.done, self.place = place["done"], place

    def _here(self) -> dict[str, Any]:
        meta = None if self.meta is None else self.meta.place()
        return {"done": self.done, "main": self.main.place(), "meta": meta, "random": self.numbers.state()}

    def _next_meta(self, reader: Reader) -> Any:
        batch = reader.next()
        if batch is END and reader.count:
            reader.begin()
            batch = reader.next()
        if batch is END:
            raise ValueError("`meta_loader` must yield at least one batch, found none. Check the dataset behind it.")
        return batch

    def _next_two(self) -> tuple[Any, Any] | None:
        if self.main.count and self.done == self.main.count:
            return None  # not to ask the loader a second time: at its end it may draw random numbers
        if not self.ends:
            batch = self.main.next()
            if batch is END:
                return None
            self.ends = [batch, batch]
        first, batch = self.ends
        following = self.main.next()
        self.ends = [first, first if following is END else following]
        return batch, self.ends[1]


def random_states(place: dict[str, Any]) -> list[dict[str, Any]]:
    """Lists the random states in a place."""
    readers = [reader for reader in (place["main"], place["meta"]) if reader is not None]
    found = [state for reader in readers for state in (reader["start"], *reader["last"]) if state is not None]
    return [*found, place["random"]]


def too_short(argument: str, found: int, done: int) -> str:
    """The message about a loader that yields fewer batches than have been done."""
    return (
        f"`{argument}` must yield the batches of the run that `checkpoint` is of, found {found} in an epoch of which "
        f"{done} were done. Use the same dataset and batch size again."
    )
