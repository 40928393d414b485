"""The two networks: the multi-task network around the user's model, and the label generator."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from .heads import resized_head, resolve_head
from .hierarchy import Hierarchy
from .losses import at_least_float32, softmax_in_block


class MultiTaskNetwork(nn.Module):
    """The user's model plus an auxiliary head on the features that enter the model's own head (theta_1).

    The model is held, not copied, and is not altered: the features are read by a hook that lives as long as one
    forward pass. A model whose head is a convolution gets a convolutional auxiliary head; its logits are averaged over
    positions where the model pools after its head, and resized where the model resizes.

    Args:
        module: The user's model; or a backbone that returns features ``[N, D]``, if primary_head is given.
        auxiliary_head: Maps the features to auxiliary logits.
        head: Name of the model's own head within it, as in ``named_modules()``; not used with primary_head.
        primary_head: Maps the features of a headless backbone to primary logits.
        num_primary: How many outputs the model must have; None if any number will do.
    """

    def __init__(
        self,
        module: nn.Module,
        auxiliary_head: nn.Module,
        head: str = "",
        primary_head: nn.Module | None = None,
        num_primary: int | None = None,
    ) -> None:
        super().__init__()
        self.num_primary = num_primary
        self.module = module
        self.primary_head = primary_head
        self.auxiliary_head = auxiliary_head
        self.head = head

    @property
    def is_dense(self) -> bool:
        """Whether the auxiliary head is a convolution, so that labels may have trailing dimensions."""
        return isinstance(self.auxiliary_head, _ConvNd)

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        """Returns the primary logits ``[N, C, ...]`` and the auxiliary logits ``[N, K, ...]``.

        Raises:
            TypeError: The model returns something else than a tensor.
            ValueError: The model has another number of outputs than psi has entries.
            RuntimeError: The model's head did not run exactly once.
        """
        if self.primary_head is not None:
            features = _as_tensor(self.module(x))
            return self.primary_head(features), self.auxiliary_head(features)
        found: list[Tensor] = []

        def read_features(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(self.auxiliary_head(args[0] if args else next(iter(kwargs.values()))))

        head = self.module.get_submodule(self.head)
        with head.register_forward_pre_hook(read_features, with_kwargs=True):
            primary = _as_tensor(self.module(x))
        self._check_outputs(primary)
        if len(found) != 1:
            raise RuntimeError(
                f"`head` must run once in a forward pass, but {self.head!r} ran {len(found)} times. "
                "Name the layer that produces the primary logits with head=."
            )
        return primary, self._match_positions(found[0], primary)

    def _check_outputs(self, primary: Tensor) -> None:
        if self.num_primary is not None and (primary.dim() < 2 or primary.shape[1] != self.num_primary):
            raise ValueError(
                f"`psi` must have an entry per model output: it has {self.num_primary}, the model returned "
                f"{list(primary.shape)}. Give psi as many entries as the model has classes, or name the layer that "
                f"produces the logits with head= (it is taken to be {self.head!r})."
            )

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the model's own output, untouched; for a headless backbone the primary logits ``[N, C]``."""
        output = self.module(*args, **kwargs)
        return output if self.primary_head is None else self.primary_head(output)

    def _match_positions(self, auxiliary: Tensor, primary: Tensor) -> Tensor:
        """Gives auxiliary logits the trailing dimensions of the primary ones: averaged, flattened or resized."""
        if auxiliary.dim() > 2 and not self.is_dense:
            auxiliary = auxiliary.movedim(-1, 1)  # a linear head applied to every position has its classes last
        if auxiliary.shape[2:] == primary.shape[2:]:
            return auxiliary
        if primary.dim() == 2:
            return auxiliary.flatten(2).mean(dim=2)
        if auxiliary.shape[2:].numel() == primary.shape[2:].numel():
            return auxiliary.reshape(*auxiliary.shape[:2], *primary.shape[2:])
        modes = {3: "linear", 4: "bilinear", 5: "trilinear"}
        if auxiliary.dim() != primary.dim() or auxiliary.dim() not in modes:
            raise RuntimeError(
                f"`head` must give logits for the positions of the model's output, found auxiliary logits "
                f"{list(auxiliary.shape)} and an output {list(primary.shape)}. Name another layer with head=."
            )
        return F.interpolate(auxiliary, size=primary.shape[2:], mode=modes[auxiliary.dim()], align_corners=False)


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
        logits = _as_tensor(self.body(x))
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


def multi_task_network(
    model: nn.Module, num_primary: int | None, num_auxiliary: int, head: str | None, num_features: int | None
) -> MultiTaskNetwork:
    """Attaches an auxiliary head to a model; see :class:`MultiTaskNetwork`.

    Args:
        model: The user's model.
        num_primary: Outputs that the model's head must have; None if any number will do.
        num_auxiliary: Outputs of the auxiliary head.
        head: Name of the model's head; None to find it.
        num_features: Width of a headless backbone's output; None if the model has a head.

    Raises:
        TypeError: model is not a module.
        ValueError: There is no head, no single one, or not one with num_primary outputs.
    """
    name = resolve_head(model, head, num_primary, num_features)
    if name is not None:
        auxiliary_head = resized_head(model.get_submodule(name), num_auxiliary)
        return MultiTaskNetwork(model, auxiliary_head, name, num_primary=num_primary)
    assert num_features is not None  # by resolve_head
    assert num_primary is not None
    primary_head = nn.Linear(num_features, num_primary, **_place(model))
    return MultiTaskNetwork(model, resized_head(primary_head, num_auxiliary), primary_head=primary_head)


def default_generator(
    model: nn.Module, hierarchy: Hierarchy, head: str | None, num_features: int | None, weighted: bool = False
) -> LabelGenerator:
    """Returns the paper's label generator: the model's architecture with K outputs, freshly initialised.

    Every layer with ``reset_parameters`` draws new values. Parameters that a module of the user's holds itself (a class
    token, say) start as a copy of the model's. Nothing is shared with the model.

    Args:
        model: The user's model.
        hierarchy: The hierarchy; K is its number of auxiliary classes.
        head: Name of the model's head; not used with num_features.
        num_features: Width of a headless backbone's output; None if the model has a head.
        weighted: Whether samples get weights, by one output more.

    Raises:
        ValueError: The model can't be copied.
    """
    try:
        body = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"`generator` must be given for this model, which can't be copied: {error}. "
            "Pass generator=LabelGenerator(your_network, psi)."
        ) from error
    num_outputs = hierarchy.num_auxiliary + weighted
    if num_features is not None:
        body = nn.Sequential(body, nn.Linear(num_features, num_outputs, **_place(model)))
    elif head:
        old_head = body.get_submodule(head)
        new_head = resized_head(old_head, num_outputs)
        for module in list(body.modules()):  # the head may be registered under several names
            for name, child in module._modules.items():
                if child is old_head:
                    module._modules[name] = new_head
    else:
        body = resized_head(body, num_outputs)
    # Children first: a parent that initialises its children has the last word.
    for module in reversed(list(body.modules())):
        _reset(module)
    for parameter in body.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return LabelGenerator(body, hierarchy, weighted).to(_place(model)["device"])


def _reset(module: nn.Module) -> None:
    """Draws new values for a layer's parameters, if it knows how to."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if not callable(reset):
        return
    if not parametrize.is_parametrized(module):
        reset()
        return
    # A parametrized tensor is computed anew at each access: draw into one that stays, then assign it.
    places = [name for name, _ in module.get_submodule("parametrizations").named_children()]
    with parametrize.cached():
        reset()
        drawn = {name: getattr(module, name).detach().clone() for name in places}
    for name, value in drawn.items():
        setattr(module, name, value)


def _place(model: nn.Module) -> dict[str, Any]:
    """Device and dtype of the model's first floating-point parameter."""
    like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
    return {"device": like.device, "dtype": like.dtype}


def _as_tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"`model` must return its logits as one tensor, found {type(output).__name__}. "
            "Wrap it in a module whose forward returns the logits alone."
        )
    return output
