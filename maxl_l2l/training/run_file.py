"""The file of a run, to which it is saved while it trains and when it fails, and from which it is resumed."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..checkpoints import Buffers, Checkpoint, previous, sole_writer, try_folder, unwritten
from ..errors import NonFiniteError, add_note, is_out_of_memory
from .batches import length
from .evaluation import device_of
from .replay import random_states, too_short
from .run import Run
from .settings import check_same_settings


class RunFile:
    """Saves a run to its checkpoint, if it has one, and resumes it from there.

    Attributes:
        run: The run.
        saved: What the checkpoint in the file holds, in words.
        saved_steps: Number of steps that had been taken then.
        unsaved: Why it could not be written the last time; None if it could.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.saved: str | None = None
        self.saved_steps = 0
        self.unsaved: OSError | None = None

    def start(self, epochs: int, resume: bool, held: ExitStack) -> None:
        """Resumes from the checkpoint, if that is wanted and there is one, and checks that all ranks start alike.

        Args:
            epochs: Number of epochs.
            resume: Whether to resume from the checkpoint.
            held: Holds the lock on the checkpoint until it is closed.
        """
        self.run.ranks.request = 0
        with self.run.ranks.call("fit"):
            if self.run.checkpoint is not None:
                if self.run.ranks.rank == 0:
                    self.check_writable(self.run.checkpoint)
                    held.enter_context(sole_writer(self.run.checkpoint))
                self.parts().check_readable()
                if resume and self.run.checkpoint.exists():
                    self.restore(self.run.checkpoint)
                elif resume and (earlier := previous(self.run.checkpoint)).exists():
                    raise FileNotFoundError(
                        f"`checkpoint` must be there to go on from, found {earlier} alone. Rename it to "
                        f"{self.run.checkpoint.name} to go on from it, or begin again with resume=False."
                    )
            self.run.ranks.totals("a run")
        self.run.ranks.check_same({"epochs": epochs, **self.run.common()}, "fit")

    def stops(self, due: bool = False) -> bool:
        """Returns whether to stop here; saves if so, and if a checkpoint is due by the clock or as given."""
        stop, due = self.run.clock.time_is_up(), due or self.run.clock.checkpoint_is_due()
        if self.run.clock.is_set:
            stop, due = self.run.ranks.gathered((stop, due))[0]
        stop = stop or self.run.signal != 0
        if self.run.checkpoint is not None and (stop or due):
            self.save_checkpoint(self.run.checkpoint)
        return stop

    def save_checkpoint(self, path: Path) -> None:
        """Writes the checkpoint; if that fails, raises OSError with what is left to resume from."""
        with self.run.ranks.call("fit"):
            try:
                with self.run.clock.saving():
                    self.save(path)
            except OSError as error:
                self.unsaved = unwritten(path, error, self.saved)
                raise self.unsaved from error
        self.saved, self.saved_steps = self.run.where(), self.run.steps
        self.run.maxl.end_epoch()  # the other ranks may look for the file from here on

    def stopped(self, error: NonFiniteError) -> NonFiniteError:
        """Saves what was learned before the error and returns it with the place where it happened."""
        where = f"stopped at step {self.run.steps + 1} (epoch {len(self.run.history) + 1})"
        kept = "Pass checkpoint= to save a run; the learner holds the parameters before this step."
        if self.run.checkpoint is not None:
            kept = self.kept(self.run.checkpoint)
            self.run.maxl.end_epoch()  # no process ends before the file is written
        return NonFiniteError(error.term, f"{where}: {error} {kept}", self.run.history)

    def note(self, error: Exception) -> None:
        """Adds to an error where it stopped the run and what is left to resume from, which is saved if need be."""
        if error is self.unsaved:
            return
        words = [f"fit stopped at step {self.run.steps + 1} (epoch {len(self.run.history) + 1})."]
        if is_out_of_memory(error):
            words.append("The memory was not enough: micro_batches=2 halves what a step needs of it.")
        if self.run.checkpoint is None:
            words.append("Pass checkpoint= to save a run; the learner holds the parameters before this step.")
        elif self.run.steps > self.saved_steps and self.run.ranks.size == 1:  # saving needs all ranks
            words.append(self.kept(self.run.checkpoint))
        else:
            words.append(f"The last checkpoint is {self.run.checkpoint if self.saved else 'none yet'}.")
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
        if self.run.measured is None:
            own: dict[str, Any] = {"inside": None, "random": self.run.numbers.state()}
        else:
            place = self.run.place if self.run.pairs is None else self.run.pairs.place
            own = {"inside": {"stage": self.run.stage, "place": place, "measured": self.run.measured.state_dict()}}
        self.parts().save(path, {"history": vars(self.run.history), "steps": self.run.steps}, own, keep)

    def restore(self, path: Path) -> None:
        """Loads the state of a saved run; changes nothing if its settings are not the same."""
        parts = self.parts()
        content = parts.read(path)
        progress, ranks = content["progress"], content["ranks"]
        check_same_settings(progress["history"]["settings"], self.run.history.settings, path)
        if ranks[0]["inside"] is not None and len(ranks) != self.run.ranks.size:
            raise ValueError(
                f"`checkpoint` must be of as many processes as there are, {self.run.ranks.size}, if it was saved "
                f"inside an epoch, found one of {len(ranks)} in {path}. Start that many."
            )
        own = ranks[self.run.ranks.rank % len(ranks)]
        self.check_own(own, path)
        count, batches = (
            (0 if own["inside"] is None else own["inside"]["place"]["main"]["count"]),
            length(self.run.loader),
        )
        if batches is not None and count > batches:
            raise ValueError(too_short("loader", batches, count))
        parts.restore(content, path)
        self.run.history.epochs, self.run.steps = progress["history"]["epochs"], progress["steps"]
        self.run.inside = own["inside"]
        self.saved, self.saved_steps = self.run.where(), self.run.steps
        if self.run.inside is None:
            self.run.numbers.restore(own["random"])

    def check_own(self, own: dict[str, Any], path: Path) -> None:
        """Raises ValueError unless a run can be resumed from a rank's part of a checkpoint; changes nothing."""
        inside, now = own["inside"], self.run.numbers.state()
        try:
            for state in [own["random"]] if inside is None else random_states(inside["place"]):
                self.run.numbers.restore(state)
            if inside is not None:
                self.check_inside(inside)
        except Exception as error:
            raise ValueError(
                f"`checkpoint` must hold what fit() writes, found in {path} random numbers or measures that are none: "
                f"{type(error).__name__}: {error}. Name another file, or begin again with resume=False."
            ) from error
        finally:
            self.run.numbers.restore(now)

    def check_inside(self, inside: dict[str, Any]) -> None:
        """Raises if a place inside an epoch does not fit this run."""
        found = self.run.measures()
        found.load_state_dict(inside["measured"], device_of(self.run.maxl))
        found.values()
        if not 0 <= inside["stage"] < len(self.run.stages()) or type(inside["measured"]["steps"]) is not int:
            raise ValueError(f"stage {inside['stage']} after {inside['measured']['steps']} steps")
        loader = self.run.meta_loader
        reads_meta = not (loader is None or isinstance(loader, str))
        has_meta = reads_meta and inside["stage"] == len(self.run.stages()) - 1
        if has_meta != (inside["place"]["meta"] is not None):
            raise ValueError(f"a place {'without' if has_meta else 'in'} a meta_loader")

    def parts(self) -> Checkpoint:
        """All parts of the run that have a state."""
        return Checkpoint(
            {
                "maxl": self.run.maxl,
                "buffers": Buffers(self.run.maxl),
                "experience": self.run.maxl.experience,
                "optimizer": self.run.optimizer,
                "generator_optimizer": self.run.generator_optimizer,
                **{name: self.run.options[name] for name in ("scaler",) if name in self.run.options},
                **{f"scheduler {number}": scheduler for number, scheduler in enumerate(self.run.schedulers)},
            },
            self.run.ranks,
        )
