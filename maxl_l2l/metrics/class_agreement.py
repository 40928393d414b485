"""Agreement of invented classes with given labels, from the number of samples with each pair of them."""

import importlib
from importlib.util import find_spec

import torch
from torch import Tensor

from ..labels import Hierarchy

HAS_SCIPY = find_spec("scipy") is not None


def agreement(table: Tensor, hierarchy: Hierarchy) -> dict[str, float]:
    """Compares auxiliary classes with given labels.

    Args:
        table: How many samples have each auxiliary class and each given label, ``[K, G]``, on the CPU.
        hierarchy: The hierarchy, of K auxiliary classes.

    Returns:
        ``nmi``, the normalised mutual information (by the arithmetic mean of both entropies), which is high even if
        both only reflect the primary class. ``nmi_within``, the same inside each primary class with several given
        labels, averaged over samples. ``purity``, the fraction of samples whose given label is the one of their
        auxiliary class in the best one-to-one matching, if scipy is installed. Empty without samples.

    Example:
        >>> found = agreement(torch.tensor([[5, 0], [0, 5], [10, 0]]), Hierarchy([2, 1]))
        >>> found["nmi_within"], found["purity"]
        (1.0, 0.75)
    """
    counts = table.double()
    if not counts.sum():
        return {}
    found = {"nmi": _normalized_mutual_information(counts)}
    blocks = [block for block in counts.split(list(hierarchy.psi)) if block.sum(dim=0).count_nonzero() > 1]
    if blocks:
        samples = sum(float(block.sum()) for block in blocks)
        shares = [float(block.sum()) / samples for block in blocks]
        found["nmi_within"] = sum(map(float.__mul__, shares, map(_normalized_mutual_information, blocks)))
    if HAS_SCIPY:
        # Imported here, as it takes a good part of a second.
        matching = importlib.import_module("scipy.optimize").linear_sum_assignment(counts.numpy(), maximize=True)
        found["purity"] = float(counts[matching].sum() / counts.sum())
    return found


def _normalized_mutual_information(counts: Tensor) -> float:
    """That of rows and columns; 1 if there is one of each, 0 if there is only one of either."""
    rows, columns, both = (_entropy(part) for part in (counts.sum(dim=1), counts.sum(dim=0), counts.flatten()))
    if rows + columns == 0:
        return 1.0
    return max(0.0, 2 * (rows + columns - both) / (rows + columns))


def _entropy(counts: Tensor) -> float:
    """The entropy of a distribution given by counts, in nats."""
    return float(torch.special.entr(counts / counts.sum()).sum())
