"""The gradient cosine: whether the auxiliary task moves the shared parameters in the direction of the primary one."""

import torch
from torch import Tensor, nn

from ..distributed import Grads, added, meets_in_passes
from ..hypergradient import Batch, Bilevel, NetworkPass, backward, num_samples, plain_pass, split
from ..passes import buffer_copies


@torch.enable_grad()
def gradient_cosine(bilevel: Bilevel, batch: Batch, targets: Tensor | None, micro_batches: int = 1) -> Tensor | None:
    """Computes the cosine of the gradients of both terms of L1 on the parameters that both depend on.

    It takes a pass of the network and two backward passes, and one of the generator for its labels. Buffers stay as
    they are; random numbers are drawn as in a step.

    Args:
        bilevel: The networks and their losses.
        batch: x and y.
        targets: Auxiliary targets; the generator's if None.
        micro_batches: Parts that the batch is split into.

    Returns:
        A scalar without a graph, of the whole batch of all ranks; None if the gradients have no parameter in common, or
        one of them is zero.
    """
    network, ranks, parts = bilevel.network, bilevel.ranks, split(batch, micro_batches)
    meet = ranks.size > 1 and meets_in_passes(ranks, network, bilevel.generator)
    words = f"gradient_cosine in {len(parts)} micro-batches" if meet else "gradient_cosine"
    (total_samples,) = ranks.totals(words, num_samples(batch))
    if targets is None:
        with torch.no_grad():
            targets = plain_pass(bilevel.generator)({}, buffer_copies(bilevel.generator), *batch)
        bilevel.check_targets(targets, batch[1])
    parameters = [p for p in network.parameters() if p.requires_grad]
    primary, auxiliary, buffers = Grads(), Grads(), buffer_copies(network)
    # Not compiled: such a pass gives zeros for what a term does not depend on, and is differentiated once.
    run = plain_pass(network)
    for part, part_targets in zip(parts, targets.tensor_split(len(parts))):
        share = num_samples(part) / total_samples
        one = NetworkPass(network, run, bilevel.objective, part, part_targets, share, buffers)
        assert one.auxiliary_loss is not None  # as there are targets
        primary = added(primary, backward(network, one.primary_loss, parameters, retained=True))
        auxiliary = added(auxiliary, backward(network, one.auxiliary_loss, parameters))
    both = torch.tensor([[grad is not None for grad in grads] for grads in (primary, auxiliary)])
    shared = (ranks.sum(both.long().to(parameters[0].device)) > 0).all(dim=0).tolist() if parameters else []
    if not any(shared):
        return None
    first, second = (ranks.sum(_joined(grads, parameters, shared)) for grads in (primary, auxiliary))
    sizes = first.norm() * second.norm()
    return first.dot(second) / sizes if sizes > 0 else None


def _joined(grads: Grads, parameters: list[nn.Parameter], wanted: list[bool]) -> Tensor:
    """The gradients of wanted parameters as one vector; zeros where a rank's part does not depend on one."""
    found = zip(grads, parameters, wanted)
    parts = [torch.zeros_like(own) if grad is None else grad for grad, own, is_wanted in found if is_wanted]
    return torch.cat([part.detach().flatten().float() for part in parts])
