"""Samples: the labels and shared features that a learner gives some of its data, and pictures to show."""

import contextlib
import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ..labels import Hierarchy
from ..learners import MAXL
from ..networks import MultiTaskNetwork
from ..passes import RandomNumbers, buffer_copies, cuda_devices, write_buffers
from ..training import device_of, evaluation_mode, length, moved

SIDE = 96
"""Pixels of a picture's longer side, at most."""
OUTERMOST = (0.5, 99.5)
"""Percentiles of the images' values that are shown as black and white: one extreme value would darken all others."""
PASSED_ON = ("collate_fn", "num_workers", "timeout", "worker_init_fn", "multiprocessing_context")
"""Options that say how a DataLoader reads its dataset."""
PIXELS = 100
"""Pixels looked at for each sample of dense labels, at most."""


@dataclass(frozen=True)
class Samples:
    """The labels and features that a learner gives N samples, or N pixels if labels are dense.

    Attributes:
        hierarchy: The learner's.
        y: Primary classes, ``[N]``.
        labels: Generated labels, probabilities ``[N, K]``; a weighted generator's without their weights.
        human: Human classes, ``[N]``, negative where unknown; None if all are.
        features: What enters the model's head, ``[N, D]``, a mean over positions where it has some; None for pixels.
        images: Pictures ``[N, H, W]`` or ``[N, H, W, 3]``, in 0 .. 1; None if x is no image.
        is_dense: Whether the labels are those of pixels.
        are_first: Whether these are the first samples of the data, rather than drawn from all of it.
        dropped: How many more were left out, as their labels are not finite.
    """

    hierarchy: Hierarchy
    y: Any
    labels: Any
    human: Any
    features: Any
    images: Any
    is_dense: bool
    are_first: bool
    dropped: int = 0

    @property
    def assigned(self) -> Any:
        """Each sample's most probable sub-class, ``[N]``."""
        return self.labels.argmax(axis=1)

    @property
    def use(self) -> Any:
        """How many samples have each sub-class as the most probable one, ``[K]``."""
        return np.bincount(self.assigned, minlength=self.hierarchy.num_auxiliary)

    @property
    def sizes(self) -> Any:
        """How many samples each primary class has, ``[C]``."""
        return np.bincount(self.y, minlength=len(self.hierarchy))

    @property
    def kind(self) -> str:
        """The noun for them in sentences."""
        return "pixels" if self.is_dense else "samples"


def gather(
    maxl: MAXL, loader: Iterable[Any], max_samples: int, seed: int, to_images: Callable[[Any], Any] | None = None
) -> Samples | str:
    """Passes samples through a learner in evaluation mode, and leaves it and all random states as they were.

    From a loader of an indexed dataset, or a list of batches, they are drawn from all of the data; from anything else
    they are the first ones.

    Args:
        maxl: The learner.
        loader: Batches ``(x, y)`` or ``(x, y, human label)``; a third element of another kind is ignored.
        max_samples: The most samples to look at.
        seed: Of the draw.
        to_images: As that of :func:`report`.

    Returns:
        The samples, or the reason why there are none.

    Raises:
        TypeError: Batches are of another kind.
        ValueError: There is no batch, or something in it does not fit.
    """
    draw = np.random.default_rng(seed)
    parts: list[dict[str, Any]] = []
    wanted = max_samples
    with _undisturbed(maxl, loader, seed), torch.no_grad(), _entering_the_head(maxl.network) as features:
        batches, are_first = _batches(loader, max_samples, draw)
        for batch in batches:
            batch = moved(batch, device_of(maxl))
            if (size := len(batch[1])) > wanted:
                batch = _rows(batch, _drawn(size, wanted, draw), size)
            x, y, *rest = batch
            maxl.check_batch(x, y)
            parts.append(_outputs(maxl, x, y, rest, features, to_images, draw))
            wanted -= len(y)
            if not wanted:
                break
    if not parts:
        raise ValueError("`loader` must yield at least one batch, found none. Check the dataset behind it.")
    joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    kept = np.isfinite(joined["labels"]).all(axis=1)
    if not kept.any():
        kind = "pixels" if y.dim() > 1 else "samples"
        return f"the generator's labels of all {len(kept):,} {kind} that were looked at are not finite."
    joined = {name: None if part is None else part[kept] for name, part in joined.items()}
    if (joined["human"] < 0).all():
        joined["human"] = None
    if joined["images"] is not None:
        joined["images"] = _pictures(joined["images"], scale=to_images is None)
    dropped = int((~kept).sum())
    return Samples(maxl.hierarchy, **joined, is_dense=y.dim() > 1, are_first=are_first, dropped=dropped)


@contextlib.contextmanager
def _undisturbed(maxl: MAXL, loader: Any, seed: int) -> Iterator[None]:
    """Switches to evaluation mode and seeds random numbers; at the end everything is as it was before."""
    buffers, numbers = buffer_copies(maxl), RandomNumbers(cuda_devices(maxl), {"loader": loader})
    state = numbers.state()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        with evaluation_mode(maxl):
            yield
    finally:
        with torch.no_grad():
            write_buffers([(maxl, buffers)])
        numbers.restore(state)


@contextlib.contextmanager
def _entering_the_head(network: MultiTaskNetwork) -> Iterator[list[Tensor]]:
    """Yields a list that holds the input of the head in the last pass, or the output of a backbone without a head."""
    features: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        features[:] = [args[0] if args else next(iter(kwargs.values()))]

    head = network.primary_head or network.module.get_submodule(network.head)
    hook = head.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield features
    finally:
        hook.remove()


def _batches(loader: Iterable[Any], max_samples: int, draw: np.random.Generator) -> tuple[Iterable[Any], bool]:
    """Batches drawn from all of the data, and False; the loader's own and True if a draw would have to read it all."""
    if isinstance(loader, (list, tuple)):
        return _parts(loader, max_samples, draw), False
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader, True
    if (size := length(loader)) is None or loader.batch_sampler is None:
        return loader, True
    batches: Any = loader.batch_sampler
    with contextlib.suppress(Exception):  # a sampler may have a state of its own, or hold what can't be copied
        batches = copy.deepcopy(batches, {id(loader.dataset): loader.dataset})
    indices = [index for batch in islice(batches, size) for index in batch]
    chosen = [indices[one] for one in _drawn(len(indices), max_samples, draw)]
    step = loader.batch_size or 100
    parts = [chosen[start : start + step] for start in range(0, len(chosen), step)]
    same = {name: getattr(loader, name) for name in PASSED_ON}
    return DataLoader(loader.dataset, batch_sampler=parts, **same), False


def _parts(batches: Sequence[Any], max_samples: int, draw: np.random.Generator) -> Iterator[Any]:
    """Batches with only those samples that a draw of ``max_samples`` from all of them has chosen."""
    labels = [batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None for batch in batches]
    sizes = [len(y) if isinstance(y, Tensor) and y.dim() else 1 for y in labels]
    starts = np.cumsum([0, *sizes])
    chosen = _drawn(int(starts[-1]), max_samples, draw)
    for batch, start, size in zip(batches, starts, sizes):
        own = chosen[(chosen >= start) & (chosen < start + size)] - start
        if len(own):
            yield batch if len(own) == size else _rows(batch, own, size)


def _drawn(size: int, most: int, draw: np.random.Generator) -> Any:
    """Draws ``most`` of the integers below ``size``, or all if they are fewer, and sorts them."""
    return np.sort(draw.choice(size, min(most, size), replace=False))


def _rows(part: Any, chosen: Any, size: int) -> Any:
    """The chosen samples of a batch of ``size`` samples, or of one of its parts."""
    if isinstance(part, Tensor) and part.dim() and len(part) == size:
        return part[torch.from_numpy(chosen).to(part.device)]
    if isinstance(part, Mapping):
        return {key: _rows(value, chosen, size) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        if len(part) == size and not any(isinstance(one, Tensor) and one.dim() and len(one) == size for one in part):
            return [part[one] for one in chosen]  # an element for each sample: texts, images of different sizes
        values = [_rows(value, chosen, size) for value in part]
        return values if isinstance(part, list) else tuple(values)
    return part


def _outputs(
    maxl: MAXL, x: Any, y: Tensor, rest: list[Any], features: list[Tensor], to_images: Any, draw: np.random.Generator
) -> dict[str, Any]:
    """What one batch adds to the fields of :class:`Samples`, on the CPU."""
    labels = maxl.generator(x, y)
    maxl.check_targets(labels, y)
    labels = (labels / labels.sum(dim=1, keepdim=True)).float().cpu()
    y, human = y.cpu(), _human(rest, y).cpu()
    if y.dim() > 1:
        pixels = labels.movedim(1, -1).flatten(0, -2)
        kept = torch.from_numpy(draw.choice(len(pixels), min(len(pixels), PIXELS * len(y)), replace=False))
        y, human = y.flatten()[kept], human.flatten()[kept]
        return {"labels": pixels[kept], "y": y, "human": human, "features": None, "images": None}
    maxl(x)
    entered = _flat(features[0], maxl.network).float().cpu()
    images = _checked_images(x, len(y), to_images)
    return {"labels": labels, "y": y, "human": human, "features": entered, "images": images}


def _flat(features: Tensor, network: MultiTaskNetwork) -> Tensor:
    """Features as ``[N, D]``: their mean over positions if the head is applied to each position."""
    if network.is_dense:
        return features.flatten(2).mean(dim=2) if features.dim() > 2 else features
    is_layer = network.primary_head is None and isinstance(network.module.get_submodule(network.head), nn.Linear)
    return features.flatten(1, -2).mean(dim=1) if is_layer and features.dim() > 2 else features.flatten(1)


def _human(rest: list[Any], y: Tensor) -> Tensor:
    """The human labels of a batch; -1 if its third element is missing or is not of that kind."""
    labels: Any = rest[0] if rest else None
    fits = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.shape == y.shape
    return labels.long() if fits else torch.full_like(y, -1)


def _checked_images(x: Any, size: int, to_images: Callable[[Any], Any] | None) -> Tensor | None:
    """The images of a batch, ``[N, 1 or 3, H, W]``, made smaller if they are large; None if x is no image."""
    if to_images is None and not (isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] in (1, 3)):
        return None
    images = torch.as_tensor(x if to_images is None else to_images(x)).float().cpu()
    images = images.unsqueeze(1) if images.dim() == 3 else images
    if images.dim() != 4 or len(images) != size or images.shape[1] not in (1, 3):
        raise ValueError(
            f"`to_images` must give images [N, H, W] or [N, 1 or 3, H, W], {size} of them, found shape "
            f"{list(images.shape)}. Leave it out if x is of that shape itself."
        )
    longer = max(images.shape[2:])
    shape = [max(1, round(SIDE * side / longer)) for side in images.shape[2:]]
    return F.interpolate(images, size=shape, mode="area") if longer > SIDE else images


def _joined(parts: list[Any]) -> Any:
    """One array of all parts; None if one of them is None, or if they differ in shape."""
    if any(part is None for part in parts) or len({part.shape[1:] for part in parts}) > 1:
        return None
    return torch.cat(parts).numpy()


def _pictures(images: Any, scale: bool) -> Any:
    """Pictures in 0 .. 1; values that are not finite become 0 or 1."""
    low, high = 0.0, 1.0
    if scale and (finite := images[np.isfinite(images)]).size:
        low, high = np.percentile(finite, OUTERMOST)
        low, high = (low, high) if low < high else (finite.min(), finite.max())
    images = np.nan_to_num((np.clip(images, low, high) - low) / max(high - low, 1e-12))
    return images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
