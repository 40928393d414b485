"""The gradient cosine: whether the auxiliary task pulls the shared parameters the way of the primary one."""

from __future__ import annotations

import torch
from torch import Tensor

from .inner_pass import Batch, Bilevel, NetworkPass, backward
from .micro_batches import num_samples, split
from .passes import buffer_copies
from .reduction import Grads, added


@torch.enable_grad()
def gradient_cosine(bilevel: Bilevel, batch: Batch, targets: Tensor | None, micro_batches: int = 1) -> Tensor | None:
    """Computes the cosine of the gradients of both terms of L1 on the parameters that both depend on.

    It takes a pass of the network and two backward passes, and one of the generator for its labels. Buffers stay as
    they are; random numbers are drawn as in a step.

    Args:
        bilevel: The networks and their losses.
        batch: x and y.
        targets: Auxiliary targets; the generator's if None.
        micro_batches: Parts that the batch goes through the network in.

    Returns:
        A scalar without a graph, of the whole batch of all ranks; None if the gradients have no parameter in common, or
        one of them is zero.
    """
    network, ranks, parts = bilevel.network, bilevel.ranks, split(batch, micro_batches)
    (total_samples,) = ranks.totals("gradient_cosine", num_samples(batch))
    if targets is None:
        with torch.no_grad():
            targets = bilevel.generator_pass({}, buffer_copies(bilevel.generator), *batch)
        bilevel.check_targets(targets, batch[1])
    parameters = [p for p in network.parameters() if p.requires_grad]
    primary, auxiliary, buffers = Grads(), Grads(), buffer_copies(network)
    for part, part_targets in zip(parts, targets.tensor_split(len(parts))):
        share = num_samples(part) / total_samples
        one = NetworkPass(network, bilevel.network_pass, bilevel.objective, part, part_targets, share, buffers)
        assert one.auxiliary_loss is not None  # as there are targets
        primary = added(primary, backward(network, one.primary_loss, parameters, retained=True))
        auxiliary = added(auxiliary, backward(network, one.auxiliary_loss, parameters))
    shared = [(one, other) for one, other in zip(primary, auxiliary) if one is not None and other is not None]
    if not shared:
        return None
    first, second = (ranks.sum(torch.cat([pair[side].flatten().float() for pair in shared])) for side in (0, 1))
    sizes = first.norm() * second.norm()
    return first.dot(second) / sizes if sizes > 0 else None
