"""Sample figures: the figures of a learner's samples, with their captions."""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from .embedding import Coloring, embedded, embedding, obstacle
from .evidence import Evidence, human_table
from .gallery import gallery
from .maps import MOST, chosen_classes, matrix, rows_of
from .samples import Samples
from .style import Drawn

FEW = 12
"""Categories that can be told apart in one panel of the embedding."""
LONGEST = 4
"""How many times longer one side of an image of the gallery is than the other, at most."""
WIDE = 32
"""Rows and columns of the matrix, at most, for all classes to be shown."""


def pictures(evidence: Evidence) -> Drawn | str:
    """Draws the gallery."""
    samples = evidence.samples
    if isinstance(samples, str):
        return samples
    if samples.is_dense:
        return "labels are those of pixels, and a gallery shows whole images."
    if samples.images is None:
        return "x is no batch of images [N, 1 or 3, H, W] of one size. to_images= makes some of it."
    height, width = samples.images.shape[1:3]
    if max(height, width) > LONGEST * min(height, width):
        return f"images of {height} by {width} pixels are too long and thin to show. to_images= makes others of x."
    chosen = _chosen(samples)
    rows = rows_of(samples.hierarchy, chosen, samples.use, 10)
    sizes = samples.sizes

    def name(primary: int) -> str:
        reason = f"{chosen[primary]}; " if chosen[primary] else ""
        return f"{evidence.primary_label(primary)}\n({reason}{sizes[primary]} samples)"

    title = "The images that belong most strongly to each invented sub-class, a row each"
    figure = gallery(samples.images, samples.labels, samples.hierarchy, rows, name, title)
    cut = " Of each class the ten most used sub-classes." if any(size > 10 for size in samples.hierarchy.psi) else ""
    caption = (
        f"From {len(samples.y):,} samples. A row has the images whose most probable label is that sub-class, the most "
        f"probable first. What has a row in common is what the label generator found useful to tell apart. "
        f"{evidence.selection(chosen)}{cut}"
    )
    names = ", ".join(evidence.primary_name(primary) for primary in rows)
    return figure, f"Rows of images, one for each invented sub-class of {names}.", caption


def features(evidence: Evidence) -> Drawn | str:
    """Draws the embedding of the shared features."""
    samples = evidence.samples
    if isinstance(samples, str):
        return samples
    if samples.features is None:
        reason = "labels are those of pixels" if samples.is_dense else "batches have features of different sizes"
        return f"{reason}, and t-SNE needs a row of features for each sample."
    if reason := obstacle(samples.features):
        return reason
    colorings = list(_colorings(evidence, samples))
    title = "Shared features of the samples: do the invented classes split what belongs to one class?"
    figure = embedding(embedded(samples.features, evidence.seed), colorings, title)
    caption = (
        f"t-SNE of what enters the model's head, {len(samples.y):,} samples, {samples.features.shape[1]} features. "
        "Near points are alike; distances between groups, and axes, have no meaning. Gray: not highlighted."
    )
    return figure, f"t-SNE, coloured by {', '.join(one.title.lower() for one in colorings)}.", caption


def _colorings(evidence: Evidence, samples: Samples) -> Iterator[Coloring]:
    hierarchy, present = samples.hierarchy, np.unique(samples.y).tolist()
    primary = present if len(present) <= FEW else sorted(_chosen(samples))
    yield Coloring("Primary class", samples.y, {one: evidence.primary_label(one) for one in primary})
    blocks = _used_rows(samples, FEW, FEW)
    names = {
        row: f"{evidence.primary_label(one)} / {row - hierarchy.block(one).start}"
        for one, block in blocks.items()
        for row in block
    }
    part = ", of some classes" if len(blocks) < len(present) else ""
    yield Coloring(f"Invented class{part}", samples.assigned, names)
    if samples.human is not None and (samples.human >= 0).any():
        among = samples.human[np.isin(samples.y, list(blocks)) & (samples.human >= 0)]
        found, counts = np.unique(among, return_counts=True)
        most = sorted(found[np.argsort(-counts, kind="stable")][:FEW].tolist())
        part = part and ", of the same classes"
        yield Coloring(f"Human class{part}", samples.human, {one: evidence.human_label(one) for one in most})


def _used_rows(samples: Samples, most: int, total: int) -> dict[int, list[int]]:
    """Sub-classes in use, at most ``most`` of a class, of the largest classes that have at most ``total`` together."""
    use, sizes = samples.use, samples.sizes
    rows, found = rows_of(samples.hierarchy, _chosen(samples, FEW), use, most), dict[int, list[int]]()
    for one in sorted(rows, key=lambda one: -sizes[one]):
        used = [row for row in rows[one] if use[row]]
        if not found or sum(map(len, found.values())) + len(used) <= total:
            found[one] = used
    return dict(sorted(found.items()))


def human_classes(evidence: Evidence) -> Drawn | str:
    """Draws the matrix of invented and human classes."""
    samples = evidence.samples
    if isinstance(samples, str):
        return samples
    table = human_table(samples)
    if table is None:
        return "the loader has no human labels: integers as a third element of its batches, of the shape of y."
    counts, human = table
    is_whole = max(counts.shape) <= WIDE
    present = np.unique(samples.y).tolist()
    everything = rows_of(samples.hierarchy, present, counts.sum(axis=1))
    rows = everything if is_whole else _used_rows(samples, MOST, WIDE)
    in_rows = counts[[*chain(*rows.values())]].sum(axis=0)
    columns = np.sort(np.argsort(-in_rows, kind="stable")[: min(WIDE, np.count_nonzero(in_rows))])
    names = [evidence.human_label(one) for one in human[columns].tolist()]
    title = "Which human classes each invented class holds"
    figure = matrix(counts, columns, samples.hierarchy, rows, names, evidence.primary_label, title)
    caption = [
        "A row is an invented class, a block a primary class; cells are the share of the row's samples that have a "
        "human label. A row with one dark cell is a human class found again; rows that are alike cut across them."
    ]
    if not is_whole:
        caption.append(f"{evidence.selection(dict.fromkeys(rows, ''))} Sub-classes in use, at most {MOST} a class.")
    if len(columns) < np.count_nonzero(in_rows):
        caption.append(f"Of the human classes the {WIDE} most frequent ones.")
    alt = f"Matrix of {sum(map(len, rows.values()))} invented and {len(names)} human classes."
    return figure, alt, " ".join(caption)


def _chosen(samples: Samples, most: int = 6) -> dict[int, str]:
    """The primary classes to show, with the reasons."""
    sizes = samples.sizes
    sums = np.bincount(samples.y, weights=samples.labels.max(axis=1), minlength=len(samples.hierarchy))
    return chosen_classes(sizes.tolist(), (sums / np.maximum(sizes, 1)).tolist(), most)
