"""The model check: whether a model is differentiated correctly, and what a step costs, before it is trained."""

import contextlib
import statistics
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_kind
from ..errors import FallBackWarning
from ..hypergradient import METHODS, Experience
from ..learners import AuxiliaryLabelGenerator
from ..passes import COMPUTING, copied
from .central_differences import compare
from .memory import kept_for_backward
from .probes import Findings, Subject, probe_gradients, probe_passes
from .snapshot import Snapshot

NUM_TIMED = 3
WIDTH = 100
Costs = tuple[float | None, float | None, int | None, int | None]
UNMEASURED = "could not be measured"


@dataclass(frozen=True)
class ModelCheck:
    """What :func:`check_model` found; ``print`` shows it as a report.

    Attributes:
        problems: What would go wrong: each says what was found, why it matters and what to do.
        notes: What may be intended: frozen and unused parameters, methods that fall back on others, what could not be
            measured.
        relative_error: Of the hypergradient along a random direction, against central differences of a real step; None
            if it could not be measured. The values below are None if a problem prevents a step.
        seconds: One step of both networks, the median of three after one to warm up.
        single_task_seconds: One step on the primary loss alone, likewise.
        saved_bytes: Peak of what autograd keeps for backward passes in a step, without parameters; on CUDA devices, the
            rise of allocated memory in a step.
        single_task_saved_bytes: Likewise for a step on the primary loss alone.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    relative_error: float | None
    seconds: float | None
    single_task_seconds: float | None
    saved_bytes: int | None
    single_task_saved_bytes: int | None

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def __str__(self) -> str:
        count = len(self.problems)
        found = "no problem" if self.ok else f"{count} problem{'s' * (count > 1)}"
        exact = UNMEASURED
        if self.relative_error is not None:
            exact = f"differs by {self.relative_error:.0e} of its size from central differences of a real step"
        lines = [
            f"Model check: {found} found",
            f"  hypergradient  {exact}",
            "  time           " + _against(self.seconds, self.single_task_seconds, _seconds, "a step"),
            "  memory         " + _against(self.saved_bytes, self.single_task_saved_bytes, _bytes, "kept for backward"),
        ]
        for title, texts in (("Problems", self.problems), ("Notes", self.notes)):
            if texts:
                lines.append(title)
            for number, text in enumerate(texts, start=1):
                lines.append(textwrap.fill(text, WIDTH, initial_indent=f"  {number}. ", subsequent_indent="     "))
        return "\n".join(lines)


def check_model(maxl: AuxiliaryLabelGenerator, x: Any, y: Tensor, *, method: str = "forward") -> ModelCheck:
    """Checks on one batch whether a learner's networks are differentiated correctly, and what a step costs.

    It finds trained tensors that are no parameters, outputs that change from pass to pass, passes that change more than
    buffers, parameters without a gradient, and outputs that are probabilities already. It compares the hypergradient
    with central differences of a real step, in float64 if the model can run in it, close to the current parameters.
    This takes the time of ten to thirty steps and the memory of some more copies of both networks. Afterwards the
    learner, the batch and the random states are as they were.

    Args:
        maxl: The learner, in the mode that it is trained in.
        x: A batch of samples as the model is trained on, N of them.
        y: Their labels.
        method: As in :meth:`AuxiliaryLabelGenerator.hypergradient`, except ``"regularizer"``.

    Returns:
        The findings; ``print`` them, or look at ``ok``.

    Raises:
        TypeError, ValueError: An argument does not fit.
        NonFiniteError: A loss or gradient is NaN or infinite on this batch.

    Any other error that the model raises on the batch is raised here too.

    Example:
        >>> maxl = MAXL(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)), psi=[3, 3])
        >>> check = check_model(maxl, torch.randn(6, 8), torch.tensor([0, 1, 1, 0, 1, 0]))
        >>> check.ok, check.problems, check.relative_error < 1e-3
        (True, (), True)
    """
    check_kind(maxl, AuxiliaryLabelGenerator, "maxl", "Wrap the model first: check_model(MAXL(model, psi), x, y).")
    check_choice(method, [name for name in METHODS if name != "regularizer"], "method", "'forward' is the default")
    maxl.check_batch(x, y)
    _check_trainable(maxl)
    with COMPUTING, _undisturbed(maxl) as snapshot, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check = _checked(Subject(maxl, copied(x), copied(y), snapshot), method, caught)
    for category, text in dict.fromkeys((each.category, str(each.message)) for each in caught):
        # Outputs that change from pass to pass are in the findings, with the reason.
        if not issubclass(category, FallBackWarning) and "gave other outputs in a second pass" not in text:
            warnings.warn(text, category, stacklevel=2)
    return check


@contextlib.contextmanager
def _undisturbed(maxl: AuxiliaryLabelGenerator) -> Iterator[Snapshot]:
    """Yields a snapshot of a learner and restores it at the end; inside, the learner warns of fall-backs again."""
    experience, maxl.experience = maxl.experience, Experience()
    try:
        snapshot = Snapshot(maxl)
        try:
            yield snapshot
        finally:
            snapshot.restore()
    finally:
        maxl.experience = experience


def _checked(subject: Subject, method: str, caught: list[warnings.WarningMessage]) -> ModelCheck:
    found = Findings()
    error: float | None = None
    costs: Costs = (None, None, None, None)
    subject.maxl.zero_grad()
    repeats = probe_passes(subject, found)
    try:
        probe_gradients(subject, found)
        subject.snapshot.restore()
        # First in the model's own dtype: errors there are shown to the user.
        subject.maxl.hypergradient(copied(subject.x), subject.y, method=method)
        subject.snapshot.restore()
        error = _probe_exactness(subject, method, found) if repeats else None
        costs = _costs(subject, method)
    except Exception as raised:
        if not found.problems:
            raise
        found.problems.append(f"A step raises {type(raised).__name__}: {raised} See to the other problems first.")
    fall_backs = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, FallBackWarning))
    found.notes.extend(fall_backs)
    if fall_backs:
        found.notes[-1] += f" That is {_against(costs[0], costs[1], _seconds, 'a step')}."
    return ModelCheck(tuple(found.problems), tuple(found.notes), error, *costs)


def _probe_exactness(subject: Subject, method: str, found: Findings) -> float | None:
    error, bound, dtype, reason = compare(subject.maxl, subject.x, subject.y, method)
    if reason:
        found.notes.append(
            f"The hypergradient was compared in {dtype}, as the model does not run in float64 ({reason})."
        )
    if error is None:
        found.notes.append(
            "The hypergradient could not be compared with central differences: it is zero or too small for the "
            "precision, or the losses have kinks or jumps everywhere."
        )
    elif error > bound:
        found.problems.append(
            f"`model` must be differentiable in its parameters, found the hypergradient (method {method!r}) "
            f"{error:.1%} away from central differences of a real step. The generator would learn for another model. "
            "See to the other problems first; then look for a backward() of its own, a detach() or rounding in the "
            "model: where that is meant, so is the difference."
        )
    return error


def _check_trainable(maxl: AuxiliaryLabelGenerator) -> None:
    for name, part in (("network", maxl.network), ("generator", maxl.generator)):
        if not _trainable(part):
            raise ValueError(
                f"`maxl` must have parameters to train in both networks, found that all of the {name}'s are frozen. "
                "Call requires_grad_(True) on some of them."
            )


def _trainable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _costs(subject: Subject, method: str) -> Costs:
    """Seconds of a step and of single-task training, and the bytes of each."""
    maxl, y = subject.maxl, subject.y
    optimizers = [torch.optim.SGD(_trainable(part), lr=maxl.lr) for part in (maxl.network, maxl.generator)]
    both = _cost(subject, lambda x: maxl.step(x, y, *optimizers, method=method))
    single = _cost(subject, lambda x: maxl.network_step(x, y, optimizers[0], auxiliary=False))
    return both[0], single[0], both[1], single[1]


def _cost(subject: Subject, step: Callable[[Any], Any]) -> tuple[float, int]:
    """Seconds and bytes of a step: the bytes of the one that warms up, the median time of those that follow."""
    device = subject.y.device
    seconds = []
    saved = 0
    for number in range(1 + NUM_TIMED):
        subject.snapshot.restore()
        x = copied(subject.x)
        if number == 0:
            saved = kept_for_backward(partial(step, x), subject.maxl, device)
            continue
        started = _now(device)
        step(x)
        seconds.append(_now(device) - started)
    return statistics.median(seconds), saved


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _against(value: Any, single: Any, write: Callable[[Any], str], what: str) -> str:
    if value is None:
        return UNMEASURED
    times = f"{value / single:.1f} times" if single else "more than"
    return f"{write(value)} {what}, {times} single-task training ({write(single)})"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _bytes(value: int) -> str:
    return f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e9:.3g} GB"
