"""The epoch loop: what is done with each batch, and what is recorded of an epoch."""

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
from .run import Run, Step
from .run_file import RunFile


class EpochLoop:
    """Trains a run, epoch by epoch.

    Args:
        run: The run.
        file: Where it is saved.
    """

    def __init__(self, run: Run, file: RunFile) -> None:
        self.run, self.file = run, file

    def train(self, epochs: int, progress: bool) -> None:
        """Trains until so many epochs are done or time is up."""
        if not (self.run.maxl.training and self.run.maxl.module.training):
            self.run.maxl.train()
        with self.run.interrupts, self.bar(epochs, progress) as bar:
            self.run.clock.start_step()
            while len(self.run.history) < epochs:
                record = self.attempt(bar)
                if record is None:
                    break
                self.run.history.epochs.append(record)
                bar.show(record)
                self.run.clock.end_step()
                stops = self.file.stops(
                    due=self.run.clock.checkpoint_minutes is None or len(self.run.history) == epochs
                )
                with self.run.ranks.call("fit"):
                    self.log(record)
                if stops:
                    break

    def attempt(self, bar: Bar) -> dict[str, Any] | None:
        """Trains for an epoch as :meth:`epoch` does; saves if that fails, and if a signal ends it."""
        try:
            return self.epoch(bar)
        except Interrupted:
            if not self.run.is_replaying:  # then there is nothing new to save
                self.file.stops()
            return None
        except NonFiniteError as error:
            raise self.file.stopped(error) from error
        except Exception as error:
            if self.run.ranks.size == 1 and self.run.signal and not self.run.is_replaying:
                self.file.stops()  # the signal is the cause: a terminal sends it to the workers of data loaders too
                return None
            try:
                self.file.note(error)
            except Exception as later:  # torch raises at any moment when a loader's worker has died of a signal
                self.file.note(later)
                raise
            raise

    def leave_if_signalled(self) -> None:
        """Raises Interrupted if a signal has come, unless there are several ranks."""
        if self.run.ranks.size == 1 and self.run.signal:
            raise Interrupted

    def bar(self, epochs: int, progress: bool) -> Bar:
        """A progress bar that begins where the run stands."""
        batches, stages = length(self.run.loader), len(self.run.stages())
        initial = len(self.run.history) * stages * (batches or 0)
        if self.run.inside is not None:
            initial += self.run.inside["stage"] * (batches or 0) + self.run.inside["place"]["done"]
        total = None if batches is None else epochs * stages * batches
        return Bar(progress and self.run.ranks.rank == 0, total, initial)

    def epoch(self, bar: Bar) -> dict[str, Any] | None:
        """Trains for an epoch, or what is left of it, and returns its record; None if time was up inside it."""
        inside, self.run.inside = self.run.inside or {"stage": 0, "place": None, "measured": None}, None
        set_epoch(self.run.loader, len(self.run.history))
        self.run.measured, place = self.run.measures(), inside["place"]
        if inside["measured"] is not None:
            self.run.measured.load_state_dict(inside["measured"], device_of(self.run.maxl))
        stages = self.run.stages()
        for self.run.stage in range(inside["stage"], len(stages)):
            if not self.went_over(stages[self.run.stage], place, self.run.measured, bar):
                return None
            place = None
        if self.run.measured.steps == 0:
            number = len(self.run.history) + 1
            raise ValueError(
                f"`loader` must yield at least one batch in each epoch, found none in epoch {number}. "
                "Check the dataset behind it; an iterator that is used up is not a loader."
            )
        assert self.run.pairs is not None
        # Without the pairs the loaders' workers end, before evaluation begins.
        self.run.place, self.run.pairs = self.run.pairs.place, None
        record = self.record(self.run.measured)
        self.run.measured = None
        return record

    def went_over(self, step: Step, place: dict[str, Any] | None, measured: Measured, bar: Bar) -> bool:
        """Goes over the data once, from a place on, and takes steps; returns False if time was up before the end."""
        last = self.run.stage == len(self.run.stages()) - 1
        self.run.pairs = Pairs(self.run.loader, self.run.meta_loader if last else None, self.run.numbers)
        for batch, meta_batch in self.batches(self.run.pairs, place):
            self.run.ranks.request = self.run.interrupts.received
            with self.run.ranks.call("fit"):
                cosine = self.gradient_cosine(batch, measured)
                result = step(batch, meta_batch, self.run.pairs.done % self.run.meta_every == 0)
                measured.means.add("gradient_cosine", cosine, len(batch[1]))
                if result is not None:
                    self.run.steps += 1
                    if self.run.steps == 1:
                        self.check_logits(result)
                    measured.add(
                        result, batch[1], self.run.stage == 0, given_labels(batch, self.run.source.num_elements)
                    )
                    if self.run.ranks.rank == 0:
                        self.run.loggers.step(self.run.steps, result)
            self.run.pairs.mark()
            bar.advance(measured)
            if self.run.ranks.size == 1:  # the clocks of several differ; rank 0's is used at the end of an epoch
                self.run.clock.end_step()
            if (self.run.ranks.size == 1 or self.run.signal) and self.file.stops():
                return False
        return True

    def check_logits(self, result: StepResult) -> None:
        """Warns if the model returns probabilities, of which the loss would take a second softmax."""
        if isinstance(self.run.maxl, MAXL) and result.outputs is not None and are_probabilities(result.outputs):
            warnings.warn(SECOND_SOFTMAX, RuntimeWarning, stacklevel=8)

    def gradient_cosine(self, batch: Any, measured: Measured) -> Tensor | None:
        """The gradient cosine at the parameters before a step, if it is due."""
        every = None if self.run.metrics is None else self.run.metrics.gradient_cosine
        if every is None or self.run.stage != 0 or measured.steps % every != 0:
            return None
        return self.run.source.gradient_cosine(self.run.maxl, batch, self.run.options.get("micro_batches", 1))

    def log(self, record: dict[str, Any]) -> None:
        """Logs an epoch, and warns if labels have collapsed or stayed uniform."""
        if self.run.ranks.rank != 0:
            return
        self.run.loggers.epoch(self.run.steps, record)
        if self.run.metrics is not None and self.run.hierarchy is not None:
            patience = self.run.metrics.patience if self.run.source.learns_from_meta_gradient else None
            warn_of_collapse(self.run.history.epochs, self.run.hierarchy, patience, stacklevel=5)

    def warn_of_numbers(self, record: dict[str, Any], steps: int) -> None:
        """Warns of an epoch in which nothing was learned, or of a test loss that is not finite."""
        number, scaler = record["epoch"], self.run.options.get("scaler")
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
        device = device_of(self.run.maxl)
        if place is not None:
            self.run.is_replaying = True
            with self.run.ranks.call("a data loader"):
                pairs.go_to(place, self.leave_if_signalled)
            self.run.is_replaying = False
            self.run.clock.start_step()
        while True:
            with self.run.ranks.call("a data loader"):  # if it raises, the other ranks raise too
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
        self.run.maxl.end_epoch()

    def record(self, measured: Measured) -> dict[str, Any]:
        """Ends an epoch: joins what was measured, evaluates, steps the schedulers."""
        measured.join(self.run.ranks)
        record: dict[str, Any] = {"epoch": len(self.run.history) + 1, **measured.values()}
        record["lr"] = float(self.run.optimizer.param_groups[0]["lr"])
        if self.run.metrics is not None:
            record["steps_per_second"] = round(measured.steps / measured.seconds, 3)
        if "scaler" in self.run.options:
            record["skipped"] = measured.skipped
        if self.run.test_loader is not None:
            # Several ranks meet only at its end, so none may leave it before.
            batches = (
                self.run.test_loader if self.run.ranks.size > 1 else self.run.interrupts.watched(self.run.test_loader)
            )
            found = evaluated(self.run.maxl, batches, "test_loader")
            record |= {f"test_{name}": value for name, value in found.items()}
        if self.run.ranks.rank == 0:
            self.warn_of_numbers(record, measured.steps)
        with warnings.catch_warnings():
            # The optimizer's steps may have been taken by the run that this one was resumed from.
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before", UserWarning)
            for scheduler in self.run.schedulers:
                scheduler.step()
        return record | {"seconds": round(measured.seconds, 3)}
