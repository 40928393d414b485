"""The origin of a loss or gradient that is not finite, if parameters or data were not finite before the step."""

from torch import Tensor

from ..checks import some
from ..hypergradient import Batch, Bilevel, Origin
from ..passes import tensors_of


def origin(bilevel: Bilevel, batch: Batch, meta_batch: Batch | None = None) -> Origin | None:
    """Returns what was NaN or infinite before a step; None if nothing was."""
    networks = {"network": bilevel.network, "generator": bilevel.generator}
    for kind, network in networks.items():
        # A frozen one may be infinite on purpose.
        wrong = [
            name for name, p in network.named_parameters() if not _is_finite(p, may_be_infinite=not p.requires_grad)
        ]
        if wrong:
            return Origin(
                f"{kind} parameters",
                f"the {kind}'s parameters {some(wrong)} are NaN or infinite",
                "Go back to a state in which they were not: a checkpoint, say.",
            )
    named = [("x", batch[0]), ("y", batch[1])]
    if meta_batch is not None and meta_batch[0] is not batch[0]:
        named += [("meta_batch[0]", meta_batch[0]), ("meta_batch[1]", meta_batch[1])]
    for name, data in named:
        for tensor in tensors_of(data):
            # A mask in a mapping may well be infinite.
            if not _is_finite(tensor, may_be_infinite=not isinstance(data, Tensor)):
                return Origin("input", f"the input {name} is {_where(tensor)}", "Check the data.")
    for kind, network in networks.items():
        wrong = [name for name, buffer in network.named_buffers() if bool(buffer.isnan().any())]
        if wrong:
            return Origin(
                f"{kind} buffers", f"the {kind}'s buffers {some(wrong)} are NaN", "Go back to a state without."
            )
    return None


def _is_finite(tensor: Tensor, may_be_infinite: bool) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return not bool((tensor.isnan() if may_be_infinite else ~tensor.isfinite()).any())


def _where(tensor: Tensor) -> str:
    """How many entries are not finite, and in which sample the first one is."""
    wrong = ~tensor.detach().isfinite()
    kind = "NaN" if bool(tensor.isnan().any()) else "infinite"
    if tensor.dim() == 0:
        return kind
    samples = wrong.flatten(1).any(dim=1) if tensor.dim() > 1 else wrong
    first = int(samples.nonzero()[0])
    return f"{kind} in {int(samples.sum())} of {len(samples)} samples, first in number {first}"
