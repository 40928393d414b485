"""A run: what is trained, on what, and where it stands; epochs, and what is kept of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .algorithm import AuxiliaryLabelGenerator
from .batches import given_labels, length, moved, set_epoch
from .checkpoints import Checkpoint, unwritten
from .clock import Clock
from .derivatives import StepResult
from .errors import NonFiniteError, add_note, is_out_of_memory
from .evaluation import device_of, evaluated
from .files import sole_writer, try_folder
from .history import History
from .interrupts import Interrupts
from .label_meter import LabelMeter
from .loggers import Loggers
from .losses import SECOND_SOFTMAX, are_probabilities
from .maxl import MAXL
from .measures import Measured
from .metrics import Metrics, hierarchy_of
from .passes import cuda_devices
from .progress import Bar
from .random_numbers import RandomNumbers
from .replay import Pairs, random_states
from .schedules import Step, stages
from .settings import check_same_settings
from .sources import LabelSource
from .watch import warn_of_collapse


@dataclass
class Run:
    """A training run: what it works on, where it stands.

    Attributes:
        measured: What the epoch under way has measured; None between epochs.
        pairs: The data of the stage under way; None while it evaluates.
        place: Where it stands, or stood last, in the data.
        stage: Its number.
        inside: Where to go on inside an epoch, from a checkpoint.
        saved: What the checkpoint in the file holds, in words.
        saved_steps: How many steps had been taken then.
    """

    maxl: AuxiliaryLabelGenerator
    loader: Iterable[Any]
    meta_loader: Iterable[Any] | str | None
    test_loader: Iterable[Any] | None
    optimizer: Optimizer
    generator_optimizer: Optimizer
    schedulers: list[LRScheduler]
    source: LabelSource
    schedule: str
    meta_every: int
    options: dict[str, Any]
    checkpoint: Path | None
    history: History
    clock: Clock
    metrics: Metrics | None
    loggers: Loggers
    steps: int = 0
    measured: Measured | None = None
    pairs: Pairs | None = None
    stage: int = 0
    inside: dict[str, Any] | None = None
    saved: str | None = None
    saved_steps: int = 0

    def __post_init__(self) -> None:
        loaders = {"loader": self.loader, "meta_loader": self.meta_loader, "test_loader": self.test_loader}
        self.numbers = RandomNumbers(cuda_devices(self.maxl), loaders)
        self.hierarchy = hierarchy_of(self.maxl)
        self.interrupts = Interrupts()
        self.place: dict[str, Any] = {}
        self.unsaved: OSError | None = None

    def start(self, epochs: int, resume: bool, held: ExitStack) -> None:
        """Goes to where the checkpoint is, if that is wanted and there is one, and meets the other ranks there.

        Args:
            epochs: How many there will be.
            resume: Whether to go on from the checkpoint.
            held: Takes the right to write it, which ends with it.
        """
        with self.maxl.ranks.call("fit"):
            if self.checkpoint is not None:
                if self.maxl.ranks.rank == 0:
                    self.check_writable(self.checkpoint)
                    held.enter_context(sole_writer(self.checkpoint))
                if resume and self.checkpoint.exists():
                    self.restore(self.checkpoint)
            self.maxl.ranks.totals("a run")
        self.maxl.ranks.check_same({"epochs": epochs, **self.common()}, "fit")

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
        except NonFiniteError as error:
            raise self.stopped(error) from error
        except Exception as error:
            if self.maxl.ranks.size == 1 and self.signal:
                self.stops()  # what has failed, failed of it: a terminal signals the workers of data loaders too
                return None
            self.note(error)
            raise

    @property
    def signal(self) -> int:
        """The signal that this run is to end with; 0 for none. All ranks learn of one when they meet in a step."""
        return self.maxl.ranks.requested if self.maxl.ranks.size > 1 else self.interrupts.received

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

    def check_writable(self, path: Path) -> None:
        """Raises OSError if no file can be made where the checkpoint is to be, before anything is computed."""
        try:
            try_folder(path.parent)
        except OSError as error:
            raise unwritten(path, error, self.saved) from error

    def check_logits(self, result: StepResult) -> None:
        """Warns if the model gives probabilities, of which the loss takes a second softmax."""
        if isinstance(self.maxl, MAXL) and result.outputs is not None and are_probabilities(result.outputs):
            warnings.warn(SECOND_SOFTMAX, RuntimeWarning, stacklevel=7)

    def measures(self) -> Measured:
        """What an epoch is measured with."""
        if self.metrics is None or self.hierarchy is None:
            return Measured()
        return Measured(LabelMeter(self.hierarchy, device_of(self.maxl)))

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
            warn_of_collapse(self.history.epochs, self.hierarchy, patience, stacklevel=4)

    def warn_of_numbers(self, record: dict[str, Any], steps: int) -> None:
        """Warns of an epoch in which nothing was learned, or of a test loss that is not finite."""
        number, scaler = record["epoch"], self.options.get("scaler")
        loss = record.get("test_loss", 0.0)
        if not math.isfinite(loss):
            warnings.warn(
                f"`test_loader` gave a loss of {loss} after epoch {number}. Check its data, and what the model does in "
                "evaluation mode alone.",
                RuntimeWarning,
                stacklevel=7,
            )
        if scaler is not None and record["skipped"] == steps:
            warnings.warn(
                f"`scaler` skipped all {record['skipped']} steps of epoch {number}, its scale is {scaler.get_scale()} "
                "now. If that goes on, gradients are not finite whatever the scale: use bfloat16, or look for what "
                "overflows.",
                RuntimeWarning,
                stacklevel=7,
            )

    def batches(self, pairs: Pairs, place: dict[str, Any] | None) -> Iterator[tuple[Any, Any]]:
        """Yields batches and meta batches on the learner's device."""
        device = device_of(self.maxl)
        if place is not None:
            with self.maxl.ranks.call("a data loader"):
                pairs.go_to(place)
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

    def stages(self) -> list[Step]:
        """What is done with each batch of an epoch."""
        return stages(self.maxl, self.source, self.schedule, self.optimizer, self.generator_optimizer, self.options)

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

    def stops(self, due: bool = False) -> bool:
        """Returns whether to stop here; saves before that, and if a checkpoint is due by the clock or anyway."""
        stop, due = self.clock.time_is_up(), due or self.clock.checkpoint_is_due()
        if self.clock.is_set:
            stop, due = self.maxl.ranks.gathered((stop, due))[0]
        stop = stop or self.signal != 0
        if self.checkpoint is not None and (stop or due):
            self.save_checkpoint(self.checkpoint)
        return stop

    def save_checkpoint(self, path: Path) -> None:
        """Writes the checkpoint; raises OSError, with what is left to go on from, if that fails."""
        with self.maxl.ranks.call("fit"):
            try:
                with self.clock.saving():
                    self.save(path)
            except OSError as error:
                self.unsaved = unwritten(path, error, self.saved)
                raise self.unsaved from error
        self.saved, self.saved_steps = self.where(), self.steps
        self.maxl.end_epoch()  # the other ranks may look for the file from here on

    def stopped(self, error: NonFiniteError) -> NonFiniteError:
        """Saves what was learned before the error and returns it with the place where it happened."""
        where = f"stopped at step {self.steps + 1} (epoch {len(self.history) + 1})"
        kept = "Pass checkpoint= to save a run; the learner holds the parameters before this step."
        if self.checkpoint is not None:
            kept = self.kept(self.checkpoint)
            self.maxl.end_epoch()  # no process ends before the file is written
        return NonFiniteError(error.term, f"{where}: {error} {kept}", self.history)

    def kept(self, path: Path) -> str:
        """Saves the run as it was before the step that failed, beside the checkpoint, and says where."""
        last_good = path.with_name(f"{path.name}.stopped")
        last = path if path.exists() else "none yet"
        try:
            self.save(last_good)
        except OSError as failure:
            return f"The last checkpoint is {last}; {last_good} could not be written: {failure}."
        return f"The last checkpoint is {last}; the parameters before this step are in {last_good}."

    def note(self, error: Exception) -> None:
        """Adds to an error where it stopped the run and what is left to go on from, which is saved if need be."""
        if error is self.unsaved:
            return
        words = [f"fit stopped at step {self.steps + 1} (epoch {len(self.history) + 1})."]
        if is_out_of_memory(error):
            words.append("The memory was not enough: micro_batches=2 halves what a step needs of it.")
        if self.checkpoint is None:
            words.append("Pass checkpoint= to save a run; the learner holds the parameters before this step.")
        elif self.steps > self.saved_steps:
            words.append(self.kept(self.checkpoint))
        else:
            words.append(f"The last checkpoint is {self.checkpoint if self.saved else 'none yet'}.")
        add_note(error, " ".join(words))

    @property
    def is_inside_an_epoch(self) -> bool:
        """Whether an epoch has been begun and not ended, by this run or the one that it goes on from."""
        return self.measured is not None or self.inside is not None

    def where(self) -> str:
        """Where the run stands, in words."""
        number = len(self.history)
        return f"a place inside epoch {number + 1}" if self.is_inside_an_epoch else f"epoch {number}"

    def common(self) -> dict[str, Any]:
        """What all ranks must have in common before the first step."""
        return {
            "the number of epochs done": len(self.history),
            "the number of batches done": 0 if self.inside is None else self.inside["place"]["done"],
            "schedule": self.schedule,
            "meta_every": self.meta_every,
            "source": type(self.source).__name__,
            "checkpoint": self.given(self.checkpoint),
            "meta_loader": self.given(self.meta_loader),
            "test_loader": self.given(self.test_loader),
            "checkpoint_minutes": self.clock.checkpoint_minutes,
            "time_limit": self.given(self.clock.time_limit),
            "metrics": str(self.metrics),
        }

    @staticmethod
    def given(argument: Any) -> str:
        """Whether there is an argument, in a word."""
        return "missing" if argument is None else "given"

    def save(self, path: Path) -> None:
        """Saves the run as it was at the last step boundary."""
        if self.measured is None:
            own: dict[str, Any] = {"inside": None, "random": self.numbers.state()}
        else:
            place = self.place if self.pairs is None else self.pairs.place
            own = {"inside": {"stage": self.stage, "place": place, "measured": self.measured.state_dict()}}
        self.parts().save(path, {"history": vars(self.history), "steps": self.steps}, own)

    def restore(self, path: Path) -> None:
        """Goes to where another run was saved; changes nothing if that was not one of the same settings."""
        parts = self.parts()
        content = parts.read(path)
        progress, ranks = content["progress"], content["ranks"]
        check_same_settings(progress["history"]["settings"], self.history.settings, path)
        if ranks[0]["inside"] is not None and len(ranks) != self.maxl.ranks.size:
            raise ValueError(
                f"`checkpoint` must be of as many processes as there are, {self.maxl.ranks.size}, if it was saved "
                f"inside an epoch, found one of {len(ranks)} in {path}. Start that many."
            )
        own = ranks[self.maxl.ranks.rank % len(ranks)]
        self.check_own(own, path)
        parts.restore(content, path)
        self.history.epochs, self.steps = progress["history"]["epochs"], progress["steps"]
        self.inside = own["inside"]
        self.saved, self.saved_steps = self.where(), self.steps
        if self.inside is None:
            self.numbers.restore(own["random"])

    def check_own(self, own: dict[str, Any], path: Path) -> None:
        """Raises ValueError unless a rank's part of a checkpoint can be gone on from; changes nothing."""
        inside, now = own["inside"], self.numbers.state()
        try:
            for state in [own["random"]] if inside is None else random_states(inside["place"]):
                self.numbers.restore(state)
            if inside is not None:
                self.measures().load_state_dict(inside["measured"], device_of(self.maxl))
                self.stages()[inside["stage"]]
        except Exception as error:
            raise ValueError(
                f"`checkpoint` must hold what fit() writes, found in {path} random numbers or measures that are none: "
                f"{type(error).__name__}: {error}. Name another file, or begin again with resume=False."
            ) from error
        finally:
            self.numbers.restore(now)

    def parts(self) -> Checkpoint:
        """What has a state."""
        return Checkpoint(
            {
                "maxl": self.maxl,
                "experience": self.maxl.experience,
                "optimizer": self.optimizer,
                "generator_optimizer": self.generator_optimizer,
                **{name: self.options[name] for name in ("scaler",) if name in self.options},
                **{f"scheduler {number}": scheduler for number, scheduler in enumerate(self.schedulers)},
            },
            self.maxl.ranks,
        )
