"""The label generator: the second network, which gives each sample's auxiliary label."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ..labels import Hierarchy, softmax_in_block
from ..passes import at_least_float32
from .calls import call, logits_of
from .fresh_copies import fresh_copy, place


class LabelGenerator(nn.Module):
    """The label generator g (theta_2): masked softmax of a network's logits over the block of each sample's class.

    Equation 2 of Liu et al. (2019). A weighted generator has one more output z, from which each sample's label gets the
    mass ``4 ** tanh(z)`` instead of 1: as the auxiliary loss is linear in its target, that is the sample's weight.

    Args:
        body: Any module from x to logits ``[N, K, ...]``; ``[N, K + 1, ...]`` if weighted.
        psi: The hierarchy, or its C sizes.
        weighted: Whether samples get weights.

    Example:
        >>> generator = LabelGenerator(nn.Linear(8, 5), psi=[2, 3])
        >>> generator(torch.randn(4, 8), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([4, 5])
    """

    primary_of_auxiliary: Tensor

    def __init__(self, body: nn.Module, psi: Hierarchy | Iterable[int], weighted: bool = False) -> None:
        super().__init__()
        self.body = body
        self.hierarchy = Hierarchy.of(psi)
        self.weighted = weighted
        self.register_buffer("primary_of_auxiliary", self.hierarchy.primary_of_auxiliary(), persistent=False)

    def forward(self, x: Any, y: Tensor) -> Tensor:
        """Returns auxiliary labels.

        Args:
            x: What the network takes, N samples.
            y: Primary classes, int64, shape ``[N, ...]``, in 0 .. C - 1.

        Returns:
            Probabilities ``[N, K, ...]``, exactly 0 outside the block of y, float32 or better. Differentiable in
            theta_2. If weighted, probabilities times the sample's weight: they sum to it, between 1/4 and 4.

        Raises:
            ValueError: The body's logits have another shape.
        """
        logits = logits_of(call(self.body, x), "`generator`, or the `model` that it is a copy of,")
        num_auxiliary = self.hierarchy.num_auxiliary
        expected = [y.shape[0], num_auxiliary + self.weighted, *y.shape[1:]]
        if list(logits.shape) != expected:
            raise ValueError(
                f"`generator` must give logits of shape {expected} before its softmax, found {list(logits.shape)}. "
                f"Give its network sum(psi) = {num_auxiliary} outputs{' and one for the weight' * self.weighted}; "
                "if it is the default copy of the model, name the layer that produces the model's logits with head=."
            )
        labels = softmax_in_block(logits[:, :num_auxiliary], y, self.primary_of_auxiliary)
        if not self.weighted:
            return labels
        score = at_least_float32(logits[:, num_auxiliary:]).flatten(1).mean(dim=1)
        weight = 4 ** score.tanh()
        return labels * weight.view(-1, *[1] * (labels.dim() - 1))


def default_generator(
    model: nn.Module, hierarchy: Hierarchy, head: str | None, num_features: int | None, weighted: bool = False
) -> LabelGenerator:
    """Returns the paper's label generator: the model's architecture with K outputs, freshly initialised.

    See :func:`fresh_copies.fresh_copy` for the arguments and errors; a weighted generator has one more output.
    """
    body = fresh_copy(model, hierarchy.num_auxiliary + weighted, head, num_features)
    return LabelGenerator(body, hierarchy, weighted).to(place(model)["device"])
