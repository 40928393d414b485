"""The multi-task network: the user's model with an auxiliary head on its features."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from .calls import call, logits_of
from .fresh_copies import fresh_head, place
from .heads import alters_features, logits_layer, resized_head, resolve_head


class MultiTaskNetwork(nn.Module):
    """The user's model plus an auxiliary head on the features that enter the model's own head (theta_1).

    The model is held, not copied, and is not altered: a hook that exists only during a forward pass reads the features.
    A model whose head is a convolution gets a convolutional auxiliary head. If head names a ``nn.Sequential``, such as
    the paper's two linear layers, the auxiliary head is one too, on the features that enter it. If the model pools
    after its head, the auxiliary logits are averaged over positions; if it picks a position, such as the last token,
    the same one is picked; if it resizes, they are resized.

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
        self._passed_on: list[tuple[Tensor, Tensor]] = []
        self._kept: list[Tensor] = []

    @property
    def is_dense(self) -> bool:
        """Whether the auxiliary logits come out of a convolution, so that labels may have trailing dimensions."""
        layer = logits_layer(self.auxiliary_head)
        return layer is not None and isinstance(self.auxiliary_head.get_submodule(layer), _ConvNd)

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        """Returns the primary logits ``[N, C, ...]`` and the auxiliary logits ``[N, K, ...]``.

        Args:
            x: What the model takes, N samples; a mapping is passed as keyword arguments, see :func:`calls.call`.

        Raises:
            TypeError: The model's logits are not found in what it returns, see :func:`calls.logits_of`.
            ValueError: The model has another number of outputs than psi has entries.
            RuntimeError: The model's head did not run exactly once.
        """
        with self.reading():
            return self.read(x)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, hooks keep what enters and leaves the model's head, for :meth:`read`."""
        if self.primary_head is not None:
            yield
            return
        head = self.module.get_submodule(self.head)
        hooks = [head.register_forward_hook(self._pass_on, with_kwargs=True)]
        if alters_features(head):
            hooks.append(head.register_forward_pre_hook(self._keep, with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._passed_on.clear()
            self._kept.clear()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._kept.append(_first(args, kwargs).clone())

    def _pass_on(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Tensor) -> None:
        self._passed_on.append((self._kept.pop() if self._kept else _first(args, kwargs), logits))

    def read(self, x: Any) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` does, to be called inside :meth:`reading`; in this form it can be compiled."""
        if self.primary_head is not None:
            features = logits_of(call(self.module, x), what="features")
            return self.primary_head(features), self.auxiliary_head(features)
        primary = logits_of(call(self.module, x))
        found = list(self._passed_on)
        self._passed_on.clear()
        self._check_outputs(primary)
        if len(found) != 1:
            raise RuntimeError(
                f"`head` must run once in a forward pass, but {self.head!r} ran {len(found)} times. "
                "Name the layer that produces the primary logits with head=."
            )
        features, own = found[0]
        return primary, self._match_positions(self.auxiliary_head(features), own, primary)

    def _check_outputs(self, primary: Tensor) -> None:
        if self.num_primary is not None and (primary.dim() < 2 or primary.shape[1] != self.num_primary):
            raise ValueError(
                f"`psi` must have an entry per model output: it has {self.num_primary}, the model returned "
                f"{list(primary.shape)}. Give psi as many entries as the model has classes, or name the layer that "
                f"produces the logits with head= (it is taken to be {self.head!r})."
            )

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the model's own output, untouched; for a headless backbone the primary logits ``[N, C]``.

        A single argument is passed on as in :meth:`forward`: with a tokenizer's output, ``predict(x)`` is
        ``predict(**x)``.
        """
        output = call(self.module, args[0]) if len(args) == 1 and not kwargs else self.module(*args, **kwargs)
        return output if self.primary_head is None else self.primary_head(logits_of(output, what="features"))

    def _match_positions(self, auxiliary: Tensor, own: Tensor, primary: Tensor) -> Tensor:
        """Matches the auxiliary head's logits to the model's outputs: chooses, averages, flattens or resizes positions.

        Args:
            auxiliary: Logits of the auxiliary head.
            own: Logits of the model's own head.
            primary: What the model makes of these.
        """
        if auxiliary.dim() > 2 and not self.is_dense:
            # A linear head applied to every position has its classes last.
            auxiliary, own = auxiliary.movedim(-1, 1), own.movedim(-1, 1)
        if auxiliary.shape[2:] == primary.shape[2:]:
            return auxiliary
        if primary.dim() == 2:
            auxiliary, own = auxiliary.flatten(2), own.flatten(2)
            return auxiliary.mean(dim=2) if self.is_dense else _chosen(auxiliary, own, primary)
        if auxiliary.shape[2:].numel() == primary.shape[2:].numel():
            return auxiliary.reshape(*auxiliary.shape[:2], *primary.shape[2:])
        modes = {3: "linear", 4: "bilinear", 5: "trilinear"}
        if auxiliary.dim() != primary.dim() or auxiliary.dim() not in modes:
            raise RuntimeError(
                f"`head` must give logits for the positions of the model's output, found auxiliary logits "
                f"{list(auxiliary.shape)} and an output {list(primary.shape)}. Name another layer with head=."
            )
        return F.interpolate(auxiliary, size=primary.shape[2:], mode=modes[auxiliary.dim()], align_corners=False)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _chosen(auxiliary: Tensor, own: Tensor, primary: Tensor) -> Tensor:
    """Auxiliary logits ``[N, K, P]`` at the position where each sample's own logits ``[N, C, P]`` are the primary ones;
    their mean over positions if these were not picked from the own ones."""
    same = (own == primary.unsqueeze(2)).all(dim=1)
    if not same.any(dim=1).all():
        return auxiliary.mean(dim=2)
    position = same.to(torch.uint8).argmax(dim=1)
    return auxiliary[torch.arange(len(position), device=position.device), :, position]


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
        ValueError: The head is missing, ambiguous, of another number of outputs, or can't be copied.
    """
    name = resolve_head(model, head, num_primary, num_features)
    if name is not None:
        auxiliary_head = fresh_head(model.get_submodule(name), num_auxiliary)
        return MultiTaskNetwork(model, auxiliary_head, name, num_primary=num_primary)
    assert num_features is not None  # by resolve_head
    assert num_primary is not None
    primary_head = nn.Linear(num_features, num_primary, **place(model))
    return MultiTaskNetwork(model, resized_head(primary_head, num_auxiliary), primary_head=primary_head)
