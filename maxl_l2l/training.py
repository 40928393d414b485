"""The training loop's door: what a run is made of, checked before it starts."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from numbers import Integral
from os import PathLike
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch.amp import GradScaler
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .algorithm import AuxiliaryLabelGenerator
from .batches import check_loader
from .checks import check_choice, check_count, check_flag, check_is_optimizer, check_kind, check_number, check_optimizer
from .clock import Clock
from .concurrency import only_run
from .history import History
from .loggers import Loggers
from .metrics import Metrics
from .passes import cuda_devices
from .progress import progress_wanted
from .replay import NEXT
from .run import Run
from .schedules import SCHEDULES
from .settings import joined_settings, learner_settings, optimizer_settings
from .sources import GeneratedLabels, LabelSource

COUNTS = {
    "epochs": "Say how often to go through loader.",
    "meta_every": "Use 1 to train the generator on every batch.",
    "log_every": "Use 1 to log every step.",
    "micro_batches": "Use 1 to pass the whole batch at once.",
}
"""The counts that fit takes, and what to write when one is wrong."""


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
    checkpoint_minutes: float | None = None,
    time_limit: float | None = None,
    settings: Mapping[str, Any] | None = None,
    metrics: bool | Metrics = False,
    logger: Any = None,
    log_every: int = 50,
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
        checkpoint: A file to save the run to, replaced as a whole: after each epoch, and when time_limit or a signal
            ends the run. The one before it stays beside it as ``<name>.previous``. One run at a time writes a file.
        resume: Whether to go on from checkpoint if it exists, inside an epoch too; see below. Its settings must be
            those of this run; epochs may differ. If not, the run begins anew, and what was there is the previous one.
        checkpoint_minutes: Save when so many minutes have passed since the last time instead, also inside an epoch, and
            at the end.
        time_limit: Minutes from the call on after which this must have returned. It ends after a batch, the first at
            the earliest, once what is left is less than twice what the longest one (with evaluation) and the longest
            save took; for that it saves after the first batch. ``len(history) < epochs`` tells that it was stopped.
            Without checkpoint, an epoch that was begun is not recorded; the learner keeps what it has learned in it.
        settings: What else this run is made of, ``{"width": 0.5}`` say, plain data: it joins ``history.settings``.
        metrics: Whether to record what the labels are like, see below, and to warn when they say nothing (have
            collapsed into one sub-class, or stay uniform); :class:`Metrics` to choose.
        logger: Where records go while training: a ``torch.utils.tensorboard.SummaryWriter``, a logger of Lightning's,
            or a list of these. Rank 0 alone logs.
        log_every: Every how many-th step's losses are logged, under ``step/``; epochs are in any case.

    A run that is resumed equals an uninterrupted one to the last digit on the CPU: batches that were done are drawn
    again and dropped. Its random numbers are torch's, Python's and NumPy's, those of generators that loaders, their
    samplers and datasets hold as attributes, and those of workers. Out of reach are workers that persist.

    SIGINT (Ctrl-C) and SIGTERM: the step is finished and the run saved, then the signal does what it would have done,
    KeyboardInterrupt or an end with status 143; a handler of your own that returns has fit return. A second one acts at
    once.

    After ``maxl.distribute()`` all ranks call it, each with a loader of its own part, as many batches as the others':
    from a ``torch.utils.data.DistributedSampler``, say, whose epoch is set here. The history is that of all samples on
    every rank; rank 0 alone shows progress and writes the checkpoint, which all go on from. As saving takes all ranks
    and their clocks differ, it is rank 0's that counts, and at the end of an epoch only: time_limit needs room for one.

    Returns:
        The history of the finished epochs. Each records ``epoch``, ``primary_loss``, ``auxiliary_loss``, ``meta_loss``,
        ``regularizer`` (means over samples, nats), ``accuracy`` (of the training passes) and ``sub_classes`` (auxiliary
        classes that were the most probable label of at least one sample) and ``hypergradient_norm`` (Euclidean, before
        clipping) where they apply, ``test_loss`` and ``test_accuracy`` with a test_loader, ``lr`` and ``seconds``; with
        a scaler also ``skipped``, the steps whose gradient overflowed.

        With metrics also ``auxiliary_accuracy`` (of the auxiliary head, against the most probable label),
        ``label_entropy`` (mean over samples, nats), ``relative_label_entropy`` (the same over log psi[y]: 1 is uniform;
        of classes that are split) and ``relative_label_entropy_per_class`` (C of them, None where there is nothing to
        choose), ``mean_label_entropy`` (of the epoch's mean label, nats), ``use`` (K counts: samples whose most
        probable label each is), ``sub_classes_per_class`` (C counts: of these in use), ``steps_per_second``, and where
        it is asked for ``gradient_cosine``. If batches have one more element, integer labels that somebody gave
        (negative where there is none), then also the agreement with them: ``nmi``, ``nmi_within`` and ``purity``, see
        :func:`~maxl_l2l.agreement.agreement`. Labels are those that the network was trained with.

    Raises:
        TypeError, ValueError: An argument does not fit; the checkpoint is damaged, no checkpoint, or one of another
            run or format. Nothing has been changed.
        ImportError: progress is True and tqdm is missing.
        OSError: The checkpoint can't be read, or can't be written: what was there before is intact then.
        BlockingIOError: Another run, still running, writes the checkpoint.
        RuntimeError: There is another fit at work in this process.
        NonFiniteError: A loss, gradient or parameter became NaN or infinite. The message names the step, the term and
            the last checkpoint; the learner holds the parameters before that step, and with a checkpoint they are saved
            too, in ``<name>.stopped``. The error's ``history`` has the epochs until then.
        Exception: What data or models raise; a note on it says at which step, and where the state before it is saved.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(32, 8), torch.randint(0, 2, (32,)))
        >>> maxl = MAXL(nn.Linear(8, 2), psi=[3, 3])
        >>> history = fit(maxl, DataLoader(data, batch_size=8, shuffle=True), epochs=2, seed=0, progress=False)
        >>> len(history)
        2
    """
    _check_learner_and_source(maxl, source, schedule)
    _check_counts(epochs=epochs, meta_every=meta_every, log_every=log_every, micro_batches=micro_batches)
    _check_seed(seed)
    _check_loaders(loader, meta_loader, test_loader)
    _check_times(checkpoint, resume, checkpoint_minutes, time_limit)
    wanted = progress_wanted(progress)
    optimizer, generator_optimizer = _optimizers(maxl, source, optimizer, generator_optimizer)
    run = Run(
        maxl,
        loader,
        meta_loader,
        test_loader,
        optimizer,
        generator_optimizer,
        _checked_schedulers(schedulers, optimizer, generator_optimizer),
        source or GeneratedLabels(),
        schedule,
        meta_every,
        _given(micro_batches=None if micro_batches == 1 else micro_batches, max_grad_norm=max_grad_norm, scaler=scaler),
        None if checkpoint is None else Path(checkpoint).resolve(),
        History(),
        Clock(checkpoint_minutes, time_limit),
        Metrics.of(metrics),
        Loggers(logger, log_every),
    )
    run.history.settings = joined_settings(_settings(run, seed), settings)
    _train(run, epochs, resume, seed, wanted)
    if run.signal:
        _end(run)
    elif run.is_inside_an_epoch and checkpoint is None:
        _warn_of_what_is_lost(run.history)
    return run.history


def _train(run: Run, epochs: int, resume: bool, seed: int | None, progress: bool) -> None:
    """Trains, the only run in this process, with random numbers of its own if there is a seed."""
    isolated = nullcontext() if seed is None else torch.random.fork_rng(cuda_devices(run.maxl))
    try:
        with only_run(), isolated, ExitStack() as held:
            if seed is not None:
                torch.manual_seed(int(seed))
            run.start(epochs, resume, held)
            run.train(epochs, progress)
    except Exception:
        if run.interrupts.received:  # the signal is not to be lost, nor the error
            traceback.print_exc()
            run.interrupts.deliver(run.interrupts.received)
        raise


def _end(run: Run) -> None:
    """Tells what a signal has left, and does what it would have done."""
    if run.maxl.ranks.rank == 0:
        kept = "There is no checkpoint to go on from: pass checkpoint= the next time."
        if run.checkpoint is not None:
            kept = f"The run is saved in {run.checkpoint}: go on with resume=True."
        where = f"after step {run.steps} (epoch {len(run.history) + run.is_inside_an_epoch})"
        print(f"fit: stopped by {Signals(run.signal).name} {where}. {kept}", file=sys.stderr)
    run.interrupts.deliver(run.signal)


def _warn_of_what_is_lost(history: History) -> None:
    warnings.warn(
        f"`time_limit` ended the run inside epoch {len(history) + 1}. Without a checkpoint it can't go on from "
        "there, and the history does not have that epoch; the learner holds what it has learned in it.",
        RuntimeWarning,
        stacklevel=3,
    )


def _settings(run: Run, seed: int | None) -> dict[str, Any]:
    """What a run is made of, plain data."""
    return {
        "source": type(run.source).__name__,
        "schedule": run.schedule,
        "seed": None if seed is None else int(seed),
        **optimizer_settings(run.optimizer, run.generator_optimizer),
        "meta_every": run.meta_every,
        "meta_loader": NEXT if isinstance(run.meta_loader, str) else run.given(run.meta_loader),
        "max_grad_norm": run.options.get("max_grad_norm"),
        **learner_settings(run.maxl),
        "torch": str(torch.__version__),
    }


def _check_learner_and_source(maxl: Any, source: Any, schedule: str) -> None:
    check_kind(maxl, AuxiliaryLabelGenerator, "maxl", "Wrap the model first: MAXL(model, psi).")
    check_choice(schedule, SCHEDULES, "schedule", "'batch' is the fused step, 'epoch' the paper's")
    if source is not None:
        check_kind(source, LabelSource, "source", "Pass one such as GeneratedLabels().")


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        check_count(value, name, COUNTS[name])


def _optimizers(
    maxl: AuxiliaryLabelGenerator, source: Any, optimizer: Any, generator_optimizer: Any
) -> tuple[Optimizer, Optimizer]:
    """Both optimizers, checked; the paper's where there is none."""
    for one, name, network in (
        (optimizer, "optimizer", "network"),
        (generator_optimizer, "generator_optimizer", "generator"),
    ):
        if one is not None:
            check_is_optimizer(one, name, network)
    optimizer = optimizer or SGD(maxl.network.parameters(), lr=maxl.lr)
    generator_optimizer = generator_optimizer or SGD(maxl.generator.parameters(), lr=1e-3, weight_decay=5e-4)
    check_optimizer(optimizer, "optimizer", maxl.network, "network", maxl.generator)
    if source is None or source.trains_generator:
        check_optimizer(generator_optimizer, "generator_optimizer", maxl.generator, "generator", maxl.network)
    return optimizer, generator_optimizer


def _check_seed(seed: Any) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise TypeError(f"`seed` must be an integer, found {seed!r}. Train once for each of several seeds.")
    if seed is not None and not 0 <= int(seed) < 2**64:
        raise ValueError(f"`seed` must be an integer in 0..2**64 - 1, found {seed}. Take a smaller one.")


def _check_loaders(loader: Any, meta_loader: Any, test_loader: Any) -> None:
    if isinstance(meta_loader, str) and meta_loader != NEXT:
        raise ValueError(
            f"`meta_loader` must yield batches (x, y) or be {NEXT!r}, found {meta_loader!r}. Pass a DataLoader."
        )
    for name, data in (("loader", loader), ("meta_loader", meta_loader), ("test_loader", test_loader)):
        if not (name == "meta_loader" and isinstance(data, str) and data == NEXT):
            check_loader(data, name, required=name == "loader")


def _check_times(
    checkpoint: str | Path | None, resume: bool, checkpoint_minutes: float | None, time_limit: float | None
) -> None:
    check_flag(resume, "resume", "Name the file as checkpoint=.")
    if checkpoint is not None:
        _check_path(checkpoint)
    if resume and checkpoint is None:
        raise ValueError("`resume` needs `checkpoint`, found None. Name the file to go on from.")
    if checkpoint_minutes is not None and checkpoint is None:
        raise ValueError("`checkpoint_minutes` needs `checkpoint`, found None. Name the file to save to.")
    for name, minutes in (("checkpoint_minutes", checkpoint_minutes), ("time_limit", time_limit)):
        if minutes is not None:
            check_number(minutes, name, "It is in minutes.", positive=True)


def _check_path(checkpoint: Any) -> None:
    if not isinstance(checkpoint, (str, PathLike)):
        raise TypeError(
            f"`checkpoint` must be the path of a file, found {checkpoint!r} ({type(checkpoint).__name__}). "
            "Write checkpoint='run.pt'."
        )
    path = Path(checkpoint)
    if not path.name or path.is_dir():
        raise ValueError(
            f"`checkpoint` must be a file, found the folder {path}. Name one in it: checkpoint='{path / 'run.pt'}'."
        )


def _checked_schedulers(schedulers: Any, *optimizers: Optimizer) -> list[LRScheduler]:
    if not isinstance(schedulers, Iterable) or isinstance(schedulers, (str, bytes)):
        raise TypeError(
            f"`schedulers` must be a list, found {type(schedulers).__name__}. Write schedulers=[scheduler]."
        )
    found = list(schedulers)
    for position, scheduler in enumerate(found):
        if not isinstance(scheduler, LRScheduler):
            words = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else type(scheduler).__name__
            raise TypeError(
                f"`schedulers` must hold learning-rate schedulers, found {words} at position {position}. "
                "Write schedulers=[torch.optim.lr_scheduler.StepLR(optimizer, 10)]."
            )
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(
                f"`schedulers` must step without a metric, found ReduceLROnPlateau at position {position}. "
                "Use one that counts epochs, or LightningMAXL, which watches a metric."
            )
        if not any(scheduler.optimizer is optimizer for optimizer in optimizers):
            raise ValueError(
                f"`schedulers` must be of `optimizer` or `generator_optimizer`, found a {type(scheduler).__name__} of "
                f"another one at position {position}. Pass the optimizer that it was made with."
            )
    return found


def _given(**options: Any) -> dict[str, Any]:
    """The options of a step that are not left at their defaults, so that a source need not know them."""
    return {name: value for name, value in options.items() if value is not None}
