"""The training loop as one call."""

import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..learners import AuxiliaryLabelGenerator
from ..metrics import Metrics
from ..passes import cuda_devices, only_run
from ..sources import GeneratedLabels, LabelSource
from .arguments import (
    check_counts,
    check_learner_and_source,
    check_loaders,
    check_seed,
    check_times,
    checked_optimizers,
    checked_schedulers,
)
from .clock import Clock
from .epoch_loop import EpochLoop
from .history import History
from .loggers import Loggers
from .progress import progress_wanted
from .replay import NEXT
from .run import Run
from .run_file import RunFile
from .settings import joined_settings, learner_settings, optimizer_settings


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
            it is put into training mode; if not, parts in evaluation mode, such as frozen BatchNorm, stay so.
        loader: Batches ``(x, y)``; ``(x, y, label)`` from ``source.label(dataset, psi)`` for fixed labels.
        epochs: Number of passes over loader.
        optimizer: Of ``maxl.network.parameters()``; the paper's if None, SGD with ``maxl.lr``.
        generator_optimizer: Of ``maxl.generator.parameters()``; the paper's if None, SGD 1e-3 with weight decay 5e-4.
        schedulers: Learning-rate schedulers, stepped after each epoch.
        source: Where the auxiliary labels come from; :class:`~maxl_l2l.sources.GeneratedLabels` if None.
        schedule: ``"batch"``, one fused step of both networks for each batch; ``"epoch"``, the paper's: an epoch of
            network steps, then an epoch of generator steps.
        meta_loader: Batches ``(x, y)`` of the meta loss, held out for instance; it starts again with each epoch, and
            when it ends. ``"next"`` for the training batch after this one (the first after the last); None for this
            training batch itself.
        meta_every: Train the generator only on every n-th batch, beginning with the first of each epoch.
        test_loader: Batches ``(x, y)`` to evaluate on after each epoch.
        micro_batches: As in :meth:`AuxiliaryLabelGenerator.step`; so are max_grad_norm and scaler.
        seed: Seeds torch's random numbers for the run and restores them after it; None to leave them as they are.
        progress: Whether to show a progress bar, which needs tqdm; if None, one is shown if tqdm is installed.
        checkpoint: A file to save the run to, replaced as a whole: after each epoch, and when time_limit or a signal
            ends the run. The old file is kept as ``<name>.previous``. One run at a time can write a file.
        resume: Whether to continue from checkpoint if it exists, inside an epoch too; see below. Its settings must be
            those of this run; epochs may differ. If False, the run starts from the beginning.
        checkpoint_minutes: Save when so many minutes have passed since the last time instead, also inside an epoch, and
            at the end.
        time_limit: Minutes within which fit must return. It stops after a batch once the time left is less than twice
            that of the longest batch (with evaluation) and the longest save together; to measure a save, it saves after
            the first batch. Then ``len(history) < epochs``. Without checkpoint, an epoch that was begun is not
            recorded; the learner keeps what it has learned in it.
        settings: More settings of this run, plain data such as ``{"width": 0.5}``, for ``history.settings``.
        metrics: Whether to record statistics of the labels, see below, and to warn when labels have collapsed into one
            sub-class, or stay uniform; :class:`Metrics` to choose.
        logger: A ``torch.utils.tensorboard.SummaryWriter``, a logger of Lightning's, or a list of these, to log to
            while training. Only rank 0 logs.
        log_every: Log the losses of every n-th step, under ``step/``; epochs are always logged.

    A resumed run equals an uninterrupted one to the last digit on the CPU: batches that were done are drawn again and
    dropped. That includes random numbers of torch, Python and NumPy, of generators that loaders, their samplers and
    datasets hold as attributes, and of workers, but not with ``persistent_workers=True``.

    On SIGINT (Ctrl-C) or SIGTERM the step is finished and the run saved. Then the signal does what it would have done:
    KeyboardInterrupt, an end with status 143, or your own handler; if that returns, so does fit. A second signal acts
    at once.

    After ``maxl.distribute()`` all ranks call fit, each with its own part of the data in the same number of batches, as
    from a ``torch.utils.data.DistributedSampler``, whose epoch is set here. Every rank returns the history of all
    samples; only rank 0 shows progress and writes the checkpoint, from which all resume. With several ranks,
    checkpoint_minutes and time_limit act only at the end of an epoch, by rank 0's clock: allow time for a whole epoch.

    Returns:
        The history of the finished epochs. Each records ``epoch``, ``primary_loss``, ``auxiliary_loss``, ``meta_loss``,
        ``regularizer`` (means over samples, nats), ``accuracy`` (of the training passes) and ``sub_classes`` (auxiliary
        classes that were the most probable label of at least one sample) and ``hypergradient_norm`` (Euclidean, before
        clipping) where they apply, ``test_loss`` and ``test_accuracy`` with a test_loader, ``lr`` and ``seconds``; with
        a scaler also ``skipped``, the steps whose gradient overflowed.

        With metrics also ``auxiliary_accuracy`` (of the auxiliary head, against the most probable label),
        ``label_entropy`` (mean over samples, nats), ``relative_label_entropy`` (divided by log psi[y], so that 1 is
        uniform; over classes with several sub-classes) and ``relative_label_entropy_per_class`` (C of them, None for
        other classes), ``mean_label_entropy`` (of the epoch's mean label, nats), ``use`` (K counts: samples whose most
        probable label each is), ``sub_classes_per_class`` (C counts: sub-classes in use), ``steps_per_second``, and
        ``gradient_cosine`` if asked for. If batches have one more element, integer labels that somebody gave (negative
        where there is none), then also the agreement with them: ``nmi``, ``nmi_within`` and ``purity``, see
        :func:`~maxl_l2l.metrics.agreement`. All are about the labels that the network was trained with.

    Raises:
        TypeError, ValueError: An argument does not fit; the checkpoint is damaged, no checkpoint, or one of another
            run or format. Nothing has been changed.
        ImportError: progress is True and tqdm is missing.
        OSError: The checkpoint can't be read, or can't be written; the old file is then intact.
        BlockingIOError: Another run that has not ended writes the checkpoint.
        RuntimeError: Another fit is running in this process.
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
    check_learner_and_source(maxl, source, schedule)
    check_counts(epochs=epochs, meta_every=meta_every, log_every=log_every, micro_batches=micro_batches)
    check_seed(seed)
    check_loaders(loader, meta_loader, test_loader)
    check_times(checkpoint, resume, checkpoint_minutes, time_limit)
    wanted = progress_wanted(progress)
    optimizer, generator_optimizer = checked_optimizers(maxl, source, optimizer, generator_optimizer)
    given = {"micro_batches": micro_batches if micro_batches > 1 else None, "max_grad_norm": max_grad_norm}
    run = Run(
        maxl,
        loader,
        meta_loader,
        test_loader,
        optimizer,
        generator_optimizer,
        checked_schedulers(schedulers, optimizer, generator_optimizer),
        source or GeneratedLabels(),
        schedule,
        meta_every,
        {name: value for name, value in {**given, "scaler": scaler}.items() if value is not None},  # defaults left out
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
    """Trains as the only run in this process, with random numbers of its own if there is a seed."""
    isolated = nullcontext() if seed is None else torch.random.fork_rng(cuda_devices(run.maxl))
    try:
        with only_run(), isolated, ExitStack() as held:
            if seed is not None:
                torch.manual_seed(int(seed))
            file = RunFile(run)
            file.start(epochs, resume, held)
            EpochLoop(run, file).train(epochs, progress)
    except Exception:
        if run.interrupts.received:  # neither the signal nor the error may be lost
            traceback.print_exc()
            run.interrupts.deliver(run.interrupts.received)
        raise


def _end(run: Run) -> None:
    """Prints where a signal has stopped the run, and does what the signal would have done."""
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
