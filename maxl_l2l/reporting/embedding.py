"""The embedding: shared features in two dimensions by t-SNE, coloured by the classes of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .style import LIGHT, look_of, new_figure

try:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
except ImportError:
    PCA = TSNE = threadpool_limits = None


HAS_SKLEARN = TSNE is not None
FEWEST = 10
"""Samples that an embedding needs at least."""
WIDE = 50
"""Principal components that stand for features with more dimensions, for speed, as t-SNE's authors do it."""


@dataclass(frozen=True)
class Coloring:
    """One way to colour samples by their class.

    Attributes:
        title: The kind of class.
        values: The class of each sample, ``[N]``.
        names: The names of the classes to highlight, by class; samples of others are light gray.
    """

    title: str
    values: Any
    names: dict[int, str]


def obstacle(features: Any) -> str:
    """Returns the reason why features can't be embedded; empty if they can."""
    if not HAS_SKLEARN:
        return "t-SNE needs scikit-learn, which is not installed. Install it with: pip install 'maxl_l2l[report]'"
    if len(features) < FEWEST:
        return f"there are {len(features)} samples, too few to see anything: {FEWEST} at least are needed."
    if not np.isfinite(features).all():
        return "the shared features are not all finite."
    if not (features.std(axis=0) > 0).any():
        return "all samples have the same shared features."
    return ""


def embedded(features: Any, seed: int) -> Any:
    """Returns points ``[N, 2]`` for features ``[N, D]`` without an :func:`obstacle`."""
    # To the scale that t-SNE's starting points and its perplexity are made for.
    features = (features - features.mean(axis=0)) / features.std()
    if features.shape[1] > WIDE and len(features) > WIDE:
        features = PCA(WIDE, random_state=seed, svd_solver="randomized").fit_transform(features)
    start = "pca" if features.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(features) - 1) / 3)
    # In one thread: several wait for one another by spinning, which takes ten times as long where cores are busy.
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(features)


def embedding(points: Any, colorings: Sequence[Coloring], title: str) -> Any:
    """Draws points ``[N, 2]`` once for each way to colour them."""
    side, most = 3.8, max(len(coloring.names) + 1 for coloring in colorings)
    width, height = 4.35 * len(colorings), side + 1.25 + 0.175 * ((most + 1) // 2)
    figure = new_figure(width, height, title)
    # Axes are placed by hand, as the automatic layout leaves no space for legends below square axes.
    figure.set_layout_engine("none")
    for number, coloring in enumerate(colorings):
        left, top = 0.3 + 4.35 * number, height - 0.7
        axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
        _scatter(axes, points, coloring)
    return figure


def _scatter(axes: Any, points: Any, coloring: Coloring) -> None:
    others = ~np.isin(coloring.values, list(coloring.names))
    if others.any():
        axes.scatter(*points[others].T, s=9, color=LIGHT, lw=0, label="others")
    for number, (value, name) in enumerate(coloring.names.items()):
        color, _, marker = look_of(number)
        mine = points[coloring.values == value]
        axes.scatter(*mine.T, s=17, color=color, marker=marker, alpha=0.8, lw=0, label=name)
    axes.set_title(coloring.title)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
    spacing = {"handletextpad": 0.1, "columnspacing": 0.6, "borderaxespad": 0}
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.09), ncols=2, fontsize=8, markerscale=1.5, **spacing)
