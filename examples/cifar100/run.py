"""One run: a network, a source of auxiliary labels and a seed, trained and described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
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

from .arithmetic import arithmetic, matrix_rate, operations_a_batch
from .data import Batches, Images, held_out, load, subset
from .environment import environment
from .levels import Task, task
from .networks import HEADS, network
from .recipes import Recipe

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

OF_ALL = ("epochs", "batch_size", "schedule", "held_out", "decay", "lr", "momentum", "weight_decay", "gamma")
"""Settings of a recipe that matter to every source; the others are those of the generator."""
LAST = 5
"""A run's accuracy is the mean over as many last epochs."""
TEST_BATCH = 500


@dataclass(frozen=True)
class Job:
    """What is to be trained, and where.

    Attributes:
        source: A key of :data:`SOURCES`.
        seed: Of everything that is random.
        label: What tables call it; the source's name unless some of its settings are special.
        recipe: How.
        data: The folder with CIFAR-100.
        cache: A folder for decoded images.
        out: A folder for results and checkpoints.
        download: Whether torchvision may download the data.
        primary: Classes of the primary level.
        auxiliary: Classes of the finer level.
        network: A key of ``networks.HEADS``.
        width: Factor on its channels.
        subset: Training images a class; None for all.
        device: Where to train.
        precision: One of ``arithmetic.PRECISIONS``.
        channels_last: Whether networks keep channels last in memory.
        compile: Whether passes are compiled.
        micro_batches: Parts of a batch.
        checkpoint_minutes: How often to save.
        resume: Whether to go on from a checkpoint.
    """

    source: str
    seed: int
    label: str
    recipe: Recipe
    data: Path
    cache: Path
    out: Path
    download: bool = False
    primary: int = 20
    auxiliary: int = 100
    network: str = "vgg16"
    width: float = 1.0
    subset: int | None = None
    device: str = "cpu"
    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    micro_batches: int = 1
    checkpoint_minutes: float = 10.0
    resume: bool = False

    @property
    def name(self) -> str:
        return f"{self.label}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.out / f"{self.name}.json"

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoints" / f"{self.name}.pt"

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as plain data; nothing of the generator where there is none to train."""
        has_generator = self.source in ("entropy", "maxl", "weighted")
        names = ("primary", "auxiliary", "network", "width", "subset", "precision", "channels_last", "compile")
        return {
            "label_source": self.source,
            "seed": self.seed,
            **{name: getattr(self, name) for name in names},
            "micro_batches": self.micro_batches,
            "recipe": {name: value for name, value in asdict(self.recipe).items() if has_generator or name in OF_ALL},
        }


class Split(NamedTuple):
    """The images of a run: to train on, for the meta loss alone (or None), and to test on."""

    train: Images
    meta: Images | None
    test: Images


def images_of(job: Job) -> Split:
    """Reads a run's images; a subset of them, and which are held out, depends on the seed."""
    train, test = load(job.data, job.cache, job.download)
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


def run(job: Job, time_limit: float | None = None, progress: bool = False) -> dict[str, Any] | None:
    """Trains; returns the result as plain data, None if the time limit stopped it.

    Args:
        job: What to train.
        time_limit: Minutes.
        progress: Whether to show a progress bar.
    """
    split, levels, device = images_of(job), task(job.primary, job.auxiliary), torch.device(job.device)
    y = levels.primary[split.train.fine]
    source = SOURCES[job.source](job.seed, levels.auxiliary[split.train.fine])
    labelled = source.label(TensorDataset(split.train.pixels, y), levels.psi)
    labels = [y, labelled.labels] if hasattr(labelled, "labels") else [y]
    loader = Batches(split.train, labels, job.recipe.batch_size, device, job.seed)
    test = Batches(split.test, [levels.primary[split.test.fine]], TEST_BATCH, device)
    meta = None
    if split.meta is not None and source.trains_generator:
        meta = Batches(split.meta, [levels.primary[split.meta.fine]], job.recipe.batch_size, device, job.seed)
    maxl = learner_of(job, levels.psi)
    optimizer, generator_optimizer = job.recipe.optimizers(maxl)
    stepped = [optimizer, generator_optimizer] if source.trains_generator else [optimizer]
    with arithmetic(device, job.precision):
        operations = operations_a_batch(maxl, job.recipe, source, next(iter(loader)))
        loader.rewind()
        if job.compile:
            maxl.compile()
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
            time_limit=time_limit,
            settings={name: value for name, value in job.settings().items() if name != "seed"},  # fit records it
        )
    if len(history) < job.recipe.epochs:
        return None
    result = described(job, history, operations * len(loader), len(y))
    if source.trains_generator:
        result["labels"] = described_labels(maxl, split.train, levels, device)
    return result


def described(job: Job, history: History, operations: int, images: int) -> dict[str, Any]:
    """A finished run as plain data.

    Args:
        job: What was trained.
        history: What was measured.
        operations: Floating-point operations of an epoch's steps.
        images: Training images.
    """
    seconds = sum(history["seconds"])
    rate = operations * len(history) / seconds
    accuracies = history["test_accuracy"][-LAST:]
    return {
        "label": job.label,
        "source": job.source,
        "seed": job.seed,
        "accuracy": round(sum(accuracies) / len(accuracies), 5),
        "seconds": round(seconds, 1),
        "images_per_second": round(images * len(history) / seconds, 1),
        "operations_per_second": round(rate),
        "share_of_matrix_rate": round(rate / matrix_rate(job.device, job.precision), 4),
        "settings": job.settings(),
        "environment": environment(job.device),
        "epochs": history.epochs,
    }


@torch.no_grad()
def described_labels(maxl: MAXL, images: Images, levels: Task, device: torch.device) -> dict[str, Any]:
    """What the generator makes of the training images, uncropped.

    Returns:
        ``entropy``, of single labels, and ``mean_entropy``, of their mean (nats); ``sub_classes``, those that are the
        most probable label of an image; ``nmi``, their normalised mutual information with the given labels; and, if
        there are weights, their mean and standard deviation.
    """
    maxl.eval()
    y = levels.primary[images.fine]
    labels = torch.cat([maxl.generator(x, part) for x, part in Batches(images, [y], TEST_BATCH, device)])
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
        found["nmi"] = round(float(normalized_mutual_info_score(given.numpy(), chosen.numpy())), 4)
    if maxl.weighted:
        found |= {"weight": round(float(weights.mean()), 4), "weight_sd": round(float(weights.std()), 4)}
    return found
