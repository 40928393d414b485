"""CIFAR-100's hierarchy as the paper uses it: levels of 3, 10, 20 and 100 classes, and the tasks made of two of them.

100 to 20 are CIFAR-100's own super-classes (Krizhevsky 2009); 20 to 10 and 10 to 3 are those of Liu et al. (2019).
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

SUPER_CLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
TEN_OF_TWENTY = (1, 2, 5, 6, 5, 6, 6, 3, 0, 7, 8, 0, 1, 3, 4, 0, 2, 5, 9, 9)
THREE_OF_TEN = (0, 0, 0, 0, 0, 1, 2, 2, 2, 2)

FINE = sorted(name for names in SUPER_CLASSES.values() for name in names.split())
"""The 100 classes in alphabetical order, which is that of CIFAR-100's own labels."""

LEVELS = (3, 10, 20, 100)
PAIRS = tuple(combinations(LEVELS, 2))
"""The six pairs of a primary level and a finer, auxiliary one."""


class Task(NamedTuple):
    """A primary level and what is known of a finer one.

    Attributes:
        psi: Auxiliary classes per primary class.
        primary: Primary class of each of the 100 classes, int64, ``[100]``.
        auxiliary: Auxiliary class of each, numbered block by block as in ``Hierarchy``, int64, ``[100]``.
    """

    psi: list[int]
    primary: Tensor
    auxiliary: Tensor


def level(num_classes: int) -> Tensor:
    """Returns the class of each of the 100 classes at a level, int64, ``[100]``."""
    owner = {name: number for number, names in enumerate(SUPER_CLASSES.values()) for name in names.split()}
    twenty = [owner[name] for name in FINE]
    ten = [TEN_OF_TWENTY[number] for number in twenty]
    three = [THREE_OF_TEN[number] for number in ten]
    return torch.tensor(dict(zip(LEVELS, (three, ten, twenty, range(100))))[num_classes])


def task(primary: int, auxiliary: int) -> Task:
    """Returns the task of a pair of levels.

    Args:
        primary: Classes of the primary level.
        auxiliary: Classes of the finer level.

    Raises:
        ValueError: They are not a pair of levels, the finer one second.
    """
    if (primary, auxiliary) not in PAIRS:
        raise ValueError(
            f"`primary` and `auxiliary` must be two of the levels {', '.join(map(str, LEVELS))}, the finer one second, "
            f"found {primary} and {auxiliary}. The paper's main task is 20 and 100."
        )
    coarse, fine = level(primary), level(auxiliary)
    owners = torch.stack([coarse[(fine == number).nonzero()[0, 0]] for number in range(auxiliary)])
    block_by_block = owners.argsort(stable=True).argsort()
    return Task(owners.bincount(minlength=primary).tolist(), coarse, block_by_block[fine])
