"""MAXL itself: the paper's instance of the algorithm, for classifiers."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..checks import check_flag, check_number, check_probabilities
from ..labels import Hierarchy, focal_loss_per_sample, mean_label, negative_entropy
from ..networks import LabelGenerator, default_generator, resolve_head
from .auxiliary_learning import AuxiliaryLabelGenerator
from .maml_interface import check_options


class MAXL(AuxiliaryLabelGenerator):
    """Meta AuXiliary Learning (Liu, Davison, Johns, NeurIPS 2019) around any classifier.

    A label generator splits each primary class into psi[i] sub-classes and labels every sample softly; the classifier
    is trained on both tasks; the generator learns labels for which the classifier's next update lowers the primary
    loss. Losses are focal, labels a masked softmax, and an entropy term keeps them from collapsing.

    Args:
        model: A classifier with ``len(psi)`` outputs; held, not copied. Its class, ``state_dict`` keys and outputs stay
            as they are.
        psi: Sub-classes per primary class, C integers >= 1, or a :class:`Hierarchy`.
        lr: As in :class:`AuxiliaryLabelGenerator`; so are first_order, allow_unused and allow_nograd.
        generator: A module from ``(x, y)`` to probabilities ``[N, K, ...]``, K = sum(psi), that shares no parameter
            with the model. If None, a freshly initialised copy of the model's architecture with K outputs, the paper's
            choice.
        head: Name of the layer that produces the logits, found by its number of outputs if None; or of a
            ``nn.Sequential`` that ends with it: then each task has such a sequence, as in the paper's networks.
        num_features: Width of a headless backbone's output ``[N, num_features]``; a primary head is added then.
        gamma: Focusing exponent of the focal loss, >= 0; 0 is cross-entropy.
        entropy_weight: Lambda, the weight of the entropy term in the meta loss, >= 0.
        weighted: Whether the generator also gives each sample a weight on its auxiliary loss, learned by the same
            hypergradient: labels then sum to that weight instead of 1 (see :class:`LabelGenerator`).

    Raises:
        TypeError: psi holds other things than integers, or model is not a module.
        ValueError: psi does not fit the model, the head is not found or ambiguous, or the generator shares parameters
            with the model.

    Example:
        >>> maxl = MAXL(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), psi=[5, 5])
        >>> primary, auxiliary = maxl.network(torch.randn(4, 8))
        >>> primary.shape, auxiliary.shape
        (torch.Size([4, 2]), torch.Size([4, 10]))
    """

    def __init__(
        self,
        model: nn.Module,
        psi: Hierarchy | Iterable[int],
        lr: float = 0.01,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
        *,
        generator: nn.Module | None = None,
        head: str | None = None,
        num_features: int | None = None,
        gamma: float = 2.0,
        entropy_weight: float = 0.2,
        weighted: bool = False,
    ) -> None:
        hierarchy = Hierarchy.of(psi)
        check_options(lr, first_order, allow_unused, allow_nograd)
        check_number(gamma, "gamma", "Use 2, as the paper does, or 0 for cross-entropy.")
        check_number(entropy_weight, "entropy_weight", "The paper's is 0.2.")
        check_flag(weighted, "weighted", "It says whether the generator learns a weight for each sample.")
        head = resolve_head(model, head, hierarchy.num_primary, num_features)
        if generator is None:
            generator = default_generator(model, hierarchy, head, num_features, weighted)
        elif isinstance(generator, LabelGenerator):
            _check_label_generator(generator, hierarchy, weighted)
        loss = partial(focal_loss_per_sample, gamma=gamma)
        super().__init__(
            model,
            generator,
            hierarchy.num_auxiliary,
            lr,
            first_order,
            allow_unused,
            allow_nograd,
            head=head,
            num_features=num_features,
            num_primary=hierarchy.num_primary,
            primary_loss=loss,
            auxiliary_loss=loss,
            regularizer=_EntropyTerm(entropy_weight, weighted),
        )
        self.hierarchy = hierarchy
        self.gamma, self.entropy_weight, self.weighted = gamma, entropy_weight, weighted

    def check_targets(self, targets: Any, y: Tensor) -> None:
        """Raises ValueError unless the generator's targets are probabilities ``[N, K, ...]``."""
        super().check_targets(targets, y)
        if not targets.is_floating_point():
            raise ValueError(
                f"`generator` must give floating-point probabilities, found {targets.dtype}. End it with a softmax."
            )
        self._check_shape(targets, y, "generator")
        # A masked softmax sums to 1, or to its weight, by construction; if it is NaN, the step says so.
        if not isinstance(self.generator, LabelGenerator):
            check_probabilities(targets, "generator", normalized=not self.weighted)

    def learner_options(self) -> dict[str, Any]:
        """The hierarchy and the options of the losses."""
        options = {name: getattr(self, name) for name in ("gamma", "entropy_weight", "weighted")}
        return {"psi": list(self.hierarchy.psi), **options}

    def _check_given(self, targets: Any, y: Tensor) -> None:
        super()._check_given(targets, y)
        if targets.is_floating_point():
            self._check_shape(targets, y, "targets")
            check_probabilities(targets, "targets")
        else:
            self.hierarchy.check_auxiliary(targets, y, "targets")

    def _check_shape(self, targets: Tensor, y: Tensor, argument: str) -> None:
        expected = [y.shape[0], self.hierarchy.num_auxiliary, *y.shape[1:]]
        if list(targets.shape) != expected:
            raise ValueError(
                f"`{argument}` must give probabilities of shape {expected}, found {list(targets.shape)}. "
                f"There are sum(psi) = {self.hierarchy.num_auxiliary} classes in dimension 1."
            )

    def check_batch(self, x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> None:
        """Raises unless y holds primary classes, one per sample of x (and per pixel, if the model is dense)."""
        super().check_batch(x, y, names)
        self.hierarchy.check_labels(y, names[1])
        if y.dim() != 1 and not self.network.is_dense:
            raise ValueError(
                f"`{names[1]}` must have shape [N], one class per sample, found {list(y.shape)}. "
                "Labels per pixel need a model whose head is a convolution."
            )


@dataclass(frozen=True)
class _EntropyTerm:
    """The weighted negative entropy of the mean label; labels that sum to a weight are normalised first."""

    weight: float
    normalize: bool

    def __call__(self, targets: Tensor) -> Tensor:
        return self.of_mean(self.mean(targets))

    def mean(self, targets: Tensor) -> Tensor:
        return mean_label(targets / targets.sum(dim=1, keepdim=True) if self.normalize else targets)

    def of_mean(self, mean: Tensor) -> Tensor:
        return self.weight * negative_entropy(mean)


def _check_label_generator(generator: LabelGenerator, hierarchy: Hierarchy, weighted: bool) -> None:
    if generator.hierarchy != hierarchy or generator.weighted != weighted:
        raise ValueError(
            f"`generator` must have psi {list(hierarchy.psi)} and weighted={weighted}, "
            f"found {list(generator.hierarchy.psi)} and {generator.weighted}. Make it with the same options as MAXL."
        )
