"""CIFAR-100 in memory: read once from PNG files or through torchvision, kept on the device, cropped and flipped there.

An epoch never waits for data: a batch is one gather from images that lie on the device.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR100

from maxl_l2l.checkpoints import replace_file

from .levels import FINE

SIZE, PAD = 32, 4
PER_CLASS = {"train": 500, "test": 100}
TWO_WAYS = (
    "Give a folder with train/<class>/*.png (500 images in each of 100 classes) and test/<class>/*.png (100 in each), "
    "or pass --download to have torchvision get CIFAR-100 into it."
)


Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Images(NamedTuple):
    """Images and their classes.

    Attributes:
        pixels: uint8, ``[N, 32, 32, 3]``.
        fine: Their classes among the 100, int64, ``[N]``.
    """

    pixels: Tensor
    fine: Tensor

    def at(self, index: Tensor) -> Images:
        """Returns some of the images."""
        return Images(self.pixels[index], self.fine[index])


def load(folder: Path, cache: Path, download: bool = False) -> tuple[Images, Images]:
    """Reads CIFAR-100, training and test images.

    Args:
        folder: Holds ``train/<class>/*.png`` and ``test/<class>/*.png``, or what torchvision has downloaded.
        cache: A folder for decoded PNG files; they are decoded once.
        download: Whether torchvision may download.

    Raises:
        ValueError: The data is missing or incomplete, or an image is corrupt; the message names it.
    """
    if any((folder / split).is_dir() for split in PER_CLASS):
        return read_png(folder, cache)
    if not download and not (folder / CIFAR100.base_folder).is_dir():
        found = "an empty folder or other files" if folder.is_dir() else "no such folder"
        raise ValueError(f"`--data` must hold CIFAR-100, found {found} at {folder}. {TWO_WAYS}")
    try:
        train, test = (CIFAR100(folder, train=train, download=download) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"`--data` must hold CIFAR-100, but torchvision says: {error}. {TWO_WAYS}") from error
    return from_torchvision(train), from_torchvision(test)


def from_torchvision(dataset: CIFAR100) -> Images:
    return Images(torch.from_numpy(dataset.data), torch.tensor(dataset.targets))


def read_png(folder: Path, cache: Path) -> tuple[Images, Images]:
    """Reads a folder of PNG files a class, or what was decoded of it before."""
    files = {split: listed(folder / split, count) for split, count in PER_CLASS.items()}
    paths = {split: [path for one in classes for path in one] for split, classes in files.items()}
    stamps = "\n".join(map(stamp, (path for part in paths.values() for path in part)))
    decoded = cache / f"cifar100-{hashlib.sha256(stamps.encode()).hexdigest()[:16]}.npz"
    arrays = kept(decoded)
    if arrays is None:
        print(f"Decoding {sum(map(len, paths.values())):,} images, once; they are kept in {decoded}", flush=True)
        with ThreadPoolExecutor() as pool:
            arrays = {split: np.stack(list(pool.map(read_image, part))) for split, part in paths.items()}
        replace_file(decoded, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    found = []
    for split, classes in files.items():
        fine = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(part) for part in classes]))
        found.append(Images(torch.from_numpy(arrays[split]), fine))
    return found[0], found[1]


def kept(decoded: Path) -> dict[str, Pixels] | None:
    """What was decoded before; None if there is nothing, or the file is incomplete or of another program."""
    try:
        with decoded.open("rb") as file, np.load(file) as arrays:
            return {split: arrays[split] for split in PER_CLASS}
    except FileNotFoundError:
        return None
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError):
        print(f"{decoded} can't be read", flush=True)
        return None


def listed(folder: Path, per_class: int) -> list[list[Path]]:
    """The PNG files of each class in order; raises ValueError if some are missing."""
    files = [sorted((folder / name).glob("*.png")) for name in FINE]
    wrong = [f"{name} {len(paths)}" for name, paths in zip(FINE, files) if len(paths) != per_class]
    if wrong:
        some = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ValueError(
            f"`--data` must have {per_class} images in each of 100 classes under {folder}, found in {some}. {TWO_WAYS}"
        )
    return files


def stamp(path: Path) -> str:
    """A file, its size and when it was last written."""
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


def read_image(path: Path) -> Pixels:
    """Reads one image ``[32, 32, 3]``; raises ValueError with its name if it can't be read as that."""
    try:
        with Image.open(path) as image:
            image.verify()  # its checksums, which reading does not check
        with Image.open(path) as image:
            if image.size == (SIZE, SIZE) and image.mode == "RGB":
                return np.asarray(image)
            found = f"{image.mode} of {image.width} x {image.height}"
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises each of them for corrupt files
        raise ValueError(f"`--data` has an image that can't be read: {path} ({error}). Get it anew.") from error
    raise ValueError(f"`--data` must hold RGB images of {SIZE} x {SIZE}, found {path}, {found}. Get it anew.")


def subset(images: Images, per_class: int, seed: int) -> Images:
    """Draws as many images of each class."""
    return images.at(torch.cat([members[:per_class] for members in shuffled_classes(images, seed)]))


def held_out(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Splits off a fraction of each class, at least one image of it; returns the rest and that fraction.

    Raises:
        ValueError: Nothing would be left of a class.
    """
    rest, kept = [], []
    for members in shuffled_classes(images, seed):
        number = max(1, round(fraction * len(members)))
        if number >= len(members):
            raise ValueError(
                f"`held_out` must leave images of each class to train on, found {fraction} of {len(members)}. "
                "Hold out less, or take a larger --subset."
            )
        kept.append(members[:number])
        rest.append(members[number:])
    return images.at(torch.cat(rest)), images.at(torch.cat(kept))


def shuffled_classes(images: Images, seed: int) -> Iterator[Tensor]:
    """The indices of each class's images, in an order that the seed alone decides."""
    generator = torch.Generator().manual_seed(seed)
    for number in range(len(FINE)):
        members = (images.fine == number).nonzero().flatten()
        yield members[torch.randperm(len(members), generator=generator)]


class Batches:
    """Batches ``(x, *labels)`` of images on a device; x is normalised, ``[N, 3, 32, 32]``.

    Args:
        images: The images.
        labels: Of each image, ``[N]`` each: primary classes and, if there are any, auxiliary ones.
        batch_size: Images in a batch; the last one is smaller if they do not add up.
        device: Where images are kept and batches are made.
        channels_last: Whether x is so in memory.
        seed: Of order, crops and flips; None for test images: in order, whole and unflipped.

    Attributes:
        generator: Where all random numbers come from; its state is all that a pass depends on.
    """

    def __init__(
        self,
        images: Images,
        labels: Sequence[Tensor],
        batch_size: int,
        device: torch.device,
        channels_last: bool = True,
        seed: int | None = None,
    ) -> None:
        padding = 0 if seed is None else PAD
        pad = (0, 0, padding, padding, padding, padding)
        self.pixels = torch.nn.functional.pad(images.pixels.to(device), pad)
        self.labels = [label.to(device) for label in labels]
        self.batch_size, self.channels_last = batch_size, channels_last
        self.seed = seed
        self.generator = None if seed is None else torch.Generator(device)
        self.rewind()

    def rewind(self) -> None:
        """Goes back to the first pass."""
        if self.generator is not None and self.seed is not None:
            self.generator.manual_seed(self.seed)

    def __len__(self) -> int:
        return math.ceil(len(self.pixels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        number, device = len(self.pixels), self.pixels.device
        positions = torch.arange(SIZE, device=device)
        if self.generator is None:
            order = torch.arange(number, device=device)
            rows = columns = positions.expand(number, SIZE)
        else:
            order = torch.randperm(number, generator=self.generator, device=device)
            top, left = self.draw(2 * PAD + 1), self.draw(2 * PAD + 1)
            mirrored = torch.where(self.draw(2).bool(), SIZE - 1 - positions, positions)
            rows, columns = top + positions, left + mirrored
        for parts in zip(*(values.split(self.batch_size) for values in (order, rows, columns))):
            index, row, column = parts
            pixels = self.pixels[index[:, None, None], row[:, :, None], column[:, None, :]]
            x = normalized(pixels)
            yield x if self.channels_last else x.contiguous(), *(label[index] for label in self.labels)

    def draw(self, below: int) -> Tensor:
        """A random number for each image, ``[N, 1]``."""
        return torch.randint(below, (len(self.pixels), 1), generator=self.generator, device=self.pixels.device)


def normalized(pixels: Tensor) -> Tensor:
    """Pixels ``[N, 32, 32, 3]`` as the released code gives them to its networks: mean 0.5, standard deviation 0.2."""
    return pixels.permute(0, 3, 1, 2).float().sub_(127.5).div_(51)
