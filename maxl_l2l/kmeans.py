"""K-means labels: the classes that clustering finds in the data, by scikit-learn."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .extras import missing
from .labels import Hierarchy
from .sources import FixedLabels, items

try:
    from sklearn.cluster import KMeans
except ImportError as error:
    raise missing("scikit-learn", "KMeansLabels", extra="kmeans") from error


class KMeansLabels(FixedLabels):
    """The clusters of each primary class, found once before training.

    Args:
        seed: Seed of the clustering.
        features: From a batch ``[N, ...]`` of inputs to the points that are clustered, ``[N, D]``, such as a trained
            network's features; if None, the flattened inputs.

    Raises:
        ImportError: scikit-learn is not installed.
    """

    def __init__(self, seed: int = 0, features: Callable[[Tensor], Tensor] | None = None) -> None:
        self.seed = seed
        self.features = features

    def assign(self, dataset: Dataset[Any], y: Tensor, hierarchy: Hierarchy) -> Tensor:
        x = torch.stack([torch.as_tensor(item[0]) for item in items(dataset)])
        with torch.no_grad():
            points = (x if self.features is None else self.features(x)).flatten(1).cpu().numpy()
        labels = torch.zeros_like(y)
        for primary, size in enumerate(hierarchy.psi):
            members = (y == primary).nonzero().flatten()
            clusters = min(size, len(members))
            if clusters:
                found = KMeans(clusters, n_init=10, random_state=self.seed).fit_predict(points[members.numpy()])
                labels[members] = hierarchy.block(primary).start + torch.as_tensor(found).long()
        return labels
