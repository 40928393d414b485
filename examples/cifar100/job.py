"""Jobs: what is to be trained, where its files are, and what its result depends on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .recipes import Recipe

GENERATED = ("entropy", "maxl", "weighted")
"""The sources whose labels come from a generator that is trained."""
OF_ALL = ("epochs", "batch_size", "schedule", "held_out", "decay", "lr", "momentum", "weight_decay", "gamma")
"""Settings of a recipe that matter to every source; the others are those of the generator."""


@dataclass(frozen=True)
class Job:
    """What is to be trained, and where.

    Attributes:
        source: A key of ``run.SOURCES``.
        seed: Of everything that is random.
        label: Its name in tables; the source's name unless some of its settings are special.
        recipe: How.
        data: The folder with CIFAR-100.
        cache: A folder for decoded images.
        out: A folder for results and checkpoints.
        primary: Classes of the primary level.
        auxiliary: Classes of the finer level.
        network: A key of ``networks.HEADS``.
        width: Factor on its channels.
        subset: Training images per class; None for all.
        device: Where to train.
        precision: One of ``arithmetic.PRECISIONS``.
        channels_last: Whether networks keep channels last in memory.
        compile: Whether passes are compiled.
        micro_batches: Parts of a batch.
        checkpoint_minutes: How often to save.
        resume: Whether to resume from a checkpoint.
    """

    source: str
    seed: int
    label: str
    recipe: Recipe
    data: Path
    cache: Path
    out: Path
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
        """Its name in messages and file names."""
        return f"{self.label}-{self.seed}"

    @property
    def result(self) -> Path:
        """The file of its result."""
        return self.out / f"{self.name}.json"

    @property
    def checkpoint(self) -> Path:
        """The file of its checkpoint."""
        return self.out / "checkpoints" / f"{self.name}.pt"

    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as plain data; nothing of the generator where there is none to train."""
        has_generator = self.source in GENERATED
        names = ("primary", "auxiliary", "network", "width", "subset", "precision", "channels_last", "compile")
        return {
            "label_source": self.source,
            "seed": self.seed,
            **{name: getattr(self, name) for name in names},
            "micro_batches": self.micro_batches,
            "recipe": {name: value for name, value in asdict(self.recipe).items() if has_generator or name in OF_ALL},
        }


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """What :meth:`Job.settings` gives, with the recipe's settings among the others."""
    both = {**settings, **settings["recipe"]}
    return {name: value for name, value in both.items() if name != "recipe"}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The names whose values differ, with both; None for one that is missing."""
    names = {**found, **wanted}
    return {name: (found.get(name), wanted.get(name)) for name in names if found.get(name) != wanted.get(name)}
