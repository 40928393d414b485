"""Probes: each finds, by a pass or two, something in a model that would make its derivatives wrong."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import some
from ..labels import PROBABILITIES, SECOND_SOFTMAX, are_probabilities
from ..learners import MAXL, AuxiliaryLabelGenerator
from ..passes import buffer_copies, copied, tensors_of, virtual_pass
from .snapshot import Snapshot, plain_tensors, same


@dataclass
class Findings:
    """What probes have found: problems to be solved before training, and notes on what may be intended."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """What is probed.

    Attributes:
        maxl: The learner; a probe may change it, as the snapshot restores it.
        x: A batch of samples; probes work on copies.
        y: Their labels.
        snapshot: Of the learner.
    """

    maxl: AuxiliaryLabelGenerator
    x: Any
    y: Tensor
    snapshot: Snapshot

    def networks(self) -> Iterable[tuple[str, nn.Module, tuple[Any, ...]]]:
        """Both networks, with the names that users know and their arguments."""
        yield "model", self.maxl.network, (self.x,)
        yield "generator", self.maxl.generator, (self.x, self.y)


@dataclass(frozen=True)
class _Pass:
    """A virtual pass: outputs; after it, the arguments, the plain tensors, and the names of changed parameters."""

    outputs: list[Tensor]
    args: tuple[Any, ...]
    plain: dict[str, Tensor]
    changed: list[str]


def probe_passes(subject: Subject, found: Findings) -> bool:
    """Checks that networks repeat their outputs and change only buffers; returns whether both repeat their outputs."""
    if not (subject.maxl.training and subject.maxl.module.training):  # transformers loads models in evaluation mode
        found.notes.append(
            "The model is in evaluation mode: no dropout, and BatchNorm stands still. Call maxl.train() unless that is "
            "meant."
        )
    repeats = True
    for name, module, args in subject.networks():
        first, second = _virtual(subject, module, args), _virtual(subject, module, args)
        if name == "model":
            _probe_probabilities(subject, first.outputs[0], found)
        moved = [
            path
            for path, tensor in second.plain.items()
            if path in first.plain and not _agree([tensor], [first.plain[path]])
        ]
        subject.snapshot.restore()
        _probe_changes(subject, name, first, found)
        if not _agree(first.outputs, second.outputs):
            repeats = False
            found.problems.append(_unrepeatable(subject, name, module, args))
        elif moved:
            found.problems.append(
                f"`{name}` must keep what it carries from pass to pass in buffers, found plain tensors that move: "
                f"{some(_own_paths(moved))}. A step makes several passes, and each would move them. "
                "Call register_buffer on them, or hold the layers that have them in nn.ModuleList."
            )
    return repeats


def probe_gradients(subject: Subject, found: Findings) -> None:
    """Finds tensors that the loss depends on but that are no parameters, and parameters that it does not depend on."""
    maxl = subject.maxl
    x = copied(subject.x)
    loss = maxl.loss(x, subject.y)
    own = {id(thing) for thing in (*maxl.parameters(), *tensors_of(x))}
    _report_hidden(maxl, [leaf for leaf in _leaves(loss) if id(leaf) not in own], found)
    trainable = {name: p for name, p in maxl.named_parameters() if p.requires_grad}
    frozen = [name for name, p in maxl.named_parameters() if not p.requires_grad]
    grads = dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)))
    unused = [name for name, grad in grads.items() if grad is None]
    zero = [name for name, grad in grads.items() if grad is not None and not grad.any()]
    if not any(name.startswith("network.module.") and grad is not None for name, grad in grads.items()):
        found.problems.append(
            "`model` must have trainable parameters that its loss reaches, found none: nothing of it would learn. "
            "Call requires_grad_(True) on some, and compute the logits without detach() or no_grad()."
        )
    for names, says in (
        (frozen, "frozen (requires_grad=False), so they stay as they are"),
        (
            unused,
            "reached by no gradient of the multi-task loss (unused, or behind a detach()), so they stay as they are",
        ),
        (zero, "of zero gradient on this batch (dead units, zero initialisation, labels that can't move)"),
    ):
        if names:
            found.notes.append(f"{len(names)} parameter tensors: {says}: {some(_own_paths(names), 3)}.")


def _virtual(subject: Subject, module: nn.Module, args: tuple[Any, ...]) -> _Pass:
    """A pass from the snapshot's random state of torch, on copies of buffers and arguments."""
    subject.snapshot.random.restore()
    args, buffers = tuple(copied(arg) for arg in args), buffer_copies(module)
    outputs = virtual_pass(module, {}, buffers, *args)
    values = subject.snapshot.values
    changed = [name for name, tensor in subject.maxl.named_parameters() if not same(tensor, values[id(tensor)])]
    plain = {path: tensor.detach().clone() for path, tensor in plain_tensors(subject.maxl).items()}
    return _Pass([tensor.detach() for tensor in tensors_of(outputs)], args, plain, changed)


def _agree(ones: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors are equal up to rounding, which may differ from run to run."""
    return len(ones) == len(others) and all(map(_near, ones, others))


def _near(one: Tensor, other: Tensor) -> bool:
    if same(one, other) or one.shape != other.shape or not one.is_floating_point():
        return same(one, other)
    return bool((one - other).abs().max() <= torch.finfo(one.dtype).eps ** 0.5 * other.abs().max())


def _probe_changes(subject: Subject, name: str, done: _Pass, found: Findings) -> None:
    """Finds arguments and parameters that a pass changed."""
    for label, before, after in zip("xy", (subject.x, subject.y), done.args):
        pairs = zip(tensors_of(before), tensors_of(after))
        if not all(same(one, other) and other._version == 0 for one, other in pairs):
            found.problems.append(
                f"`{name}` must leave its input as it is, found that its forward changes `{label}` in place. "
                "The next pass of the same step would see something else. "
                f"Begin its forward with a copy, {label} = {label}.clone(), or use operations without inplace=True."
            )
    if done.changed:
        found.problems.append(
            f"`{name}` must leave its parameters as they are, found that its forward changes "
            f"{some(_own_paths(done.changed))}. A virtual pass would change the real ones. "
            "Move the change (a projection, clipping, an embedding's max_norm) behind the optimizer's step."
        )


def _probe_probabilities(subject: Subject, outputs: Tensor, found: Findings) -> None:
    if not are_probabilities(outputs):
        return
    if isinstance(subject.maxl, MAXL):
        found.problems.append(SECOND_SOFTMAX)
    else:
        found.notes.append(
            f"the model's outputs: {PROBABILITIES}. A primary_loss with a softmax would take a second one."
        )


def _unrepeatable(subject: Subject, name: str, module: nn.Module, args: tuple[Any, ...]) -> str:
    """Says why two passes from the same random state and buffers are not the same."""

    def repeats(prepare: Callable[[], None]) -> bool:
        outputs = []
        for _ in range(2):
            prepare()
            outputs.append(_virtual(subject, module, args).outputs)
        moved.extend(subject.snapshot.moved_attributes())
        subject.snapshot.restore()
        return _agree(*outputs)

    moved: list[str] = []

    if repeats(subject.snapshot.restore_random_numbers):
        found, remedy = "random numbers of Python's random or of numpy", "Draw them with torch"
    elif repeats(subject.snapshot.restore):
        found = f"state in plain attributes: {some(_own_paths(dict.fromkeys(moved)))}"
        remedy = "Keep it in tensors, by register_buffer"
    else:
        found = "randomness or state outside of torch (a generator of its own, a global variable, a kernel, a clock)"
        remedy = "Draw from torch's global generator and keep state in buffers"
    return (
        f"`{name}` must give the same outputs from the same random state and buffers, found that they differ, by "
        f"{found}. The passes of one step would belong to different functions, and the hypergradient to none. {remedy}."
    )


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaves of an autograd graph that gradients are accumulated in."""
    found: dict[int, Tensor] = {}
    nodes, seen = [loss.grad_fn], {loss.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        new = {following for following, _ in node.next_functions} - seen
        seen |= new
        nodes.extend(new)
    return list(found.values())


def _report_hidden(maxl: nn.Module, hidden: list[Tensor], found: Findings) -> None:
    paths = {id(tensor): path for path, tensor in (*plain_tensors(maxl).items(), *maxl.named_buffers())}
    nowhere = [f"a tensor {list(leaf.shape)} outside of all modules" for leaf in hidden if id(leaf) not in paths]
    names = [*_own_paths([paths[id(leaf)] for leaf in hidden if id(leaf) in paths]), *nowhere]
    if names:
        found.problems.append(
            f"`model` and `generator` must hold what is to be trained as parameters, found {len(names)} tensors with a "
            f"gradient that are none: {some(names)}. No optimizer trains them, and the hypergradient passes them by. "
            "Keep layers in nn.ModuleList or nn.ModuleDict, tensors in nn.ParameterList or as nn.Parameter attributes; "
            "or detach them."
        )


def _own_paths(names: Iterable[str]) -> list[str]:
    """Removes the prefixes of names in the user's model."""
    return [name.removeprefix("network.module.").removeprefix("network.") for name in names]
