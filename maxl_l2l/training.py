"""The training loop: epochs, both schedules, evaluation, progress and checkpoints; the room that knows data loaders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .algorithm import AuxiliaryLabelGenerator
from .batches import check_loader, cycle, length, moved, set_epoch, with_next
from .calls import logits_of
from .checkpoints import Checkpoint
from .checks import check_choice, check_count, check_kind
from .derivatives import StepResult
from .errors import NonFiniteError
from .history import History
from .measures import Means, Usage, accuracy
from .passes import cuda_devices
from .progress import Bar, progress_wanted
from .sources import GeneratedLabels, LabelSource

SCHEDULES = ("batch", "epoch")
NEXT = "next"


def fit(
    maxl: AuxiliaryLabelGenerator,
    loader: Iterable[Any],
    epochs: int,
    *,
    optimizer: Optimizer | None = None,
    generator_optimizer: Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    source: LabelSource | None = None,
    schedule: str = "batch",
    meta_loader: Iterable[Any] | str | None = None,
    meta_every: int = 1,
    test_loader: Iterable[Any] | None = None,
    micro_batches: int = 1,
    max_grad_norm: float | None = None,
    scaler: GradScaler | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> History:
    """Trains a model with auxiliary labels.

    Args:
        maxl: The learner; it is trained in place, and so is the user's model in it. If it is in evaluation mode, all of
            it is put into training mode; if not, parts that are in evaluation mode (frozen BatchNorm, say) stay so.
        loader: Batches ``(x, y)``; ``(x, y, label)`` from ``source.label(dataset, psi)`` for fixed labels.
        epochs: How many passes over loader.
        optimizer: Of ``maxl.network.parameters()``; the paper's if None, SGD with ``maxl.lr``.
        generator_optimizer: Of ``maxl.generator.parameters()``; the paper's if None, SGD 1e-3 with weight decay 5e-4.
        schedulers: Learning-rate schedulers, stepped after each epoch.
        source: Where the auxiliary labels come from; :class:`~maxl_l2l.sources.GeneratedLabels` if None.
        schedule: ``"batch"``, one fused step of both networks a batch; ``"epoch"``, the paper's: an epoch of network
            steps, then an epoch of generator steps.
        meta_loader: Batches ``(x, y)`` of the meta loss, held-out ones say, begun anew with each epoch and cycled
            through; ``"next"`` for the training batch after this one (the first after the last); the training batch
            itself if None.
        meta_every: Train the generator on every how many-th batch only, from the first of each epoch on.
        test_loader: Batches ``(x, y)`` to evaluate on after each epoch.
        micro_batches: As in :meth:`AuxiliaryLabelGenerator.step`; so are max_grad_norm and scaler.
        max_grad_norm: See above.
        scaler: See above; its state is part of the checkpoint.
        seed: Seeds torch's random numbers for the run and restores them after it; left alone if None.
        progress: Whether to show a progress bar, which needs tqdm; if it is installed if None.
        checkpoint: A file to save the run to after each epoch, replaced as a whole.
        resume: Whether to go on from checkpoint if it exists; a run so continued equals an uninterrupted one, as far as
            its data order depends on torch's random numbers.

    After ``maxl.distribute()`` all ranks call it, each with a loader of its own part, as many batches as the others':
    from a ``torch.utils.data.DistributedSampler``, say, whose epoch is set here. The history is that of all samples on
    every rank; rank 0 alone shows progress and writes the checkpoint, which all go on from.

    Returns:
        The history. Each epoch records ``epoch``, ``primary_loss``, ``auxiliary_loss``, ``meta_loss``, ``regularizer``
        (means over samples, nats), ``accuracy`` (of the training passes) and ``sub_classes`` (auxiliary classes that
        were the most probable label of at least one sample) where they apply, ``test_loss`` and ``test_accuracy`` with
        a test_loader, ``lr`` and ``seconds``; with a scaler
        also ``skipped``, the steps whose gradient overflowed.

    Raises:
        TypeError, ValueError: An argument does not fit.
        ImportError: progress is True and tqdm is missing.
        NonFiniteError: A loss or gradient became NaN or infinite. The message names the step, the term and the last
            checkpoint; the learner holds the parameters before that step, and with a checkpoint they are saved too. The
            error's ``history`` has the epochs until then.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(32, 8), torch.randint(0, 2, (32,)))
        >>> maxl = MAXL(nn.Linear(8, 2), psi=[3, 3])
        >>> history = fit(maxl, DataLoader(data, batch_size=8, shuffle=True), epochs=2, seed=0, progress=False)
        >>> len(history)
        2
    """
    check_kind(maxl, AuxiliaryLabelGenerator, "maxl", "Wrap the model first: MAXL(model, psi).")
    check_count(epochs, "epochs", "Say how often to go through loader.")
    check_count(meta_every, "meta_every", "Use 1 to train the generator on every batch.")
    check_choice(schedule, SCHEDULES, "schedule", "'batch' is the fused step, 'epoch' the paper's")
    if source is not None:
        check_kind(source, LabelSource, "source", "Pass one such as GeneratedLabels().")
    for name, data in (("loader", loader), ("meta_loader", meta_loader), ("test_loader", test_loader)):
        if not (name == "meta_loader" and data == NEXT):
            check_loader(data, name, required=name == "loader")
    if resume and checkpoint is None:
        raise ValueError("`resume` needs `checkpoint`, found None. Name the file to go on from.")
    wanted = progress_wanted(progress)
    run = _Run(
        maxl,
        loader,
        meta_loader,
        test_loader,
        optimizer or SGD(maxl.network.parameters(), lr=maxl.lr),
        generator_optimizer or SGD(maxl.generator.parameters(), lr=1e-3, weight_decay=5e-4),
        _checked_schedulers(schedulers),
        source or GeneratedLabels(),
        schedule,
        meta_every,
        _given(micro_batches=None if micro_batches == 1 else micro_batches, max_grad_norm=max_grad_norm, scaler=scaler),
        None if checkpoint is None else Path(checkpoint),
        History(),
    )
    run.history.settings = run.settings(seed)
    isolated = nullcontext() if seed is None else torch.random.fork_rng(cuda_devices(maxl))
    with isolated:
        if seed is not None:
            torch.manual_seed(seed)
        with maxl.ranks.call("fit"):
            if resume and run.checkpoint is not None and run.checkpoint.exists():
                run.restore(run.checkpoint)
            maxl.ranks.totals("a run")
        maxl.ranks.check_same({"epochs": epochs, **run.common()}, "fit")
        run.train(epochs, wanted)
    return run.history


def evaluate(maxl: AuxiliaryLabelGenerator, loader: Iterable[Any]) -> dict[str, float]:
    """Evaluates the model on data that it is not trained on, in evaluation mode.

    Args:
        maxl: The learner; its training mode is restored.
        loader: Batches ``(x, y)``.

    Returns:
        ``loss``, the mean primary loss over samples, and ``accuracy``, a fraction, if y holds class indices.

    After ``maxl.distribute()`` all ranks call it, each with its part of the data, of any size; the result is that of
    all samples.

    Raises:
        ValueError: loader is empty.
    """
    modes = {module: module.training for module in maxl.modules()}
    device = _device(maxl)
    totals = Means()
    maxl.eval()
    try:
        with torch.no_grad(), maxl.ranks.call("evaluate"):
            for batch in loader:
                x, y = moved(batch, device)[:2]
                maxl.check_batch(x, y)
                outputs = logits_of(maxl(x))
                totals.add("loss", maxl.objective.primary(outputs, y), len(y))
                totals.add("accuracy", accuracy(outputs, y), len(y))
            maxl.ranks.totals("a loader")
    finally:
        for module, training in modes.items():
            module.training = training
    totals.join(maxl.ranks)
    found = totals.values()
    if not found:
        raise ValueError("`loader` must yield at least one batch, found none. Check the dataset behind it.")
    return found


@dataclass
class _Run:
    """A training run: what it works on, where it stands."""

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
    steps: int = 0

    def train(self, epochs: int, progress: bool) -> None:
        per_epoch = length(self.loader)
        if per_epoch is not None:
            per_epoch *= len(self.stages())
        done = len(self.history)
        if not (self.maxl.training and self.maxl.module.training):
            self.maxl.train()
        with Bar(
            progress and self.maxl.ranks.rank == 0,
            None if per_epoch is None else per_epoch * epochs,
            done * (per_epoch or 0),
        ) as bar:
            while len(self.history) < epochs:
                try:
                    self.history.epochs.append(self.epoch(bar))
                except NonFiniteError as error:
                    raise self.stopped(error) from error
                bar.show(self.history.epochs[-1])
                if self.checkpoint is not None:
                    self.save(self.checkpoint)
                    self.maxl.end_epoch()  # the other ranks may look for the file from here on

    def epoch(self, bar: Bar) -> dict[str, Any]:
        started, first_step = time.perf_counter(), self.steps
        set_epoch(self.loader, len(self.history))
        means, usage, skipped = Means(), Usage(), 0
        stages = self.stages()
        for number, step in enumerate(stages):
            for index, (batch, meta_batch) in enumerate(self.batches(with_meta=number == len(stages) - 1)):
                with self.maxl.ranks.call("fit"):
                    result = step(batch, meta_batch, index % self.meta_every == 0)
                if result is None:
                    continue
                self.steps += 1
                skipped += result.skipped
                if number == 0:
                    self.measure_network(result, batch[1], means, usage)
                means.add("meta_loss", result.meta_loss, len(batch[1]))
                means.add("regularizer", result.regularizer, len(batch[1]))
                bar.advance(means, usage)
        if self.steps == first_step:
            raise ValueError(
                f"`loader` must yield at least one batch in each epoch, found none in epoch {len(self.history) + 1}. "
                "Check the dataset behind it; an iterator that is used up is not a loader."
            )
        means.join(self.maxl.ranks)
        usage.join(self.maxl.ranks)
        record = {"epoch": len(self.history) + 1, **means.values(), **usage.values()}
        record["lr"] = self.optimizer.param_groups[0]["lr"]
        if "scaler" in self.options:
            record["skipped"] = skipped
        for scheduler in self.schedulers:
            scheduler.step()
        if self.test_loader is not None:
            found = evaluate(self.maxl, self.test_loader)
            record |= {f"test_{name}": value for name, value in found.items()}
        return record | {"seconds": round(time.perf_counter() - started, 3)}

    def stages(self) -> list[Callable[[Any, Any, bool], StepResult | None]]:
        """What is done with each batch, its meta batch, and whether it is the generator's turn; in one pass or two."""
        source, maxl, networks, generators = self.source, self.maxl, self.optimizer, self.generator_optimizer

        def train_network(batch: Any, meta_batch: Any = None, turn: bool = False) -> StepResult:
            return source.network_step(maxl, batch, networks, **self.options)

        def train_generator(batch: Any, meta_batch: Any, turn: bool) -> StepResult | None:
            if not turn:
                return None
            return source.generator_step(maxl, batch, networks, generators, meta_batch, **self.options)

        def train_both(batch: Any, meta_batch: Any, turn: bool) -> StepResult:
            if not turn:
                return train_network(batch)
            return source.step(maxl, batch, networks, generators, meta_batch, **self.options)

        if self.schedule == "batch":
            return [train_both]
        return [train_network, train_generator] if source.trains_generator else [train_network]

    def batches(self, with_meta: bool) -> Iterator[tuple[Any, Any]]:
        device = _device(self.maxl)
        if not with_meta or self.meta_loader is None:
            pairs: Iterable[tuple[Any, Any]] = ((batch, None) for batch in self.loader)
        elif self.meta_loader == NEXT:
            pairs = with_next(self.loader)
        else:
            assert not isinstance(self.meta_loader, str)
            pairs = zip(self.loader, cycle(self.meta_loader))
        iterator = iter(pairs)
        while True:
            with self.maxl.ranks.call("a data loader"):  # the others are told if it raises
                pair = next(iterator, None)
                if pair is not None:
                    batch, meta_batch = pair
                    pair = moved(batch, device), None if meta_batch is None else moved(meta_batch, device)[:2]
            if pair is None:
                break
            yield pair
        self.maxl.end_epoch()

    @staticmethod
    def measure_network(result: StepResult, y: Tensor, means: Means, usage: Usage) -> None:
        means.add("primary_loss", result.primary_loss, len(y))
        means.add("auxiliary_loss", result.auxiliary_loss, len(y))
        if result.outputs is not None:
            means.add("accuracy", accuracy(result.outputs, y), len(y))
        usage.add(result.targets)

    def stopped(self, error: NonFiniteError) -> NonFiniteError:
        """Saves what was learned before the error and returns it with the place where it happened."""
        where = f"stopped at step {self.steps + 1} (epoch {len(self.history) + 1})"
        kept = "Pass checkpoint= to save a run; the learner holds the parameters before this step."
        if self.checkpoint is not None:
            last_good = self.checkpoint.with_name(f"{self.checkpoint.name}.stopped")
            self.save(last_good)
            self.maxl.end_epoch()  # no process ends before the file is written
            last = self.checkpoint if self.checkpoint.exists() else "none yet"
            kept = f"The last checkpoint is {last}; the parameters before this step are in {last_good}."
        return NonFiniteError(error.term, f"{where}: {error} {kept}", self.history)

    def settings(self, seed: int | None) -> dict[str, Any]:
        return {
            "source": type(self.source).__name__,
            "schedule": self.schedule,
            "seed": seed,
            "optimizer": type(self.optimizer).__name__,
            "lr": self.optimizer.param_groups[0]["lr"],
            "generator_optimizer": type(self.generator_optimizer).__name__,
            "generator_lr": self.generator_optimizer.param_groups[0]["lr"],
            "meta_every": self.meta_every,
            "torch": str(torch.__version__),
        }

    def common(self) -> dict[str, Any]:
        """What all ranks must have in common before the first step."""
        return {
            "the number of epochs done": len(self.history),
            "schedule": self.schedule,
            "meta_every": self.meta_every,
            "source": type(self.source).__name__,
            "checkpoint": "missing" if self.checkpoint is None else "given",
            "meta_loader": "missing" if self.meta_loader is None else "given",
            "test_loader": "missing" if self.test_loader is None else "given",
        }

    def save(self, path: Path) -> None:
        self.parts().save(path, {"history": vars(self.history), "steps": self.steps})

    def restore(self, path: Path) -> None:
        progress = self.parts().restore(path, _device(self.maxl))
        self.history.epochs, self.steps = progress["history"]["epochs"], progress["steps"]

    def parts(self) -> Checkpoint:
        return Checkpoint(
            {
                "maxl": self.maxl,
                "experience": self.maxl.experience,
                "optimizer": self.optimizer,
                "generator_optimizer": self.generator_optimizer,
                **{name: self.options[name] for name in ("scaler",) if name in self.options},
                **{f"scheduler {number}": scheduler for number, scheduler in enumerate(self.schedulers)},
            },
            [getattr(loader, "generator", None) for loader in (self.loader, self.meta_loader)],
            cuda_devices(self.maxl),
            self.maxl.ranks,
        )


def _checked_schedulers(schedulers: Any) -> list[LRScheduler]:
    if not isinstance(schedulers, Iterable) or isinstance(schedulers, (str, bytes)):
        raise TypeError(
            f"`schedulers` must be a list, found {type(schedulers).__name__}. Write schedulers=[scheduler]."
        )
    return list(schedulers)


def _given(**options: Any) -> dict[str, Any]:
    """The options of a step that are not left at their defaults, so that a source need not know them."""
    return {name: value for name, value in options.items() if value is not None}


def _device(maxl: AuxiliaryLabelGenerator) -> torch.device:
    return next(maxl.parameters()).device
