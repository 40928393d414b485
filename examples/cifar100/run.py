"""One run: a network, a source of auxiliary labels and a seed, trained and described."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from maxl_l2l import (
    MAXL,
    EntropyLabels,
    GeneratedLabels,
    History,
    HumanLabels,
    LabelSource,
    RandomLabels,
    SingleTask,
    entropy_loss,
    fit,
)

from .arithmetic import arithmetic, operations_a_batch
from .data import Batches, Images, held_out, load, subset
from .environment import environment
from .job import Job
from .levels import Task, task
from .networks import HEADS, network

try:
    from sklearn.metrics import normalized_mutual_info_score

    from maxl_l2l.kmeans import KMeansLabels

    HAS_SCIKIT_LEARN = True
except ImportError:
    HAS_SCIKIT_LEARN = False

SOURCES: dict[str, Callable[[int, Tensor], LabelSource]] = {
    "single": lambda seed, human: SingleTask(),
    "random": lambda seed, human: RandomLabels(seed),
    "kmeans": lambda seed, human: KMeansLabels(seed),
    "human": lambda seed, human: HumanLabels(human),
    "entropy": lambda seed, human: EntropyLabels(),
    "maxl": lambda seed, human: GeneratedLabels(),
    "weighted": lambda seed, human: GeneratedLabels(),
}
"""The label sources, made of a seed and the given labels. The generator of the last one gives weights, too."""

LAST = 5
"""The number of last epochs over which a run's accuracy is averaged."""
TEST_BATCH = 500


class Split(NamedTuple):
    """The images of a run: to train on, for the meta loss alone (or None), and to test on."""

    train: Images
    meta: Images | None
    test: Images


def images_of(job: Job) -> Split:
    """Reads a run's images; a subset of them, and which are held out, depends on the seed."""
    train, test = load(job.data, job.cache)
    if job.subset is not None:
        train = subset(train, job.subset, job.seed)
    if not job.recipe.held_out:
        return Split(train, None, test)
    return Split(*held_out(train, job.recipe.held_out, job.seed), test)


def learner_of(job: Job, psi: list[int]) -> MAXL:
    """Builds a run's networks."""
    torch.manual_seed(job.seed)
    model = network(job.network, job.primary, job.width)
    if job.channels_last:
        model = model.to(memory_format=torch.channels_last)
    maxl = MAXL(
        model,
        psi,
        head=HEADS[job.network],
        gamma=job.recipe.gamma,
        entropy_weight=job.recipe.entropy_weight,
        weighted=job.source == "weighted",
    )
    return maxl.to(job.device)


def run(job: Job, rate: float, deadline: float | None = None, progress: bool = False) -> dict[str, Any] | None:
    """Trains; returns the result as plain data, None if there was no time left to finish.

    Args:
        job: What to train.
        rate: Operations a second of the device in matrix products.
        deadline: When to stop, in seconds since the epoch; never if None.
        progress: Whether to show a progress bar.
    """
    split, levels, device = images_of(job), task(job.primary, job.auxiliary), torch.device(job.device)
    y = levels.primary[split.train.fine]
    source = SOURCES[job.source](job.seed, levels.auxiliary[split.train.fine])
    labelled = source.label(TensorDataset(split.train.pixels, y), levels.psi)
    labels = [y, labelled.labels] if hasattr(labelled, "labels") else [y]
    form = device, job.channels_last
    loader = Batches(split.train, labels, job.recipe.batch_size, *form, job.seed)
    test = Batches(split.test, [levels.primary[split.test.fine]], TEST_BATCH, *form)
    meta = None
    if split.meta is not None and source.trains_generator:
        meta = Batches(split.meta, [levels.primary[split.meta.fine]], job.recipe.batch_size, *form, job.seed)
    maxl = learner_of(job, levels.psi)
    optimizer, generator_optimizer = job.recipe.optimizers(maxl)
    stepped = [optimizer, generator_optimizer] if source.trains_generator else [optimizer]
    with arithmetic(device, job.precision):
        operations = operations_a_batch(maxl, job.recipe, source, next(iter(loader)), job.micro_batches)
        loader.rewind()
        if job.compile:
            maxl.compile()
        left = None if deadline is None else (deadline - time.time()) / 60
        if left is not None and left <= 0:
            return None
        history = fit(
            maxl,
            loader,
            job.recipe.epochs,
            optimizer=optimizer,
            generator_optimizer=generator_optimizer,
            schedulers=[job.recipe.scheduler(one) for one in stepped],
            source=source,
            schedule=job.recipe.schedule,
            meta_loader=meta,
            test_loader=test,
            micro_batches=job.micro_batches,
            seed=job.seed,
            progress=progress,
            checkpoint=job.checkpoint,
            checkpoint_minutes=job.checkpoint_minutes,
            resume=job.resume,
            time_limit=left,
            settings={name: value for name, value in job.settings().items() if name != "seed"},  # fit records it
        )
    if len(history) < job.recipe.epochs:
        return None
    result = described(job, history, operations * len(loader), len(y), rate)
    if source.trains_generator:
        result["labels"] = described_labels(maxl, split.train, levels, device)
    return result


def described(job: Job, history: History, operations: int, images: int, rate: float) -> dict[str, Any]:
    """A finished run as plain data.

    Args:
        job: What was trained.
        history: What was measured.
        operations: Floating-point operations of an epoch's steps.
        images: Training images.
        rate: Operations a second of the device in matrix products.
    """
    seconds = sum(history["seconds"])
    reached = operations * len(history) / seconds
    accuracies = history["test_accuracy"][-LAST:]
    return {
        "label": job.label,
        "source": job.source,
        "seed": job.seed,
        "accuracy": round(sum(accuracies) / len(accuracies), 5),
        "seconds": round(seconds, 1),
        "images_per_second": round(images * len(history) / seconds, 1),
        "operations_per_second": round(reached),
        "share_of_matrix_rate": round(reached / rate, 4),
        "settings": job.settings(),
        "environment": environment(job.device),
        "epochs": history.epochs,
    }


@torch.no_grad()
def described_labels(maxl: MAXL, images: Images, levels: Task, device: torch.device) -> dict[str, Any]:
    """What the generator makes of the training images, uncropped.

    Returns:
        ``entropy``, of single labels, and ``mean_entropy``, of their mean (nats); ``sub_classes``, those that are the
        most probable label of an image; ``nmi``, their normalised mutual information with the given labels, the mean of
        that within each primary class, so that 0 is chance; and, if there are weights, their mean and standard
        deviation.
    """
    maxl.eval()
    y = levels.primary[images.fine]
    batches = Batches(images, [y], TEST_BATCH, device)
    labels = torch.cat([maxl.generator(x, part) for x, part in batches])
    weights = labels.sum(dim=1)
    labels = labels / weights.unsqueeze(1)
    chosen = labels.argmax(dim=1).cpu()
    found = {
        "entropy": round(float(-torch.xlogy(labels, labels).sum(dim=1).mean()), 4),
        "mean_entropy": round(-float(entropy_loss(labels)), 4),
        "sub_classes": len(chosen.unique()),
    }
    if HAS_SCIKIT_LEARN:
        given = levels.auxiliary[images.fine]
        within = [normalized_mutual_info_score(given[y == one], chosen[y == one]) for one in y.unique()]
        found["nmi"] = round(float(sum(within) / len(within)), 4)
    if maxl.weighted:
        found |= {"weight": round(float(weights.mean()), 4), "weight_sd": round(float(weights.std()), 4)}
    return found
