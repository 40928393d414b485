"""A run: epochs, what is done with each batch, and what is kept of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..errors import NonFiniteError
from ..hypergradient import StepResult
from ..labels import SECOND_SOFTMAX, are_probabilities
from ..learners import MAXL
from ..metrics import Measured, warn_of_collapse
from .batches import given_labels, length, moved, set_epoch
from .evaluation import device_of, evaluated
from .interrupts import Interrupted
from .progress import Bar
from .replay import Pairs
from .run import RunState
from .schedules import Step


class Run(RunState):
    """A training run."""

    def train(self, epochs: int, progress: bool) -> None:
        """Trains until so many epochs are done or time is up."""
        if not (self.maxl.training and self.maxl.module.training):
            self.maxl.train()
        with self.interrupts, self.bar(epochs, progress) as bar:
            self.clock.start_step()
            while len(self.history) < epochs:
                record = self.attempt(bar)
                if record is None:
                    break
                self.history.epochs.append(record)
                bar.show(record)
                self.clock.end_step()
                stops = self.stops(due=self.clock.checkpoint_minutes is None or len(self.history) == epochs)
                with self.maxl.ranks.call("fit"):
                    self.tell(record)
                if stops:
                    break

    def attempt(self, bar: Bar) -> dict[str, Any] | None:
        """Trains for an epoch as :meth:`epoch` does; saves if that fails, and if a signal ends it."""
        try:
            return self.epoch(bar)
        except Interrupted:
            if not self.is_replaying:  # where nothing is new
                self.stops()
            return None
        except NonFiniteError as error:
            raise self.stopped(error) from error
        except Exception as error:
            if self.maxl.ranks.size == 1 and self.signal and not self.is_replaying:
                self.stops()  # what has failed, failed of it: a terminal signals the workers of data loaders too
                return None
            try:
                self.note(error)
            except Exception as later:  # of a signal: torch raises wherever it is when a loader's worker has died
                self.note(later)
                raise
            raise

    def leave_if_signalled(self) -> None:
        """Raises Interrupted if a signal has come; not in one of several ranks alone."""
        if self.maxl.ranks.size == 1 and self.signal:
            raise Interrupted

    def bar(self, epochs: int, progress: bool) -> Bar:
        """A progress bar that stands where the run does."""
        batches, stages = length(self.loader), len(self.stages())
        initial = len(self.history) * stages * (batches or 0)
        if self.inside is not None:
            initial += self.inside["stage"] * (batches or 0) + self.inside["place"]["done"]
        total = None if batches is None else epochs * stages * batches
        return Bar(progress and self.maxl.ranks.rank == 0, total, initial)

    def epoch(self, bar: Bar) -> dict[str, Any] | None:
        """Trains for an epoch, or what is left of it, and returns its record; None if time was up inside it."""
        inside, self.inside = self.inside or {"stage": 0, "place": None, "measured": None}, None
        set_epoch(self.loader, len(self.history))
        self.measured, place = self.measures(), inside["place"]
        if inside["measured"] is not None:
            self.measured.load_state_dict(inside["measured"], device_of(self.maxl))
        stages = self.stages()
        for self.stage in range(inside["stage"], len(stages)):
            if not self.went_over(stages[self.stage], place, self.measured, bar):
                return None
            place = None
        if self.measured.steps == 0:
            raise ValueError(
                f"`loader` must yield at least one batch in each epoch, found none in epoch {len(self.history) + 1}. "
                "Check the dataset behind it; an iterator that is used up is not a loader."
            )
        assert self.pairs is not None
        self.place, self.pairs = self.pairs.place, None  # and with it the loaders' workers, before evaluation begins
        record = self.record(self.measured)
        self.measured = None
        return record

    def went_over(self, step: Step, place: dict[str, Any] | None, measured: Measured, bar: Bar) -> bool:
        """Goes over the data once, from a place on, and takes steps; returns False if time was up before the end."""
        last = self.stage == len(self.stages()) - 1
        self.pairs = Pairs(self.loader, self.meta_loader if last else None, self.numbers)
        for batch, meta_batch in self.batches(self.pairs, place):
            self.maxl.ranks.request = self.interrupts.received
            with self.maxl.ranks.call("fit"):
                cosine = self.gradient_cosine(batch, measured)
                result = step(batch, meta_batch, self.pairs.done % self.meta_every == 0)
                measured.means.add("gradient_cosine", cosine, len(batch[1]))
                if result is not None:
                    self.steps += 1
                    if self.steps == 1:
                        self.check_logits(result)
                    measured.add(result, batch[1], self.stage == 0, given_labels(batch, self.source.num_elements))
                    if self.maxl.ranks.rank == 0:
                        self.loggers.step(self.steps, result)
            self.pairs.mark()
            bar.advance(measured)
            if self.maxl.ranks.size == 1:  # the clocks of several differ: they agree at the end of an epoch
                self.clock.end_step()
            if (self.maxl.ranks.size == 1 or self.signal) and self.stops():
                return False
        return True

    def check_logits(self, result: StepResult) -> None:
        """Warns if the model gives probabilities, of which the loss takes a second softmax."""
        if isinstance(self.maxl, MAXL) and result.outputs is not None and are_probabilities(result.outputs):
            warnings.warn(SECOND_SOFTMAX, RuntimeWarning, stacklevel=8)

    def gradient_cosine(self, batch: Any, measured: Measured) -> Tensor | None:
        """The gradient cosine at the parameters that a step starts from, if it is wanted and its turn."""
        every = None if self.metrics is None else self.metrics.gradient_cosine
        if every is None or self.stage != 0 or measured.steps % every != 0:
            return None
        return self.source.gradient_cosine(self.maxl, batch, self.options.get("micro_batches", 1))

    def tell(self, record: dict[str, Any]) -> None:
        """Logs an epoch, and warns if its labels and those before say nothing."""
        if self.maxl.ranks.rank != 0:
            return
        self.loggers.epoch(self.steps, record)
        if self.metrics is not None and self.hierarchy is not None:
            patience = self.metrics.patience if self.source.learns_from_meta_gradient else None
            warn_of_collapse(self.history.epochs, self.hierarchy, patience, stacklevel=5)

    def warn_of_numbers(self, record: dict[str, Any], steps: int) -> None:
        """Warns of an epoch in which nothing was learned, or of a test loss that is not finite."""
        number, scaler = record["epoch"], self.options.get("scaler")
        loss = record.get("test_loss", 0.0)
        if not math.isfinite(loss):
            warnings.warn(
                f"`test_loader` gave a loss of {loss} after epoch {number}. Check its data, and what the model does in "
                "evaluation mode alone.",
                RuntimeWarning,
                stacklevel=8,
            )
        if scaler is not None and record["skipped"] == steps:
            warnings.warn(
                f"`scaler` skipped all {record['skipped']} steps of epoch {number}, its scale is {scaler.get_scale()} "
                "now. If that goes on, gradients are not finite whatever the scale: use bfloat16, or look for what "
                "overflows.",
                RuntimeWarning,
                stacklevel=8,
            )

    def batches(self, pairs: Pairs, place: dict[str, Any] | None) -> Iterator[tuple[Any, Any]]:
        """Yields batches and meta batches on the learner's device."""
        device = device_of(self.maxl)
        if place is not None:
            self.is_replaying = True
            with self.maxl.ranks.call("a data loader"):
                pairs.go_to(place, self.leave_if_signalled)
            self.is_replaying = False
            self.clock.start_step()
        while True:
            with self.maxl.ranks.call("a data loader"):  # the others are told if it raises
                pair = pairs.next()
                if pair is not None:
                    batch, meta_batch = pair
                    pair = (
                        moved(batch, device),
                        None if meta_batch is None else moved(meta_batch, device, "meta_loader")[:2],
                    )
            if pair is None:
                break
            yield pair
        self.maxl.end_epoch()

    def record(self, measured: Measured) -> dict[str, Any]:
        """Ends an epoch: joins what was measured, evaluates, steps the schedulers."""
        measured.join(self.maxl.ranks)
        record: dict[str, Any] = {"epoch": len(self.history) + 1, **measured.values()}
        record["lr"] = float(self.optimizer.param_groups[0]["lr"])
        if self.metrics is not None:
            record["steps_per_second"] = round(measured.steps / measured.seconds, 3)
        if "scaler" in self.options:
            record["skipped"] = measured.skipped
        if self.test_loader is not None:
            # Ranks meet at the end of it alone, so that none of several can leave it.
            batches = self.test_loader if self.maxl.ranks.size > 1 else self.interrupts.watched(self.test_loader)
            found = evaluated(self.maxl, batches, "test_loader")
            record |= {f"test_{name}": value for name, value in found.items()}
        if self.maxl.ranks.rank == 0:
            self.warn_of_numbers(record, measured.steps)
        with warnings.catch_warnings():
            # The optimizer's steps may have been taken by the run that this one goes on from.
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before", UserWarning)
            for scheduler in self.schedulers:
                scheduler.step()
        return record | {"seconds": round(measured.seconds, 3)}
