"""A run: what it is made of, where it stands, and how it is saved and found again."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..checkpoints import Buffers, Checkpoint, former, sole_writer, try_folder, unwritten
from ..errors import NonFiniteError, add_note, is_out_of_memory
from ..learners import AuxiliaryLabelGenerator
from ..metrics import LabelMeter, Measured, Metrics, hierarchy_of
from ..passes import RandomNumbers, cuda_devices
from ..sources import LabelSource
from .batches import length
from .clock import Clock
from .evaluation import device_of
from .history import History
from .interrupts import Interrupts
from .loggers import Loggers
from .replay import Pairs, random_states, too_short
from .schedules import Step, stages
from .settings import check_same_settings


@dataclass
class RunState:
    """What a training run works on, and where it stands.

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
        self.is_replaying = False
        self.unsaved: OSError | None = None

    def start(self, epochs: int, resume: bool, held: ExitStack) -> None:
        """Goes to where the checkpoint is, if that is wanted and there is one, and meets the other ranks there.

        Args:
            epochs: How many there will be.
            resume: Whether to go on from the checkpoint.
            held: Takes the right to write it, which ends with it.
        """
        self.maxl.ranks.request = 0
        with self.maxl.ranks.call("fit"):
            if self.checkpoint is not None:
                if self.maxl.ranks.rank == 0:
                    self.check_writable(self.checkpoint)
                    held.enter_context(sole_writer(self.checkpoint))
                self.parts().check_readable()
                if resume and self.checkpoint.exists():
                    self.restore(self.checkpoint)
                elif resume and former(self.checkpoint).exists():
                    raise FileNotFoundError(
                        f"`checkpoint` must be there to go on from, found {former(self.checkpoint)} alone. Rename it "
                        f"to {self.checkpoint.name} to go on from it, or begin again with resume=False."
                    )
            self.maxl.ranks.totals("a run")
        self.maxl.ranks.check_same({"epochs": epochs, **self.common()}, "fit")

    @property
    def signal(self) -> int:
        """The signal that this run is to end with; 0 for none. All ranks learn of one when they meet in a step."""
        return self.maxl.ranks.requested if self.maxl.ranks.size > 1 else self.interrupts.received

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

    def stages(self) -> list[Step]:
        """What is done with each batch of an epoch."""
        return stages(self.maxl, self.source, self.schedule, self.optimizer, self.generator_optimizer, self.options)

    def measures(self) -> Measured:
        """What an epoch is measured with."""
        if self.metrics is None or self.hierarchy is None:
            return Measured()
        return Measured(LabelMeter(self.hierarchy, device_of(self.maxl)))

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

    def note(self, error: Exception) -> None:
        """Adds to an error where it stopped the run and what is left to go on from, which is saved if need be."""
        if error is self.unsaved:
            return
        words = [f"fit stopped at step {self.steps + 1} (epoch {len(self.history) + 1})."]
        if is_out_of_memory(error):
            words.append("The memory was not enough: micro_batches=2 halves what a step needs of it.")
        if self.checkpoint is None:
            words.append("Pass checkpoint= to save a run; the learner holds the parameters before this step.")
        elif self.steps > self.saved_steps and self.maxl.ranks.size == 1:  # saving takes all, and one has failed
            words.append(self.kept(self.checkpoint))
        else:
            words.append(f"The last checkpoint is {self.checkpoint if self.saved else 'none yet'}.")
        add_note(error, " ".join(words))

    def kept(self, path: Path) -> str:
        """Saves the run as it was before the step that failed, beside the checkpoint, and says where."""
        last_good = path.with_name(f"{path.name}.stopped")
        last = path if path.exists() else "none yet"
        try:
            self.save(last_good, keep=False)
        except OSError as failure:
            return f"The last checkpoint is {last}; {last_good} could not be written: {failure}."
        return f"The last checkpoint is {last}; the parameters before this step are in {last_good}."

    def check_writable(self, path: Path) -> None:
        """Raises OSError if no file can be made where the checkpoint is to be, before anything is computed."""
        try:
            try_folder(path.parent)
        except OSError as error:
            raise unwritten(path, error, self.saved) from error

    def save(self, path: Path, keep: bool = True) -> None:
        """Saves the run as it was at the last step boundary."""
        if self.measured is None:
            own: dict[str, Any] = {"inside": None, "random": self.numbers.state()}
        else:
            place = self.place if self.pairs is None else self.pairs.place
            own = {"inside": {"stage": self.stage, "place": place, "measured": self.measured.state_dict()}}
        self.parts().save(path, {"history": vars(self.history), "steps": self.steps}, own, keep)

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
        count, batches = (0 if own["inside"] is None else own["inside"]["place"]["main"]["count"]), length(self.loader)
        if batches is not None and count > batches:
            raise ValueError(too_short("loader", batches, count))
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
                self.check_inside(inside)
        except Exception as error:
            raise ValueError(
                f"`checkpoint` must hold what fit() writes, found in {path} random numbers or measures that are none: "
                f"{type(error).__name__}: {error}. Name another file, or begin again with resume=False."
            ) from error
        finally:
            self.numbers.restore(now)

    def check_inside(self, inside: dict[str, Any]) -> None:
        """Raises if a place inside an epoch is none of this run."""
        found = self.measures()
        found.load_state_dict(inside["measured"], device_of(self.maxl))
        found.values()
        if not 0 <= inside["stage"] < len(self.stages()) or type(inside["measured"]["steps"]) is not int:
            raise ValueError(f"stage {inside['stage']} after {inside['measured']['steps']} steps")
        has_meta = self.stages_with_meta(inside["stage"])
        if has_meta != (inside["place"]["meta"] is not None):
            raise ValueError(f"a place {'without' if has_meta else 'in'} a meta_loader")

    def stages_with_meta(self, stage: int) -> bool:
        """Whether a stage goes through a meta_loader of its own."""
        return stage == len(self.stages()) - 1 and not (self.meta_loader is None or isinstance(self.meta_loader, str))

    def parts(self) -> Checkpoint:
        """What has a state."""
        return Checkpoint(
            {
                "maxl": self.maxl,
                "buffers": Buffers(self.maxl),
                "experience": self.maxl.experience,
                "optimizer": self.optimizer,
                "generator_optimizer": self.generator_optimizer,
                **{name: self.options[name] for name in ("scaler",) if name in self.options},
                **{f"scheduler {number}": scheduler for number, scheduler in enumerate(self.schedulers)},
            },
            self.maxl.ranks,
        )
