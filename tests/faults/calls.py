"""Bad calls: what a hurried user gets wrong in the public API, and every word of the answer.

Each call is made on a fresh learner in the middle of its training. It must raise, in the words that stand here, and
leave the learner, its optimizers, all random states and the folder as they were: ``python tests/faults/calls.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer, SparseAdam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from maxl_l2l import (
    MAXL,
    AuxiliaryLabelGenerator,
    EntropyLabels,
    GeneratedLabels,
    Hierarchy,
    History,
    HumanLabels,
    LabelGenerator,
    LabelSource,
    Metrics,
    ModelCheck,
    MultiTaskNetwork,
    NonFiniteError,
    RandomLabels,
    SingleTask,
    StepResult,
    check_model,
    entropy_loss,
    evaluate,
    fit,
    focal_loss,
    masked_softmax,
    report,
)

PSI = [2, 3, 1]
DRAWING = ("matplotlib", "jinja2", "sklearn.manifold")
"""What report imports when it is first called; the last of these draws random numbers then."""
NAN = float("nan")


# ---- what is called


def classifier(outputs: int = 3) -> nn.Sequential:
    """A network in which a pass that is made shows: it moves BatchNorm statistics and draws dropout masks."""
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, outputs))


class Bench:
    """A learner whose networks have taken a step, with data and optimizers; given is what one call is about."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.folder = folder
        self.model = classifier()
        self.maxl = MAXL(self.model, PSI)
        self.x, self.y = torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 1])
        self.labels = torch.tensor([0, 2, 5, 1, 3, 4])
        self.data, self.loader = TensorDataset(self.x, self.y), [(self.x, self.y)] * 3
        self.optimizer = SGD(self.maxl.network.parameters(), lr=0.1, momentum=0.9)
        self.generator_optimizer = Adam(self.maxl.generator.parameters(), lr=0.01)
        self.optimizers = self.optimizer, self.generator_optimizer
        self.maxl.loss(self.x, self.y).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.given: Any = None

    def step(self, **changes: Any) -> Any:
        wanted = {"optimizer": self.optimizer, "generator_optimizer": self.generator_optimizer}
        return self.maxl.step(**{"x": self.x, "y": self.y, **wanted, **changes})

    def network_step(self, **changes: Any) -> Any:
        return self.maxl.network_step(**{"x": self.x, "y": self.y, "optimizer": self.optimizer, **changes})

    def fit(self, **changes: Any) -> Any:
        wanted = {"optimizer": self.optimizer, "generator_optimizer": self.generator_optimizer, "progress": False}
        return fit(**{"maxl": self.maxl, "loader": self.loader, "epochs": 1, **wanted, **changes})

    def step_given(self) -> Any:
        """Takes a step with another learner, the one that is given."""
        networks = self.given.network, self.given.generator
        return self.given.step(self.x, self.y, *(SGD(network.parameters(), lr=0.1) for network in networks))

    def report(self, **changes: Any) -> Any:
        return report(**{"folder": self.folder, "maxl": self.maxl, "loader": self.loader, **changes})

    def state(self) -> Any:
        """Everything that a bad call must leave alone, in plain data."""
        held = [self.maxl, *self.optimizers, *(one for one in _listed(self.given) if hasattr(one, "state_dict"))]
        modules = [module for one in held if isinstance(one, nn.Module) for module in one.modules()]
        return _plain(
            [
                [one.state_dict() for one in held],
                [(p.requires_grad, p.is_leaf, p.grad if p.is_leaf else None) for p in self.maxl.parameters()],
                [module.training for module in modules],
                [torch.get_rng_state(), hash(random.getstate()), np.random.get_state()[1].tobytes()],
                [path.name for path in self.folder.rglob("[!.]*") if path.is_file()],  # the lock of a run is hidden
            ]
        )


def _listed(given: Any) -> Iterable[Any]:
    return given if isinstance(given, (list, tuple)) else [given]


def _plain(value: Any) -> Any:
    """Tensors as their bytes, so that states can be compared bit for bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


class TwoValues(nn.Module):
    """A model that returns its features too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).tanh()
        return features, self.fc(features)


class WithoutLayer(nn.Module):
    """A model whose head is an ``@``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class TwoHeads(nn.Module):
    """A model with two layers of three outputs, of which it uses the first a given number of times."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.first, self.second, self.times = nn.Linear(8, 3), nn.Linear(8, 3), times

    def forward(self, x: Tensor) -> Tensor:
        return sum((self.first(x) for _ in range(self.times)), torch.zeros(()))


class Generator(nn.Module):
    """A generator of the user's own."""

    def __init__(self, ending: Callable[[Tensor], Any], outputs: int = 6) -> None:
        super().__init__()
        self.body, self.ending = nn.Linear(8, outputs), ending

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.ending(self.body(x))


class Endless(IterableDataset[Any]):
    """A dataset without a length."""

    def __iter__(self) -> Any:
        return iter([(torch.randn(8), 0)])


class Untrainable(LabelSource):
    """A source that says that it trains a generator, and does not."""

    trains_generator = True

    def network_step(
        self, maxl: AuxiliaryLabelGenerator, batch: Any, optimizer: Optimizer, **options: Any
    ) -> StepResult:
        return maxl.network_step(*batch[:2], optimizer, **options)


def frozen(part: str) -> Callable[[Bench], Any]:
    """Freezes a network of the learner."""
    return lambda b: getattr(b.maxl, part).requires_grad_(False) and None


def written(name: str, content: Any) -> Callable[[Bench], Any]:
    """Puts a file into the folder: a text, or what ``torch.save`` makes of anything else."""

    def write(b: Bench) -> None:
        path = b.folder / name
        path.write_text(content) if isinstance(content, str) else torch.save(content, path)

    return write


def kmeans(dataset: Any) -> Any:
    from maxl_l2l.kmeans import KMeansLabels

    return KMeansLabels().label(dataset, PSI)


def lightning(maxl: Any, **options: Any) -> Any:
    from maxl_l2l.lightning import LightningMAXL

    return LightningMAXL(maxl, **options)


def train_by_lightning(b: Bench, **options: Any) -> None:
    import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(max_epochs=1, accelerator="cpu", **quiet, **options).fit(lightning(b.maxl), b.loader)


# ---- words that several calls get

PSI_LIST = (
    "`psi` must be a list of integers, sub-classes per primary class, found {}. "
    "For 20 primary classes with 5 sub-classes each write psi=[5] * 20."
)
PSI_EMPTY = (
    "`psi` must have an entry for each primary class, found an empty list. "
    "For 20 primary classes with 5 sub-classes each write psi=[5] * 20."
)
PSI_KIND = "`psi` must hold integers, found {}. Each entry counts the sub-classes of one primary class."
PSI_SIZE = "`psi` must hold integers >= 1, found {}. Use 1 for a primary class that is not to be split."
NO_HEAD = (
    "`psi` must have an entry per model output: no linear layer or convolution with {} outputs was found, the last are "
    "{}. Make len(psi) the model's number of outputs, or pass num_features= for a backbone without a head."
)
MODULE = "`model` must be a torch.nn.Module, found {}. Pass the model itself, not its class."
HEAD = (
    "`head` must name a linear layer or convolution of the model, or a nn.Sequential that ends with one, found {}. "
    "{}The model has: '0', '4'."
)
NUM_FEATURES = (
    "`num_features` must be the width (>= 1) of a headless backbone's output, with the number of primary outputs and "
    "without `head`, found {}. Give `head` alone if the model has one."
)
GAMMA = "`gamma` must be {}. Use 2, as the paper does, or 0 for cross-entropy."
ENTROPY_WEIGHT = "`entropy_weight` must be {}. The paper's is 0.2."
INDICES = (
    "`{0}` must be an int64 tensor of {2} indices, found {1}. "
    "Convert it with torch.as_tensor({0}).long(), or {0}.argmax(dim=1) if it is one-hot."
)
PRIMARY = "primary class"
RANGE = "`{}` must hold {} indices in 0..{}, found {}. Check the labels, or psi if there are more classes."
TENSOR = "`{}` must be a tensor, found {}. Use torch.as_tensor."
SAMPLES = (
    "`{}` and `{}` must have the same number of samples, at least one, found shapes {} and {}. "
    "Give one label per sample."
)
DEVICE = "`{}` and `{}` must be on the same device, found {} and {}. Move both with .to(device)."
PER_SAMPLE = (
    "`y` must have shape [N], one class per sample, found {}. "
    "Labels per pixel need a model whose head is a convolution."
)
OPTIMIZER = (
    "`{}` must be a torch.optim.Optimizer, found {}. Make one with torch.optim.SGD(maxl.{}.parameters(), lr=0.01)."
)
OF_NETWORK = OPTIMIZER.format("optimizer", "{}", "network")
OF_GENERATOR = OPTIMIZER.format("generator_optimizer", "{}", "generator")
NETWORK_LACKS = (
    "`optimizer` must hold all 8 trainable parameters of the network, found {}; missing: {}. "
    "Make it with maxl.network.parameters()."
)
ALL_OF_NETWORK = "module.0.weight, module.0.bias, module.1.weight, module.1.bias, module.4.weight and 3 more"
GENERATOR_LACKS = (
    "`generator_optimizer` must hold all 6 trainable parameters of the generator, found 0; missing: body.0.weight, "
    "body.0.bias, body.1.weight, body.1.bias, body.4.weight and 1 more. Make it with maxl.generator.parameters()."
)
SWAPPED = " It holds those of the other network: perhaps two optimizers are swapped."
NETWORK_FOREIGN = (
    "`optimizer` must hold the parameters of the network alone, found the other network's too: body.0.weight, "
    "body.0.bias, body.1.weight, body.1.bias, body.4.weight and 1 more. "
    "Make it with maxl.network.parameters(), not maxl.parameters()."
)
GENERATOR_FOREIGN = (
    "`generator_optimizer` must hold the parameters of the generator alone, found the other network's too: "
    f"{ALL_OF_NETWORK}. Make it with maxl.generator.parameters(), not maxl.parameters()."
)
CLOSURE = "`{}` must take a step without a closure, found LBFGS. Use SGD or Adam, or a method like them."
FROZEN = (
    "`{}` must have parameters to train, found that all of the {}'s are frozen. "
    "Call requires_grad_(True) on some of them."
)
PAIR = "`meta_batch` must be a pair (x, y), found {}. Pass the samples and labels of the meta loss."
METHOD = (
    "`method` must be one of 'forward', 'finite-difference', 'unrolled', 'regularizer', found {}. "
    "'forward' is exact and needs no second derivatives."
)
EPSILON = "`epsilon` must be {}. Leave it out to have it chosen."
MICRO = "`micro_batches` must be {}. Use 1 to pass the whole batch at once."
CLIP = "`max_grad_norm` must be {}. Leave it out for no clipping."
SCALAR = (
    "`loss` must be a scalar with a graph, found {}. Pass learner.loss(x, y), without detach() and where gradients are "
    "enabled."
)
SCHEDULERS = (
    "`schedulers` must hold learning-rate schedulers, found {} at position 0. "
    "Write schedulers=[torch.optim.lr_scheduler.StepLR(optimizer, 10)]."
)
SCALER = "`scaler` must be an instance of GradScaler, found {}. Make it with torch.amp.GradScaler()."
ROWS = "`{}` must give a tensor with a target per sample, 6 in all, found {}. Give one row for each row of x."
SHAPE = "`{}` must give probabilities of shape [6, 6], found {}. There are sum(psi) = 6 classes in dimension 1."
PROBABILITIES = (
    "`{}` must give probabilities, non-negative and summing over dimension 1 to 1, found a lowest entry of {} and a "
    "sum of {}. End a generator with a softmax, or wrap its logits in LabelGenerator(body, psi)."
)
BLOCK = (
    "`{}` must lie in the block of their primary class, found label {} at position {}, where y is {} and the block is "
    "{}. Number the sub-classes block by block, as Hierarchy does."
)
LOGITS = (
    "{} must return its logits, as one tensor or under the name 'logits' (or 'out', in a dict), found a tuple of a "
    "tensor [6, 16], a tensor [6, {}]. Wrap it in a module whose forward returns the logits alone, "
    "`return self.model(x)[0]` for instance, or give a transformers model return_dict=True."
)
GENERATED_LOGITS = (
    "`generator` must give logits of shape [6, 6] before its softmax, found {}. Give its network sum(psi) = 6 outputs; "
    "if it is the default copy of the model, name the layer that produces the model's logits with head=."
)
ADAPT = "`adapt` needs all of the model's parameters to {}. Pass {}=True."
LEARNER = "`maxl` must be an instance of AuxiliaryLabelGenerator, found {}. {}"
NOT_WRAPPED = LEARNER.format("{}", "Wrap the model first: MAXL(model, psi).")
NO_LEARNER = LEARNER.format("{}", "Pass the learner, MAXL(model, psi).")
LOADER = "`{}` must yield batches (x, y), found {}. Pass a DataLoader."
BATCHES = (
    "`loader` must yield batches (x, y) or (x, y, label), found {}. "
    "Give DataLoader a dataset of such tuples; y are the classes."
)
NO_BATCH = "`{}` must yield at least one batch, found none. Check the dataset behind it."
USED_UP = (
    "`{}` must yield at least one batch, found none. Check the dataset behind it; an iterator that is used up is not a "
    "loader."
)
LABELLED = "`loader` must yield (x, y, label) for {}, found 2 elements. Make it from source.label(dataset, psi)."
SOURCE = "`source` must be an instance of LabelSource, found {}. Pass one such as GeneratedLabels()."
INTEGER = "an integer, found {}"
NUMBER = "a number, found {}"
FINITE = "a finite number {} 0, found {}"
NOT_FINITE = (
    "the primary loss is nan, as the input x is NaN in 6 of 6 samples, first in number 0; no parameter was updated "
    "with it. Check the data."
)
METRICS = (
    "`metrics` must be True, False or Metrics(...), found {}. Write metrics=Metrics(gradient_cosine=10) to choose."
)
LOGGER = (
    "`logger` must be a SummaryWriter of torch.utils.tensorboard, a logger of Lightning's, or a list of these, "
    "found {}. Write logger=SummaryWriter('runs/first')."
)
SETTINGS_KIND = '`settings` must be a mapping of names to plain data, found {}. Write settings={{"width": 0.5}}.'
SETTINGS_TAKEN = "`settings` must not name what is recorded anyway, found {}. Leave it out, or rename it."
SETTINGS_PLAIN = "`settings` must be plain data that JSON can hold, found that {}. Pass numbers, texts and lists."
HISTORIES = (
    "`histories` must {} of History, found {}. Pass what fit() returned, a list of such, or a mapping from titles to "
    "them."
)
NO_HISTORY = (
    "`histories` must have a finished epoch, or `maxl` and `loader` be given, found {}. "
    "Pass what fit() returned, or a trained learner and data for it."
)
NAMES = "`{}` must be a list of texts, found {}. Write ['cat', 'dog']."
DATASET = "`dataset` must have a length and items by index, found {}. Fixed labels need a map-style dataset."
DENSE = (
    "`dataset` must have one primary class per item for {}, found labels of shape {}. "
    "Give dense labels as targets= of network_step(), or write a LabelSource."
)
FLOATING = "`{}` must be a floating-point tensor, found {}. Use torch.as_tensor(...).float()."
FOUND_ZERO = "at least 1, found 0"
Y_FLOAT = INDICES.format("y", "torch.float32", PRIMARY)
Y_LIST = TENSOR.format("y", "list")
Y_HIGH = RANGE.format("y", PRIMARY, 2, 3)
EMPTY = SAMPLES.format("x", "y", [0, 8], [0])
SWAPPED_OPTIMIZERS = NETWORK_LACKS.format(0, ALL_OF_NETWORK) + SWAPPED
STRAY = BLOCK.format("targets", 1, 1, 1, "2..4")
NO_MICRO = MICRO.format(FOUND_ZERO)
FLAG = "`{}` must be True or False, found {{}}"
FOUND_TRUE = INTEGER.format("True (bool)")
FOUND_NONE = INTEGER.format("None (NoneType)")


# ---- the calls


@dataclass(frozen=True)
class BadCall:
    """A call that must fail.

    Attributes:
        target: The public name that is called.
        name: What is wrong with it, a sentence.
        call: Makes it.
        error: The exception that it raises, this class itself.
        words: All of its message; ``<folder>`` stands for the folder's path.
        given: Makes what the call is about, and is not part of it.
        needs: Packages that it needs besides torch and numpy.
    """

    target: str
    name: str
    call: Callable[[Bench], Any]
    error: type[BaseException]
    words: str
    given: Callable[[Bench], Any] = lambda b: None
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.target}: {self.name}"


Row = tuple[Any, ...]


def of(target: str, *rows: Row, needs: tuple[str, ...] = ()) -> list[BadCall]:
    """Calls of one public name, each with its name, call, error, words, and what is given."""
    return [BadCall(target, *row, needs=needs) for row in rows]


def of_argument(
    target: str, name: str, call: Callable[..., Any], words: str, needs: tuple[str, ...] = ()
) -> Callable[..., list[BadCall]]:
    """Makes calls of one public name that differ in one argument: its value in words, the value, the error, what is
    found."""

    def with_values(*values: Row) -> list[BadCall]:
        rows = [
            (f"{name} is {said}", called(value), error, words.format(found)) for said, value, error, found in values
        ]
        return of(target, *rows, needs=needs)

    def called(value: Any) -> Callable[[Bench], Any]:
        return lambda b: call(b, **{name: value})

    return with_values


def of_maxl(b: Bench, **options: Any) -> MAXL:
    return MAXL(b.model, PSI, **options)


HIERARCHY = [
    *of_argument("Hierarchy", "psi", lambda b, psi: Hierarchy(psi), PSI_LIST)(
        ("a number", 5, TypeError, "5"),
        ("a text", "5, 5", TypeError, "'5, 5'"),
        ("bytes", b"55", TypeError, "b'55'"),
        ("a tensor without dimensions", torch.tensor(5), TypeError, "tensor(5)"),
        ("missing", None, TypeError, "None"),
    ),
    *of_argument("Hierarchy", "psi", lambda b, psi: Hierarchy(psi), PSI_KIND)(
        ("a list of floats", [2, 2.5], TypeError, "2.5 (float) at position 1"),
        ("a list with NaN", [NAN, 2], TypeError, "nan (float) at position 0"),
        ("a list of texts", ["5"], TypeError, "'5' (str) at position 0"),
        ("a list of lists", [[2, 3], [1]], TypeError, "[2, 3] (list) at position 0"),
        ("a list of switches", [2, True], TypeError, "True (bool) at position 1"),
        ("a list with a gap", [2, None], TypeError, "None (NoneType) at position 1"),
        ("a tensor of floats", torch.tensor([2.0]), TypeError, "tensor(2.) (Tensor) at position 0"),
    ),
    *of_argument("Hierarchy", "psi", lambda b, psi: Hierarchy(psi), PSI_SIZE)(
        ("negative somewhere", [2, -1], ValueError, "-1 at position 1"),
        ("zero somewhere", [0, 2], ValueError, "0 at position 0"),
    ),
    *of(
        "Hierarchy",
        ("psi is empty", lambda b: Hierarchy([]), ValueError, PSI_EMPTY),
        (
            "a block is asked for of a class too many",
            lambda b: Hierarchy(PSI).block(3),
            ValueError,
            "`primary` must be a class in 0..2, found 3. psi has 3 entries.",
        ),
        (
            "a block is asked for from the end",
            lambda b: Hierarchy(PSI).block(-1),
            ValueError,
            "`primary` must be a class in 0..2, found -1. psi has 3 entries.",
        ),
        ("a mask is of a list", lambda b: Hierarchy(PSI).mask([0, 1]), TypeError, INDICES.format("y", "list", PRIMARY)),
        (
            "a mask is of an array",
            lambda b: Hierarchy(PSI).mask(np.array([0, 1])),
            TypeError,
            INDICES.format("y", "ndarray", PRIMARY),
        ),
        (
            "a mask is of a class too many",
            lambda b: Hierarchy([2, 3]).mask(b.y),
            ValueError,
            RANGE.format("y", PRIMARY, 1, 2),
        ),
        (
            "labels are fewer than classes",
            lambda b: Hierarchy(PSI).check_auxiliary(b.labels[:2], b.y),
            ValueError,
            "`labels` must have the shape of `y`, [6], found [2]. Give one auxiliary class per primary label.",
        ),
        (
            "labels are another class's",
            lambda b: Hierarchy(PSI).check_auxiliary(b.labels.flip(0), b.y),
            ValueError,
            BLOCK.format("labels", 4, 0, 0, "0..1"),
        ),
        (
            "labels are too many for psi",
            lambda b: Hierarchy(PSI).check_auxiliary(b.labels + 1, b.y),
            ValueError,
            RANGE.format("labels", "auxiliary class", 5, 6),
        ),
    ),
]

LEARNERS = [
    *of_argument("MAXL", "model", lambda b, model: MAXL(model, PSI), MODULE)(
        ("a class", nn.Linear, TypeError, "type"),
        ("a name", "resnet18", TypeError, "str"),
        ("missing", None, TypeError, "NoneType"),
        ("a function", torch.relu, TypeError, "builtin_function_or_method"),
        ("a list of layers", [nn.Linear(8, 3)], TypeError, "list"),
    ),
    *of_argument("MAXL", "psi", lambda b, psi: MAXL(b.model, psi), "{}")(
        ("a number", 5, TypeError, PSI_LIST.format(5)),
        ("a text", "555", TypeError, PSI_LIST.format("'555'")),
        ("empty", [], ValueError, PSI_EMPTY),
        ("zero somewhere", [2, 0, 1], ValueError, PSI_SIZE.format("0 at position 1")),
        ("a float somewhere", [2, 3.0, 1], TypeError, PSI_KIND.format("3.0 (float) at position 1")),
        (
            "an array of floats",
            np.array([2.0, 3, 1]),
            TypeError,
            PSI_KIND.format("np.float64(2.0) (float64) at position 0"),
        ),
        ("too long", [5] * 4, ValueError, NO_HEAD.format(4, "'0' (16 outputs), '4' (3 outputs)")),
        ("too short", Hierarchy([5, 5]), ValueError, NO_HEAD.format(2, "'0' (16 outputs), '4' (3 outputs)")),
    ),
    *of_argument("MAXL", "head", lambda b, head: MAXL(b.model, PSI, head=head), "{}")(
        ("no layer", "fc", ValueError, HEAD.format("no such layer at 'fc'", "")),
        ("a parameter", "4.weight", ValueError, HEAD.format("no such layer at '4.weight'", "")),
        ("a number", 4, ValueError, HEAD.format("no such layer at 4", "")),
        ("an activation", "3", ValueError, HEAD.format("a Tanh at '3'", "")),
        ("a normalisation", "1", ValueError, HEAD.format("a BatchNorm1d at '1'", "")),
        (
            "a hidden layer",
            "0",
            ValueError,
            "`psi` must have an entry per model output: it has 3, the head '0' has 16 outputs. "
            "Give psi 16 entries, or name another head.",
        ),
        (
            "the whole model",
            "",
            ValueError,
            "`head` must leave parameters of the model for both tasks to share, found all of them in ''. "
            "Name a later part of it, for example the layer '4'.",
        ),
    ),
    *of_argument(
        "MAXL", "num_features", lambda b, num_features: MAXL(b.model, PSI, num_features=num_features), NUM_FEATURES
    )(
        ("zero", 0, ValueError, "0, 3 and None"),
        ("negative", -16, ValueError, "-16, 3 and None"),
        ("a text", "16", ValueError, "'16', 3 and None"),
        ("a float", 16.0, ValueError, "16.0, 3 and None"),
    ),
    *of_argument("MAXL", "gamma", lambda b, gamma: MAXL(b.model, PSI, gamma=gamma), GAMMA)(
        ("negative", -1, ValueError, FINITE.format(">=", -1)),
        ("NaN", NAN, ValueError, FINITE.format(">=", NAN)),
        ("a text", "2", TypeError, NUMBER.format("'2' (str)")),
        ("a switch", True, TypeError, NUMBER.format("True (bool)")),
    ),
    *of_argument(
        "MAXL",
        "entropy_weight",
        lambda b, entropy_weight: MAXL(b.model, PSI, entropy_weight=entropy_weight),
        ENTROPY_WEIGHT,
    )(
        ("negative", -0.2, ValueError, FINITE.format(">=", -0.2)),
        ("infinite", float("inf"), ValueError, FINITE.format(">=", "inf")),
        ("missing", None, TypeError, NUMBER.format("None (NoneType)")),
    ),
    *of_argument("MAXL", "lr", of_maxl, "`lr` must be {}. It is the step size of adapt().")(
        ("negative", -0.1, ValueError, FINITE.format(">=", -0.1)),
        ("a text", "0.1", TypeError, NUMBER.format("'0.1' (str)")),
    ),
    *of_argument("MAXL", "weighted", of_maxl, FLAG.format("weighted"))(
        ("a word", "no", TypeError, "'no'. It says whether the generator learns a weight for each sample."),
    ),
    *of_argument("MAXL", "first_order", of_maxl, FLAG.format("first_order"))(
        ("a word", "no", TypeError, "'no'. It says whether adapt() drops second derivatives."),
        ("missing", None, TypeError, "None. It says whether adapt() drops second derivatives."),
    ),
    *of_argument("MAXL", "allow_unused", of_maxl, FLAG.format("allow_unused"))(
        ("a word", "no", TypeError, "'no'. It says whether adapt() accepts unused parameters."),
    ),
    *of_argument("MAXL", "allow_nograd", of_maxl, FLAG.format("allow_nograd"))(
        ("a number", 1, TypeError, "1. It says whether adapt() accepts frozen parameters."),
    ),
    *of(
        "MAXL",
        (
            "the model is spread over devices",
            lambda b: MAXL(b.given, PSI),
            TypeError,
            "`model` must be the model itself, found DataParallel around it, which does not reduce the hypergradient. "
            "Pass its .module, and call maxl.distribute() in each process.",
            lambda b: nn.DataParallel(b.model),
        ),
        (
            "the model is lazy",
            lambda b: MAXL(b.given["model"], PSI),
            ValueError,
            "`model` must have all of its parameters, found lazy ones that have no shape yet: weight, bias. "
            "Call the model once on a batch first.",
            lambda b: {"model": nn.LazyLinear(3)},  # in a mapping, as it has no state yet
        ),
        (
            "the model's head is no layer",
            lambda b: MAXL(b.given, PSI),
            ValueError,
            NO_HEAD.format(3, "no linear layer or convolution"),
            lambda b: WithoutLayer(),
        ),
        (
            "two layers may be the head",
            lambda b: MAXL(b.given, PSI),
            ValueError,
            "`head` must be named, as 2 layers have 3 outputs: 'first', 'second'. "
            "Pass the one that gives the logits, for example head='second'.",
            lambda b: TwoHeads(),
        ),
        (
            "the head ends with a softmax",
            lambda b: MAXL(b.given, PSI, head="1"),
            ValueError,
            "`head` must name a linear layer or convolution of the model, or a nn.Sequential that ends with one, found "
            "one that ends with Linear, Softmax at '1'. Name what gives the logits: the losses take their softmax "
            "themselves. The model has: '0', '1.0'.",
            lambda b: nn.Sequential(nn.Linear(8, 9), nn.Sequential(nn.Linear(9, 3), nn.Softmax(1))),
        ),
        (
            "both head and num_features are given",
            lambda b: MAXL(b.model, PSI, head="4", num_features=16),
            ValueError,
            NUM_FEATURES.format("16, 3 and '4'"),
        ),
        (
            "the generator has another psi",
            lambda b: MAXL(b.model, PSI, generator=b.given),
            ValueError,
            "`generator` must have psi [2, 3, 1] and weighted=False, found [3, 3] and False. "
            "Make it with the same options as MAXL.",
            lambda b: LabelGenerator(nn.Linear(8, 6), [3, 3]),
        ),
        (
            "the generator alone is weighted",
            lambda b: MAXL(b.model, PSI, generator=b.given),
            ValueError,
            "`generator` must have psi [2, 3, 1] and weighted=False, found [2, 3, 1] and True. "
            "Make it with the same options as MAXL.",
            lambda b: LabelGenerator(nn.Linear(8, 7), PSI, weighted=True),
        ),
    ),
    *of_argument(
        "AuxiliaryLabelGenerator",
        "num_outputs",
        lambda b, num_outputs: AuxiliaryLabelGenerator(b.model, nn.Identity(), num_outputs),
        "`num_outputs` must be {}. Count the auxiliary outputs.",
    )(
        ("zero", 0, ValueError, FOUND_ZERO),
        ("a text", "4", TypeError, INTEGER.format("'4' (str)")),
        ("a float", 4.0, TypeError, INTEGER.format("4.0 (float)")),
        ("a switch", True, TypeError, FOUND_TRUE),
    ),
    *of(
        "AuxiliaryLabelGenerator",
        ("the model is a number", lambda b: AuxiliaryLabelGenerator(4, b.model, 4), TypeError, MODULE.format("int")),
        (
            "num_primary is no layer's",
            lambda b: AuxiliaryLabelGenerator(b.model, nn.Identity(), 4, num_primary=7),
            ValueError,
            NO_HEAD.format(7, "'0' (16 outputs), '4' (3 outputs)"),
        ),
        (
            "num_features is without num_primary",
            lambda b: AuxiliaryLabelGenerator(b.model, nn.Identity(), 4, num_features=16),
            ValueError,
            NUM_FEATURES.format("16, None and None"),
        ),
        (
            "there is no regularizer to learn from",
            lambda b: b.given.hypergradient(b.x, b.y, method="regularizer"),
            ValueError,
            "`method` 'regularizer' needs a regularizer, found None. Pass regularizer= when you build it.",
            lambda b: AuxiliaryLabelGenerator(b.model, Generator(lambda z: z.softmax(1)), 6),
        ),
        (
            "y is a list",
            lambda b: b.given.loss(b.x, b.y.tolist()),
            TypeError,
            Y_LIST,
            lambda b: AuxiliaryLabelGenerator(b.model, Generator(lambda z: z.softmax(1)), 6),
        ),
    ),
]

NETWORKS = [
    *of(
        "LabelGenerator",
        ("psi is a number", lambda b: LabelGenerator(b.model, 6), TypeError, PSI_LIST.format(6)),
        (
            "psi is zero somewhere",
            lambda b: LabelGenerator(b.model, [0, 6]),
            ValueError,
            PSI_SIZE.format("0 at position 0"),
        ),
        (
            "its network has an output too many",
            lambda b: b.given(b.x, b.y),
            ValueError,
            GENERATED_LOGITS.format([6, 7]),
            lambda b: LabelGenerator(nn.Linear(8, 7), PSI),
        ),
        (
            "its network returns two values",
            lambda b: b.given(b.x, b.y),
            TypeError,
            LOGITS.format("`generator`, or the `model` that it is a copy of,", 3),
            lambda b: LabelGenerator(TwoValues(), PSI),
        ),
    ),
    *of(
        "MultiTaskNetwork",
        (
            "the model has another number of outputs",
            lambda b: b.given(b.x),
            ValueError,
            "`psi` must have an entry per model output: it has 5, the model returned [6, 3]. Give psi as many entries "
            "as the model has classes, or name the layer that produces the logits with head= (it is taken to be '').",
            lambda b: MultiTaskNetwork(nn.Linear(8, 3), nn.Linear(8, 6), num_primary=5),
        ),
        (
            "the head runs twice",
            lambda b: b.given(b.x),
            RuntimeError,
            "`head` must run once in a forward pass, but 'first' ran 2 times. "
            "Name the layer that produces the primary logits with head=.",
            lambda b: MultiTaskNetwork(TwoHeads(times=2), nn.Linear(8, 6), "first"),
        ),
        (
            "the head does not run",
            lambda b: b.given(b.x),
            RuntimeError,
            "`head` must run once in a forward pass, but 'second' ran 0 times. "
            "Name the layer that produces the primary logits with head=.",
            lambda b: MultiTaskNetwork(TwoHeads(), nn.Linear(8, 6), "second"),
        ),
        (
            "the model returns two values",
            lambda b: b.given(b.x),
            TypeError,
            LOGITS.format("`model`", 3),
            lambda b: MultiTaskNetwork(TwoValues(), nn.Linear(16, 6), "fc"),
        ),
        (
            "the backbone returns two values",
            lambda b: b.given(b.x),
            TypeError,
            "`model` must return its features, as one tensor, found a tuple of a tensor [6, 16], a tensor [6, 3]. Wrap "
            "it in a module whose forward returns the features alone, `return self.model(x)[0]` for instance, or give "
            "a transformers model return_dict=True.",
            lambda b: MultiTaskNetwork(TwoValues(), nn.Linear(16, 6), primary_head=nn.Linear(16, 3)),
        ),
    ),
]


def own_generator(ending: Callable[[Tensor], Any], outputs: int = 6) -> Callable[[Bench], MAXL]:
    """A learner with a generator of the user's own."""
    return lambda b: MAXL(b.model, PSI, generator=Generator(ending, outputs))


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits * 0 + value


GENERATORS = of(
    "MAXL.step",
    (
        "the generator has an output too few",
        Bench.step_given,
        ValueError,
        SHAPE.format("generator", [6, 5]),
        own_generator(lambda z: z.softmax(1), 5),
    ),
    (
        "the generator gives logits",
        Bench.step_given,
        ValueError,
        PROBABILITIES.format("generator", -1, -6),
        own_generator(constant(-1)),
    ),
    (
        "the generator gives a sigmoid",
        Bench.step_given,
        ValueError,
        PROBABILITIES.format("generator", 0.5, 3),
        own_generator(lambda z: (z * 0).sigmoid()),
    ),
    (
        "the generator gives classes",
        Bench.step_given,
        ValueError,
        "`generator` must give floating-point probabilities, found torch.int64. End it with a softmax.",
        own_generator(lambda z: z.argmax(1)),
    ),
    (
        "the generator's labels are detached",
        Bench.step_given,
        ValueError,
        "`generator` must return targets that depend on its parameters, found targets without a graph. "
        "Compute them without detach(), no_grad() or argmax().",
        own_generator(lambda z: z.softmax(1).detach()),
    ),
    (
        "the generator returns nothing",
        Bench.step_given,
        ValueError,
        ROWS.format("generator", "NoneType"),
        own_generator(lambda z: None),
    ),
    (
        "the generator returns two values",
        Bench.step_given,
        ValueError,
        ROWS.format("generator", "tuple"),
        own_generator(lambda z: (z.softmax(1), z)),
    ),
    (
        "the generator returns an array",
        Bench.step_given,
        ValueError,
        ROWS.format("generator", "ndarray"),
        own_generator(lambda z: z.softmax(1).detach().numpy()),
    ),
    (
        "the generator returns one row",
        Bench.step_given,
        ValueError,
        ROWS.format("generator", [1, 6]),
        own_generator(lambda z: z.softmax(1)[:1]),
    ),
    (
        "the model returns two values",
        Bench.step_given,
        TypeError,
        LOGITS.format("`generator`, or the `model` that it is a copy of,", 6),
        lambda b: MAXL(TwoValues(), PSI),
    ),
    (
        "the head named is not the model's",
        Bench.step_given,
        ValueError,
        GENERATED_LOGITS.format([6, 3]),
        lambda b: MAXL(TwoHeads(), PSI, head="second"),
    ),
    (
        "the model's head runs twice",
        Bench.step_given,
        RuntimeError,
        "`head` must run once in a forward pass, but 'first' ran 2 times. "
        "Name the layer that produces the primary logits with head=.",
        lambda b: MAXL(TwoHeads(times=2), PSI, head="first"),
    ),
)

BATCH = [
    *of_argument("MAXL.step", "y", Bench.step, "{}")(
        ("a list", [0] * 6, TypeError, Y_LIST),
        ("an array", np.zeros(6, int), TypeError, TENSOR.format("y", "ndarray")),
        ("missing", None, TypeError, TENSOR.format("y", "NoneType")),
        ("a single number", 1, TypeError, TENSOR.format("y", "int")),
        ("float", torch.zeros(6), TypeError, Y_FLOAT),
        ("int32", torch.zeros(6, dtype=torch.int32), TypeError, INDICES.format("y", "torch.int32", PRIMARY)),
        ("a switch per sample", torch.ones(6) > 0, TypeError, INDICES.format("y", "torch.bool", PRIMARY)),
        ("one-hot and float", torch.ones(6, 3), TypeError, Y_FLOAT),
        ("one-hot", torch.ones(6, 3).long(), ValueError, PER_SAMPLE.format([6, 3])),
        ("a column", torch.zeros(6, 1).long(), ValueError, PER_SAMPLE.format([6, 1])),
        ("a map of pixels", torch.zeros(6, 2, 2).long(), ValueError, PER_SAMPLE.format([6, 2, 2])),
        ("counted from 1", torch.tensor([1, 2, 3, 1, 2, 2]), ValueError, Y_HIGH),
        ("negative", torch.tensor([0, -1, 2, 0, 1, 1]), ValueError, RANGE.format("y", PRIMARY, 2, -1)),
        ("marked to be ignored", torch.tensor([0, -100, 2, 0, 1, 1]), ValueError, RANGE.format("y", PRIMARY, 2, -100)),
        ("too short", torch.zeros(4).long(), ValueError, SAMPLES.format("x", "y", [6, 8], [4])),
        ("without dimensions", torch.tensor(1), ValueError, SAMPLES.format("x", "y", [6, 8], [])),
        ("elsewhere", torch.zeros(6, device="meta").long(), ValueError, DEVICE.format("x", "y", "cpu", "meta")),
    ),
    *of_argument("MAXL.step", "x", Bench.step, "{}")(
        ("too short", torch.randn(4, 8), ValueError, SAMPLES.format("x", "y", [4, 8], [6])),
        ("one sample, not a batch", torch.randn(8), ValueError, SAMPLES.format("x", "y", [8], [6])),
        ("without dimensions", torch.tensor(1.0), ValueError, SAMPLES.format("x", "y", [], [6])),
        ("elsewhere", torch.ones(6, 8, device="meta"), ValueError, DEVICE.format("x", "y", "meta", "cpu")),
        (
            "a mapping that is too short",
            {"input": torch.ones(2, 8)},
            ValueError,
            SAMPLES.format("x['input']", "y", [2, 8], [6]),
        ),
        ("NaN", torch.full((6, 8), NAN), NonFiniteError, NOT_FINITE),
    ),
    *of(
        "MAXL.step",
        ("the batch is empty", lambda b: b.step(x=b.x[:0], y=b.y[:0]), ValueError, EMPTY),
        ("x and y are swapped", lambda b: b.step(x=b.y, y=b.x), TypeError, Y_FLOAT),
        ("y are the sub-classes", lambda b: b.step(y=b.labels), ValueError, RANGE.format("y", PRIMARY, 2, 5)),
        (
            "x can't be split",
            lambda b: b.step(x=b.x.tolist(), micro_batches=2),
            TypeError,
            "`micro_batches` needs an x that can be split, a tensor or a mapping of tensors, found list. "
            "Use micro_batches=1.",
        ),
    ),
]

OPTIMIZERS = [
    *of_argument("MAXL.step", "optimizer", Bench.step, OF_NETWORK)(
        ("a name", "sgd", TypeError, "str"),
        ("missing", None, TypeError, "NoneType"),
        ("a learning rate", 0.1, TypeError, "float"),
        ("a class", SGD, TypeError, "type"),
    ),
    *of_argument("MAXL.step", "generator_optimizer", Bench.step, OF_GENERATOR)(
        ("a name", "adam", TypeError, "str"),
        ("missing", None, TypeError, "NoneType"),
        ("a class", Adam, TypeError, "type"),
    ),
    *of(
        "MAXL.step",
        (
            "the scheduler is passed for the optimizer",
            lambda b: b.step(optimizer=b.given),
            TypeError,
            OPTIMIZER.format("optimizer", "StepLR", "network"),
            lambda b: StepLR(b.optimizer, 1),
        ),
        (
            "the optimizers are swapped",
            lambda b: b.maxl.step(b.x, b.y, b.generator_optimizer, b.optimizer),
            ValueError,
            SWAPPED_OPTIMIZERS,
        ),
        (
            "the network's optimizer is passed twice",
            lambda b: b.maxl.step(b.x, b.y, b.optimizer, b.optimizer),
            ValueError,
            GENERATOR_LACKS + SWAPPED,
        ),
        (
            "the optimizer is of the user's model",
            lambda b: b.step(optimizer=SGD(b.model.parameters(), lr=0.1)),
            ValueError,
            NETWORK_LACKS.format(6, "auxiliary_head.weight, auxiliary_head.bias"),
        ),
        (
            "the optimizer is of the head",
            lambda b: b.step(optimizer=SGD(b.model[4].parameters(), lr=0.1)),
            ValueError,
            NETWORK_LACKS.format(
                2, "module.0.weight, module.0.bias, module.1.weight, module.1.bias, auxiliary_head.weight and 1 more"
            ),
        ),
        (
            "the optimizer is of another learner",
            lambda b: b.step(optimizer=SGD(b.given.network.parameters(), lr=0.1)),
            ValueError,
            NETWORK_LACKS.format(0, ALL_OF_NETWORK),
            lambda b: MAXL(classifier(), PSI),
        ),
        (
            "the generator's optimizer is of another learner",
            lambda b: b.step(generator_optimizer=SGD(b.given.generator.parameters(), lr=0.1)),
            ValueError,
            GENERATOR_LACKS,
            lambda b: MAXL(classifier(), PSI),
        ),
        (
            "the optimizer is of both networks",
            lambda b: b.step(optimizer=SGD(b.maxl.parameters(), lr=0.1)),
            ValueError,
            NETWORK_FOREIGN,
        ),
        (
            "the generator's optimizer is of both networks",
            lambda b: b.step(generator_optimizer=SGD(b.maxl.parameters(), lr=0.1)),
            ValueError,
            GENERATOR_FOREIGN,
        ),
        (
            "the optimizer is LBFGS",
            lambda b: b.step(optimizer=LBFGS(b.maxl.network.parameters())),
            TypeError,
            CLOSURE.format("optimizer"),
        ),
        (
            "the generator's optimizer is LBFGS",
            lambda b: b.step(generator_optimizer=LBFGS(b.maxl.generator.parameters())),
            TypeError,
            CLOSURE.format("generator_optimizer"),
        ),
        (
            "the optimizer can't be differentiated",
            lambda b: b.step(optimizer=SparseAdam(b.maxl.network.parameters())),
            TypeError,
            "`optimizer` must be of a kind whose step can be differentiated: Adadelta, Adagrad, Adam, AdamW, NAdam, "
            "RAdam, RMSprop, SGD, or one with torch.optim's option `differentiable`; found SparseAdam, which lacks it. "
            "Use one of these for the network; the generator's can be any.",
        ),
        ("the network is frozen", Bench.step, ValueError, FROZEN.format("optimizer", "network"), frozen("network")),
        (
            "the generator is frozen",
            Bench.step,
            ValueError,
            FROZEN.format("generator_optimizer", "generator"),
            frozen("generator"),
        ),
    ),
]

OPTIONS = [
    *of_argument("MAXL.step", "meta_batch", Bench.step, PAIR)(
        ("x alone", torch.ones(6, 8), TypeError, "Tensor"),
        ("a triple", (1, 2, 3), TypeError, "tuple"),
        ("a mapping", {"x": 1, "y": 2}, TypeError, "dict"),
        ("the word that fit takes", "next", TypeError, "str"),
        ("an iterator", iter([]), TypeError, "list_iterator"),
        ("a switch", True, TypeError, "bool"),
    ),
    *of(
        "MAXL.step",
        (
            "the meta batch has float labels",
            lambda b: b.step(meta_batch=(b.x, b.y.float())),
            TypeError,
            INDICES.format("meta_batch[1]", "torch.float32", PRIMARY),
        ),
        (
            "the meta batch has a class too many",
            lambda b: b.step(meta_batch=(b.x, b.y + 1)),
            ValueError,
            RANGE.format("meta_batch[1]", PRIMARY, 2, 3),
        ),
        (
            "the meta batch lacks labels",
            lambda b: b.step(meta_batch=(b.x, b.y[:2])),
            ValueError,
            SAMPLES.format("meta_batch[0]", "meta_batch[1]", [6, 8], [2]),
        ),
        (
            "the meta batch is elsewhere",
            lambda b: b.step(meta_batch=(b.x.to("meta"), b.y)),
            ValueError,
            DEVICE.format("meta_batch[0]", "meta_batch[1]", "meta", "cpu"),
        ),
    ),
    *of_argument("MAXL.step", "method", Bench.step, METHOD)(
        ("misspelt", "forwards", ValueError, "'forwards'"),
        ("in capitals", "Forward", ValueError, "'Forward'"),
        ("missing", None, ValueError, "None"),
        ("a list", ["forward"], ValueError, "['forward']"),
    ),
    *of_argument("MAXL.step", "epsilon", Bench.step, EPSILON)(
        ("zero", 0, ValueError, FINITE.format(">", 0)),
        ("negative", -0.001, ValueError, FINITE.format(">", -0.001)),
        ("NaN", NAN, ValueError, FINITE.format(">", NAN)),
        ("a text", "small", TypeError, NUMBER.format("'small' (str)")),
    ),
    *of_argument("MAXL.step", "micro_batches", Bench.step, MICRO)(
        ("zero", 0, ValueError, FOUND_ZERO),
        ("negative", -2, ValueError, "at least 1, found -2"),
        ("a float", 2.0, TypeError, INTEGER.format("2.0 (float)")),
        ("a text", "4", TypeError, INTEGER.format("'4' (str)")),
        ("a switch", True, TypeError, FOUND_TRUE),
        ("missing", None, TypeError, FOUND_NONE),
    ),
    *of_argument("MAXL.step", "max_grad_norm", Bench.step, CLIP)(
        ("zero", 0, ValueError, FINITE.format(">", 0)),
        ("negative", -1, ValueError, FINITE.format(">", -1)),
        ("NaN", NAN, ValueError, FINITE.format(">", NAN)),
        ("infinite", float("inf"), ValueError, FINITE.format(">", "inf")),
        ("a text", "1.0", TypeError, NUMBER.format("'1.0' (str)")),
        ("a tensor", torch.tensor(1.0), TypeError, NUMBER.format("tensor(1.) (Tensor)")),
    ),
    *of_argument("MAXL.step", "scaler", Bench.step, SCALER)(
        ("a switch", True, TypeError, "bool"),
        ("a scale", 1024, TypeError, "int"),
        ("a class", torch.amp.GradScaler, TypeError, "the class GradScaler"),
    ),
]

TARGETS = of_argument("MAXL.network_step", "targets", Bench.network_step, "{}")(
    ("a list", [0, 2, 5, 1, 3, 4], ValueError, ROWS.format("targets", "list")),
    ("a name", "human", ValueError, ROWS.format("targets", "str")),
    ("too short", torch.tensor([0, 2]), ValueError, ROWS.format("targets", [2])),
    ("the primary classes", torch.tensor([0, 1, 2, 0, 1, 1]), ValueError, STRAY),
    ("beyond psi", torch.tensor([0, 2, 6, 1, 3, 4]), ValueError, RANGE.format("targets", "auxiliary class", 5, 6)),
    ("negative", torch.tensor([0, 2, -1, 1, 3, 4]), ValueError, RANGE.format("targets", "auxiliary class", 5, -1)),
    ("float classes", torch.tensor([0.0, 2, 5, 1, 3, 4]), ValueError, SHAPE.format("targets", [6])),
    ("of another width", torch.ones(6, 5) / 5, ValueError, SHAPE.format("targets", [6, 5])),
    ("counts", torch.ones(6, 6), ValueError, PROBABILITIES.format("targets", 1, 6)),
    ("NaN", torch.full((6, 6), NAN), ValueError, PROBABILITIES.format("targets", NAN, NAN)),
    (
        "int32",
        torch.tensor([0, 2, 5, 1, 3, 4], dtype=torch.int32),
        TypeError,
        INDICES.format("targets", "torch.int32", "auxiliary class"),
    ),
    (
        "one-hot",
        F.one_hot(torch.tensor([0, 2, 5, 1, 3, 4])),
        ValueError,
        "`targets` must have the shape of `y`, [6], found [6, 6]. Give one auxiliary class per primary label.",
    ),
)

STEPS = [
    *of(
        "MAXL.network_step",
        (
            "the optimizer is the generator's",
            lambda b: b.network_step(optimizer=b.generator_optimizer),
            ValueError,
            SWAPPED_OPTIMIZERS,
        ),
        ("micro_batches is zero", lambda b: b.network_step(micro_batches=0), ValueError, NO_MICRO),
        (
            "max_grad_norm is NaN",
            lambda b: b.network_step(max_grad_norm=NAN),
            ValueError,
            CLIP.format(FINITE.format(">", NAN)),
        ),
        ("scaler is a number", lambda b: b.network_step(scaler=1), TypeError, SCALER.format("int")),
        ("y is float", lambda b: b.network_step(y=b.y.float()), TypeError, Y_FLOAT),
        ("x is NaN", lambda b: b.network_step(x=b.x * NAN), NonFiniteError, NOT_FINITE),
    ),
    *of(
        "MAXL.generator_step",
        (
            "the optimizers are swapped",
            lambda b: b.maxl.generator_step(b.x, b.y, b.generator_optimizer, b.optimizer),
            ValueError,
            SWAPPED_OPTIMIZERS,
        ),
        (
            "the generator's optimizer is missing",
            lambda b: b.maxl.generator_step(b.x, b.y, b.optimizer, None),
            TypeError,
            OPTIMIZER.format("generator_optimizer", "NoneType", "generator"),
        ),
        (
            "the optimizer is a name",
            lambda b: b.maxl.generator_step(b.x, b.y, "sgd", b.generator_optimizer),
            TypeError,
            OPTIMIZER.format("optimizer", "str", "network"),
        ),
        (
            "the method is unknown",
            lambda b: b.maxl.generator_step(b.x, b.y, *b.optimizers, method="adjoint"),
            ValueError,
            METHOD.format("'adjoint'"),
        ),
        (
            "the meta batch is x alone",
            lambda b: b.maxl.generator_step(b.x, b.y, *b.optimizers, meta_batch=b.x),
            TypeError,
            PAIR.format("Tensor"),
        ),
    ),
    *of(
        "MAXL.hypergradient",
        (
            "the optimizer is a name",
            lambda b: b.maxl.hypergradient(b.x, b.y, optimizer="adam"),
            TypeError,
            OPTIMIZER.format("optimizer", "str", "network"),
        ),
        (
            "the optimizer is the generator's",
            lambda b: b.maxl.hypergradient(b.x, b.y, optimizer=b.generator_optimizer),
            ValueError,
            SWAPPED_OPTIMIZERS,
        ),
        (
            "the method is unknown",
            lambda b: b.maxl.hypergradient(b.x, b.y, method="exact"),
            ValueError,
            METHOD.format("'exact'"),
        ),
        (
            "the learner is a clone",
            lambda b: b.given.hypergradient(b.x, b.y),
            ValueError,
            "`hypergradient` needs a learner with parameters of its own, found a clone's, which are functions of "
            "others. Call it on the learner that was cloned, or meta_loss(x, y).backward() on the clone.",
            lambda b: b.maxl.clone(),
        ),
        ("y is a list", lambda b: b.maxl.hypergradient(b.x, b.y.tolist()), TypeError, Y_LIST),
        ("x is NaN", lambda b: b.maxl.hypergradient(b.x * NAN, b.y), NonFiniteError, NOT_FINITE),
    ),
    *of(
        "MAXL.gradient_cosine",
        (
            "the targets are of other classes",
            lambda b: b.maxl.gradient_cosine(b.x, b.y, targets=b.y),
            ValueError,
            STRAY,
        ),
        (
            "the labels are too few",
            lambda b: b.maxl.gradient_cosine(b.x, b.y[:2]),
            ValueError,
            SAMPLES.format("x", "y", [6, 8], [2]),
        ),
        ("micro_batches is zero", lambda b: b.maxl.gradient_cosine(b.x, b.y, micro_batches=0), ValueError, NO_MICRO),
    ),
]

INNER_LOOP = [
    *of(
        "MAXL.adapt",
        (
            "the loss leaves parameters out",
            lambda b: b.given[0].adapt(b.given[1]),
            RuntimeError,
            ADAPT.format("enter `loss`, found unused: 0.bias, 0.weight, 1.bias, 1.weight", "allow_unused"),
            lambda b: (clone := b.maxl.clone(), clone.module[4].weight.sum() + clone.module[4].bias.sum()),
        ),
        (
            "parameters are frozen",
            lambda b: b.given.adapt(b.given.primary_loss(b.x, b.y)),
            RuntimeError,
            ADAPT.format("be trainable, found frozen: 0.bias, 0.weight", "allow_nograd"),
            lambda b: (b.model[0].requires_grad_(False), b.maxl.eval(), b.maxl.clone())[-1],
        ),
        (
            "the loss is NaN",
            lambda b: b.given.adapt(NAN * b.given.loss(b.x, b.y)),
            NonFiniteError,
            "`loss` must be finite, and its gradient, found the loss nan; no parameter was moved with it. Check its "
            "input, or lower lr if earlier calls of adapt() went too far.",
            lambda b: (b.maxl.eval(), b.maxl.clone())[-1],
        ),
    ),
    *of(
        "MAXL.loss",
        ("y is counted from 1", lambda b: b.maxl.loss(b.x, b.y + 1), ValueError, Y_HIGH),
        ("x is too short", lambda b: b.maxl.loss(b.x[:3], b.y), ValueError, SAMPLES.format("x", "y", [3, 8], [6])),
        (
            "the targets are counts",
            lambda b: b.maxl.loss(b.x, b.y, targets=torch.ones(6, 6)),
            ValueError,
            PROBABILITIES.format("targets", 1, 6),
        ),
    ),
    *of(
        "MAXL.primary_loss",
        ("y is float", lambda b: b.maxl.primary_loss(b.x, b.y.float()), TypeError, Y_FLOAT),
        ("y is negative", lambda b: b.maxl.primary_loss(b.x, b.y - 1), ValueError, RANGE.format("y", PRIMARY, 2, -1)),
    ),
    *of(
        "MAXL.meta_loss",
        ("y is an array", lambda b: b.maxl.meta_loss(b.x, b.y.numpy()), TypeError, TENSOR.format("y", "ndarray")),
        ("the batch is empty", lambda b: b.maxl.meta_loss(b.x[:0], b.y[:0]), ValueError, EMPTY),
    ),
    *of(
        "MAXL.distribute",
        (
            "there are no processes",
            lambda b: b.maxl.distribute(),
            RuntimeError,
            "`process_group` must be one of torch.distributed, found that it is not initialized. "
            "Call torch.distributed.init_process_group() first, and start the program with torchrun.",
        ),
    ),
    *of(
        "MAXL.clone",
        (
            "an attribute of it is misspelt",
            lambda b: b.given.adapted,
            AttributeError,
            "'Sequential' object has no attribute 'adapted'",
            lambda b: b.maxl.clone(),
        ),
    ),
]

FIT = [
    *of_argument("fit", "maxl", Bench.fit, NOT_WRAPPED)(
        ("a model that is not wrapped", nn.Linear(8, 3), TypeError, "Linear"),
        ("a class", MAXL, TypeError, "the class MAXL"),
        ("missing", None, TypeError, "NoneType"),
    ),
    *of_argument("fit", "loader", Bench.fit, LOADER.format("loader", "{}"))(
        ("missing", None, TypeError, "NoneType"),
        ("a number", 5, TypeError, "int"),
        ("a class", DataLoader, TypeError, "type"),
        ("a dataset", TensorDataset(torch.ones(6, 8)), TypeError, "TensorDataset"),
    ),
    *of_argument("fit", "loader", Bench.fit, BATCHES)(
        ("a pair (x, y)", (torch.ones(6, 8), torch.zeros(6).long()), TypeError, "Tensor"),
        ("a path", "train.csv", TypeError, "str"),
        ("of x alone", [torch.ones(6, 8)], TypeError, "Tensor"),
        ("of mappings", [{"x": 1, "y": 2}], TypeError, "dict"),
        ("of one-tuples", [(torch.ones(6, 8),)], TypeError, "a tuple of 1"),
    ),
    *of_argument("fit", "loader", Bench.fit, "{}")(
        ("an empty list", [], ValueError, NO_BATCH.format("loader")),
        (
            "without a whole batch",
            DataLoader(TensorDataset(torch.ones(6, 8)), 10, drop_last=True),
            ValueError,
            NO_BATCH.format("loader"),
        ),
        (
            "used up",
            iter([]),
            ValueError,
            "`loader` must yield at least one batch in each epoch, found none in epoch 1. "
            "Check the dataset behind it; an iterator that is used up is not a loader.",
        ),
        ("of lists", [([[0.0]], [0])], TypeError, Y_LIST),
        ("of x without labels", [(torch.ones(6, 8), torch.ones(6, 8))], TypeError, Y_FLOAT),
        ("of empty batches", [(torch.ones(0, 8), torch.ones(0).long())], ValueError, EMPTY),
        (
            "of NaN",
            [(torch.full((6, 8), NAN), torch.tensor([0, 1, 2, 0, 1, 1]))],
            NonFiniteError,
            f"stopped at step 1 (epoch 1): {NOT_FINITE} "
            "Pass checkpoint= to save a run; the learner holds the parameters before this step.",
        ),
    ),
    *of_argument("fit", "epochs", Bench.fit, "`epochs` must be {}. Say how often to go through loader.")(
        ("zero", 0, ValueError, FOUND_ZERO),
        ("negative", -1, ValueError, "at least 1, found -1"),
        ("a float", 10.0, TypeError, INTEGER.format("10.0 (float)")),
        ("a text", "10", TypeError, INTEGER.format("'10' (str)")),
        ("missing", None, TypeError, FOUND_NONE),
    ),
    *of_argument("fit", "optimizer", Bench.fit, OF_NETWORK)(
        ("a name", "adam", TypeError, "str"), ("a recipe", {"lr": 0.1}, TypeError, "dict")
    ),
    *of_argument("fit", "generator_optimizer", Bench.fit, OF_GENERATOR)(
        ("a class", Adam, TypeError, "type"), ("switched off", False, TypeError, "bool")
    ),
    *of_argument(
        "fit", "schedulers", Bench.fit, "`schedulers` must be a list, found {}. Write schedulers=[scheduler]."
    )(
        ("a name", "cosine", TypeError, "str"),
        ("a class", StepLR, TypeError, "type"),
        ("missing", None, TypeError, "NoneType"),
    ),
    *of_argument("fit", "source", Bench.fit, "{}")(
        ("a class", SingleTask, TypeError, SOURCE.format("the class SingleTask")),
        ("the class of all sources", LabelSource, TypeError, SOURCE.format("the class LabelSource")),
        ("a name", "maxl", TypeError, SOURCE.format("str")),
        ("a list", [SingleTask()], TypeError, SOURCE.format("list")),
        ("fixed, the data are not labelled", RandomLabels(), ValueError, LABELLED.format("RandomLabels")),
        (
            "human, the data are not labelled",
            HumanLabels(torch.zeros(6).long()),
            ValueError,
            LABELLED.format("HumanLabels"),
        ),
        ("of an unknown method", GeneratedLabels("fwd"), ValueError, METHOD.format("'fwd'")),
    ),
    *of_argument(
        "fit",
        "schedule",
        Bench.fit,
        "`schedule` must be one of 'batch', 'epoch', found {}. 'batch' is the fused step, 'epoch' the paper's.",
    )(("misspelt", "epochs", ValueError, "'epochs'"), ("missing", None, ValueError, "None")),
    *of_argument("fit", "meta_loader", Bench.fit, "{}")(
        ("a number", 3, TypeError, LOADER.format("meta_loader", "int")),
        ("a dataset", TensorDataset(torch.ones(6, 8)), TypeError, LOADER.format("meta_loader", "TensorDataset")),
        ("empty", [], ValueError, NO_BATCH.format("meta_loader")),
        ("used up", iter([]), ValueError, NO_BATCH.format("meta_loader")),
        (
            "of a class too many",
            [(torch.ones(6, 8), torch.full((6,), 3))],
            ValueError,
            RANGE.format("meta_batch[1]", PRIMARY, 2, 3),
        ),
    ),
    *of_argument(
        "fit", "meta_every", Bench.fit, "`meta_every` must be {}. Use 1 to train the generator on every batch."
    )(
        ("zero", 0, ValueError, FOUND_ZERO),
        ("a fraction", 0.5, TypeError, INTEGER.format("0.5 (float)")),
        ("a switch", True, TypeError, FOUND_TRUE),
    ),
    *of_argument("fit", "test_loader", Bench.fit, "{}")(
        ("a number", 3, TypeError, LOADER.format("test_loader", "int")),
        ("empty", [], ValueError, NO_BATCH.format("test_loader")),
    ),
    *of_argument("fit", "micro_batches", Bench.fit, MICRO)(("zero", 0, ValueError, FOUND_ZERO)),
    *of_argument("fit", "max_grad_norm", Bench.fit, CLIP)(("zero", 0, ValueError, FINITE.format(">", 0))),
    *of_argument("fit", "scaler", Bench.fit, SCALER)(("a device", "cuda", TypeError, "str")),
    *of_argument(
        "fit", "seed", Bench.fit, "`seed` must be an integer, found {}. Train once for each of several seeds."
    )(
        ("a list", [0, 1], TypeError, "[0, 1]"),
        ("a range", range(3), TypeError, "range(0, 3)"),
        ("a float", 0.0, TypeError, "0.0"),
        ("a text", "0", TypeError, "'0'"),
    ),
    *of(
        "fit",
        (
            "the optimizers are swapped",
            lambda b: b.fit(optimizer=b.generator_optimizer, generator_optimizer=b.optimizer),
            ValueError,
            SWAPPED_OPTIMIZERS,
        ),
        (
            "the optimizer is of the user's model",
            lambda b: b.fit(optimizer=SGD(b.model.parameters(), lr=0.1)),
            ValueError,
            NETWORK_LACKS.format(6, "auxiliary_head.weight, auxiliary_head.bias"),
        ),
        (
            "one scheduler is not in a list",
            lambda b: b.fit(schedulers=b.given),
            TypeError,
            "`schedulers` must be a list, found StepLR. Write schedulers=[scheduler].",
            lambda b: StepLR(b.optimizer, 1),
        ),
        (
            "the labels of the data are other classes'",
            lambda b: b.fit(source=RandomLabels(), loader=[(b.x, b.y, b.y)]),
            ValueError,
            STRAY,
        ),
        (
            "resume is without checkpoint",
            lambda b: b.fit(resume=True),
            ValueError,
            "`resume` needs `checkpoint`, found None. Name the file to go on from.",
        ),
        (
            "checkpoint_minutes is without checkpoint",
            lambda b: b.fit(checkpoint_minutes=5),
            ValueError,
            "`checkpoint_minutes` needs `checkpoint`, found None. Name the file to save to.",
        ),
        (
            "checkpoint_minutes is zero",
            lambda b: b.fit(checkpoint=b.folder / "run.pt", checkpoint_minutes=0),
            ValueError,
            "`checkpoint_minutes` must be a finite number > 0, found 0. It is in minutes.",
        ),
        (
            "the checkpoint is under a file",
            lambda b: b.fit(checkpoint=b.folder / "file" / "run.pt"),
            FileExistsError,
            "[Errno 17] `checkpoint` must be a file that can be written, found that <folder>/file/run.pt can't: File "
            "exists. There is no checkpoint yet: free disk space or name another file, and begin again; the learner "
            "holds what it has learned.",
            written("file", "a text"),
        ),
        (
            "the checkpoint is a model's",
            lambda b: b.fit(checkpoint=b.folder / "model.pt", resume=True),
            ValueError,
            "`checkpoint` must be a file that fit() wrote, found a state_dict of another program in <folder>/model.pt. "
            "There is no earlier checkpoint beside it: name another file, or begin again with resume=False.",
            written("model.pt", {"weight": torch.ones(1)}),
        ),
    ),
    *of_argument("fit", "time_limit", Bench.fit, "`time_limit` must be {}. It is in minutes.")(
        ("zero", 0, ValueError, FINITE.format(">", 0)),
        ("infinite", float("inf"), ValueError, FINITE.format(">", "inf")),
        ("a text", "2h", TypeError, NUMBER.format("'2h' (str)")),
    ),
    *of_argument("fit", "settings", Bench.fit, "{}")(
        ("a name", "fast", TypeError, SETTINGS_KIND.format("str")),
        ("a list of pairs", [("width", 1)], TypeError, SETTINGS_KIND.format("list")),
        ("about the seed", {"seed": 1}, ValueError, SETTINGS_TAKEN.format("seed")),
        (
            "a tensor",
            {"width": torch.ones(1)},
            TypeError,
            SETTINGS_PLAIN.format("Object of type Tensor is not JSON serializable"),
        ),
    ),
    *of_argument("fit", "metrics", Bench.fit, METRICS)(
        ("a word", "all", TypeError, "str"),
        ("a number", 1, TypeError, "int"),
        ("a class", Metrics, TypeError, "type"),
        ("missing", None, TypeError, "NoneType"),
    ),
    *of_argument("fit", "logger", Bench.fit, LOGGER)(
        ("a name", "tensorboard", TypeError, "str"),
        ("a switch", True, TypeError, "bool"),
        ("a list with a gap", [None], TypeError, "NoneType"),
        ("a class", DataLoader, TypeError, "the class DataLoader"),
    ),
    *of_argument("fit", "log_every", Bench.fit, "`log_every` must be {}. Use 1 to log every step.")(
        ("zero", 0, ValueError, FOUND_ZERO), ("missing", None, TypeError, FOUND_NONE)
    ),
]

EVALUATION = [
    *of_argument("evaluate", "maxl", lambda b, maxl: evaluate(maxl, b.loader), NO_LEARNER)(
        ("a model that is not wrapped", nn.Linear(8, 3), TypeError, "Linear"),
        ("a class", MAXL, TypeError, "the class MAXL"),
        ("the loader", [], TypeError, "list"),
    ),
    *of_argument("evaluate", "loader", lambda b, loader: evaluate(b.maxl, loader), "{}")(
        ("empty", [], ValueError, NO_BATCH.format("loader")),
        ("used up", iter([]), ValueError, USED_UP.format("loader")),
        ("missing", None, TypeError, LOADER.format("loader", "NoneType")),
        ("a pair (x, y)", (torch.ones(6, 8), torch.ones(6)), TypeError, BATCHES.format("Tensor")),
        ("of x alone", [torch.ones(6, 8)], TypeError, BATCHES.format("Tensor")),
        ("of texts", "test", TypeError, BATCHES.format("str")),
        ("of single samples", [(torch.ones(8), torch.tensor(1))], ValueError, SAMPLES.format("x", "y", [8], [])),
        ("of a class too many", [(torch.ones(6, 8), torch.full((6,), 3))], ValueError, Y_HIGH),
    ),
    *of_argument(
        "check_model",
        "maxl",
        lambda b, maxl: check_model(maxl, b.x, b.y),
        "`maxl` must be an instance of AuxiliaryLabelGenerator, found {}. "
        "Wrap the model first: check_model(MAXL(model, psi), x, y).",
    )(
        ("a model that is not wrapped", nn.Linear(8, 3), TypeError, "Linear"),
        ("a class", MAXL, TypeError, "the class MAXL"),
    ),
    *of_argument(
        "check_model",
        "method",
        lambda b, method: check_model(b.maxl, b.x, b.y, method=method),
        "`method` must be one of 'forward', 'finite-difference', 'unrolled', found {}. 'forward' is the default.",
    )(
        ("none that has a hypergradient", "regularizer", ValueError, "'regularizer'"),
        ("unknown", "reverse", ValueError, "'reverse'"),
    ),
    *of(
        "check_model",
        (
            "the batch is a loader",
            lambda b: check_model(b.maxl, b.loader, None),
            TypeError,
            TENSOR.format("y", "NoneType"),
        ),
        ("y is float", lambda b: check_model(b.maxl, b.x, b.y.float()), TypeError, Y_FLOAT),
        ("the batch is empty", lambda b: check_model(b.maxl, b.x[:0], b.y[:0]), ValueError, EMPTY),
        ("x is NaN", lambda b: check_model(b.maxl, b.x * NAN, b.y), NonFiniteError, NOT_FINITE),
        *(
            (
                f"the {part} is frozen",
                lambda b: check_model(b.maxl, b.x, b.y),
                ValueError,
                f"`maxl` must have parameters to train in both networks, found that all of the {part}'s are frozen. "
                "Call requires_grad_(True) on some of them.",
                frozen(part),
            )
            for part in ("network", "generator")
        ),
    ),
]

RECORDS = [
    *of_argument("report", "histories", lambda b, histories: report(b.folder, histories), "{}")(
        ("a file's name", "run.json", TypeError, HISTORIES.format("hold instances", "str")),
        ("the class", History, TypeError, HISTORIES.format("hold instances", "type")),
        ("records", [{"epoch": 1}], TypeError, HISTORIES.format("be an instance", "dict")),
        ("lists of lists", [[History()]], TypeError, HISTORIES.format("be an instance", "list")),
        ("what a step returned", StepResult(torch.ones(())), TypeError, HISTORIES.format("be an instance", "Tensor")),
        (
            "a model check",
            ModelCheck((), (), None, None, None, None, None),
            TypeError,
            HISTORIES.format("hold instances", "ModelCheck"),
        ),
        ("empty", [], ValueError, NO_HISTORY.format("histories without a finished epoch")),
        ("of no epoch", History(), ValueError, NO_HISTORY.format("histories without a finished epoch")),
        ("missing, and all else too", None, ValueError, NO_HISTORY.format("neither")),
        (
            "none for a title",
            {"MAXL": []},
            ValueError,
            "`histories` must have a history for each title, found none for 'MAXL'. "
            "Write {'MAXL': [fit(...) for each seed]}, or leave the title out.",
        ),
    ),
    *of(
        "report",
        (
            "maxl is without a loader",
            lambda b: b.report(loader=None),
            ValueError,
            "`loader` must come with `maxl`, found None. "
            "Pass the trained learner and data for it, or neither for a report on histories alone.",
        ),
        (
            "a loader is without maxl",
            lambda b: b.report(maxl=None),
            ValueError,
            "`maxl` must come with `loader`, found None. "
            "Pass the trained learner and data for it, or neither for a report on histories alone.",
        ),
        (
            "maxl is the user's model",
            lambda b: b.report(maxl=b.model),
            TypeError,
            LEARNER.format("Sequential", "Pass the trained learner."),
        ),
        ("the loader is a number", lambda b: b.report(loader=5), TypeError, LOADER.format("loader", "int")),
        ("the loader is empty", lambda b: b.report(loader=[]), ValueError, NO_BATCH.format("loader")),
        (
            "class_names are too few",
            lambda b: b.report(class_names=["cat", "dog"]),
            ValueError,
            "`class_names` must have a name for each of the 3 primary classes, found 2. "
            "Give as many as psi has entries, in that order.",
        ),
    ),
    *of_argument("report", "class_names", Bench.report, NAMES.format("class_names", "{}"))(
        ("one text", "cats", TypeError, "'cats'"),
        ("numbers", [1, 2, 3], TypeError, "list"),
        ("a mapping", {"cat": 0}, TypeError, "dict"),
    ),
    *of_argument("report", "human_names", Bench.report, NAMES.format("human_names", "{}"))(
        ("a number", 5, TypeError, "int")
    ),
    *of_argument(
        "report",
        "to_images",
        Bench.report,
        "`to_images` must be called with a batch's x, found {}. "
        "Write to_images=lambda x: x * std + mean, for instance.",
    )(("a word", "gray", TypeError, "str"), ("images", torch.ones(6, 8, 8), TypeError, "Tensor")),
    *of_argument(
        "report", "title", Bench.report, "`title` must be an instance of str, found {}. It is the heading of the page."
    )(("missing", None, TypeError, "NoneType")),
    *of_argument("report", "max_samples", Bench.report, "`max_samples` must be {}. It is how many samples to look at.")(
        ("zero", 0, ValueError, FOUND_ZERO), ("a word", "all", TypeError, INTEGER.format("'all' (str)"))
    ),
    *of_argument("report", "seed", Bench.report, "`seed` must be {}. Use 0.")(
        ("negative", -1, ValueError, "in 0..2**32 - 1, found -1"), ("missing", None, TypeError, FOUND_NONE)
    ),
    *of_argument(
        "report",
        "folder",
        Bench.report,
        "`folder` must be a path, found {}. Write report('out/report', ...).",
        needs=DRAWING,
    )(("a number", 5, TypeError, "int"), ("missing", None, TypeError, "NoneType")),
    *of(
        "report",
        (
            "the folder is a file",
            lambda b: b.report(folder=b.folder / "file"),
            FileExistsError,
            "[Errno 17] `folder` can't be written to: File exists: '<folder>/file'",
            written("file", "a text"),
        ),
        needs=DRAWING,
    ),
    *of(
        "History",
        (
            "a quantity was not recorded",
            lambda b: History(epochs=[{"epoch": 1, "primary_loss": 2.0}])["loss"],
            KeyError,
            "the history has no 'loss'; it has recorded epoch, primary_loss",
        ),
        (
            "there was no test",
            lambda b: History(epochs=[{"epoch": 1}])["test_accuracy"],
            KeyError,
            "the history has no 'test_accuracy'; it has recorded epoch; give fit a test_loader",
        ),
        (
            "there was no epoch",
            lambda b: History()["accuracy"],
            KeyError,
            "the history has no 'accuracy'; it has recorded nothing yet",
        ),
        (
            "the file to load is missing",
            lambda b: History.load(b.folder / "run.json"),
            FileNotFoundError,
            "[Errno 2] No such file or directory: '<folder>/run.json'",
        ),
        (
            "the file to save is a folder",
            lambda b: History().save(b.folder),
            IsADirectoryError,
            "[Errno 21] Is a directory: '<folder>'",
        ),
    ),
    *of_argument(
        "Metrics",
        "gradient_cosine",
        lambda b, gradient_cosine: Metrics(gradient_cosine=gradient_cosine),
        "`gradient_cosine` must be {}. Use 10 to measure it on every tenth step.",
    )(
        ("zero", 0, ValueError, FOUND_ZERO),
        ("a fraction", 0.1, TypeError, INTEGER.format("0.1 (float)")),
        ("a switch", True, TypeError, FOUND_TRUE),
    ),
    *of_argument(
        "Metrics",
        "patience",
        lambda b, patience: Metrics(patience=patience),
        "`patience` must be {}. It counts epochs; use None for no warnings.",
    )(("zero", 0, ValueError, FOUND_ZERO), ("a text", "5", TypeError, INTEGER.format("'5' (str)"))),
    *of("Metrics", ("they are asked for by a number", lambda b: Metrics.of(1), TypeError, METRICS.format("int"))),
]

SOURCES = [
    *of_argument("RandomLabels", "dataset", lambda b, dataset: RandomLabels().label(dataset, PSI), "{}")(
        ("without a length", Endless(), TypeError, DATASET.format("Endless")),
        ("missing", None, TypeError, DATASET.format("NoneType")),
        ("empty", [], ValueError, "`dataset` must have at least one item, found none. Check where it is read from."),
        ("of float classes", [(0, 1.0)], TypeError, Y_FLOAT),
        ("of a class too many", [(0, 3)], ValueError, Y_HIGH),
        ("of maps of pixels", [(0, torch.zeros(2, 2).long())], ValueError, DENSE.format("RandomLabels", [2, 2])),
    ),
    *of(
        "RandomLabels",
        ("psi is a number", lambda b: RandomLabels().label(b.data, 5), TypeError, PSI_LIST.format(5)),
        (
            "psi is too short",
            lambda b: RandomLabels().label(b.data, [2, 3]),
            ValueError,
            RANGE.format("y", PRIMARY, 1, 2),
        ),
        (
            "the batch has no label",
            lambda b: RandomLabels().network_step(b.maxl, (b.x, b.y), b.optimizer),
            ValueError,
            LABELLED.format("RandomLabels"),
        ),
        (
            "the batch to compare gradients on has no label",
            lambda b: RandomLabels().gradient_cosine(b.maxl, (b.x, b.y)),
            ValueError,
            LABELLED.format("RandomLabels"),
        ),
    ),
    *of_argument("HumanLabels", "labels", lambda b, labels: HumanLabels(labels).label(b.data, PSI), "{}")(
        ("a list", [0, 2, 5, 1, 3, 4], TypeError, INDICES.format("labels", "list", "auxiliary class")),
        ("float", torch.ones(6), TypeError, INDICES.format("labels", "torch.float32", "auxiliary class")),
        ("missing", None, TypeError, INDICES.format("labels", "NoneType", "auxiliary class")),
        (
            "numbered anew in each class",
            torch.tensor([0, 0, 0, 1, 1, 2]),
            ValueError,
            BLOCK.format("labels", 0, 1, 1, "2..4"),
        ),
        (
            "unknown for some",
            torch.tensor([0, 2, -1, 1, 3, 4]),
            ValueError,
            RANGE.format("labels", "auxiliary class", 5, -1),
        ),
        (
            "too few",
            torch.tensor([0, 2]),
            ValueError,
            "`labels` must have the shape of `y`, [6], found [2]. Give one auxiliary class per primary label.",
        ),
    ),
    *of(
        "SingleTask",
        (
            "it is to train a generator",
            lambda b: SingleTask().generator_step(b.maxl, (b.x, b.y), *b.optimizers),
            NotImplementedError,
            "SingleTask has no generator to train.",
        ),
        (
            "y is float",
            lambda b: SingleTask().network_step(b.maxl, (b.x, b.y.float()), b.optimizer),
            TypeError,
            Y_FLOAT,
        ),
    ),
    *of(
        "LabelSource",
        (
            "one of the user's own trains no generator, and says so",
            lambda b: Untrainable().generator_step(b.maxl, (b.x, b.y), *b.optimizers),
            NotImplementedError,
            "Untrainable has no generator to train.",
        ),
    ),
    *of(
        "GeneratedLabels",
        (
            "the method is unknown",
            lambda b: GeneratedLabels("fwd").step(b.maxl, (b.x, b.y), *b.optimizers),
            ValueError,
            METHOD.format("'fwd'"),
        ),
        (
            "the meta batch is x alone",
            lambda b: GeneratedLabels().step(b.maxl, (b.x, b.y), *b.optimizers, meta_batch=b.x),
            TypeError,
            PAIR.format("Tensor"),
        ),
    ),
    *of(
        "EntropyLabels",
        (
            "the learner has no entropy term",
            lambda b: fit(b.given, b.loader, 1, source=EntropyLabels(), progress=False),
            ValueError,
            "`method` 'regularizer' needs a regularizer, found None. Pass regularizer= when you build it.",
            lambda b: AuxiliaryLabelGenerator(b.model, Generator(lambda z: z.softmax(1)), 6),
        ),
    ),
    *of(
        "KMeansLabels",
        ("the dataset has no length", lambda b: kmeans(Endless()), TypeError, DATASET.format("Endless")),
        (
            "the labels are columns",
            lambda b: kmeans(TensorDataset(b.x, b.y[:, None])),
            ValueError,
            DENSE.format("KMeansLabels", [1]),
        ),
        needs=("sklearn",),
    ),
]


def softmax_of(b: Bench, logits: Any = None, y: Any = None, psi: Any = PSI) -> Tensor:
    return masked_softmax(torch.ones(6, 6) if logits is None else logits, b.y if y is None else y, psi)


def focal_of(b: Bench, logits: Any = None, target: Any = None, gamma: Any = 2.0) -> Tensor:
    return focal_loss(torch.ones(6, 3) if logits is None else logits, b.y if target is None else target, gamma)


WIDTH = (
    "`logits` must have shape [N, 6, ...], the sum of psi in dimension 1, found {}. "
    "Give the network sum(psi) = 6 outputs."
)
SECOND = "`{}` must have shape [N, {}, ...] with at least one sample, found {}. Put the class dimension second."

LOSSES = [
    *of_argument("masked_softmax", "logits", softmax_of, "{}")(
        ("a list", [[0.0]], TypeError, FLOATING.format("logits", "list")),
        ("an array", np.ones((6, 6)), TypeError, FLOATING.format("logits", "ndarray")),
        ("integers", torch.ones(6, 6).long(), TypeError, FLOATING.format("logits", "torch.int64")),
        ("too narrow", torch.ones(6, 5), ValueError, WIDTH.format([6, 5])),
        ("without classes", torch.ones(6), ValueError, WIDTH.format([6])),
        ("elsewhere", torch.ones(6, 6, device="meta"), ValueError, DEVICE.format("logits", "y", "meta", "cpu")),
    ),
    *of_argument("masked_softmax", "y", softmax_of, "{}")(
        ("a list", [0] * 6, TypeError, INDICES.format("y", "list", PRIMARY)),
        ("float", torch.ones(6), TypeError, Y_FLOAT),
        ("a class too many", torch.full((6,), 3), ValueError, Y_HIGH),
        (
            "too short",
            torch.ones(3).long(),
            ValueError,
            "`y` must have the shape of `logits` without dimension 1, [6], found [3]. "
            "Give one primary class per sample (and per pixel).",
        ),
    ),
    *of_argument("masked_softmax", "psi", softmax_of, PSI_LIST)(("a number", 6, TypeError, "6")),
    *of_argument("focal_loss", "target", focal_of, "{}")(
        ("int32", torch.ones(6, dtype=torch.int32), TypeError, INDICES.format("target", "torch.int32", "class")),
        ("a class too many", torch.full((6,), 3), ValueError, RANGE.format("target", "class", 2, 3)),
        ("negative", torch.full((6,), -1), ValueError, RANGE.format("target", "class", 2, -1)),
        (
            "probabilities of other classes",
            torch.ones(6, 2) / 2,
            ValueError,
            "`target` must have the shape of `logits`, [6, 3], when it holds probabilities, found [6, 2]. "
            "Put the class dimension second, or give class indices.",
        ),
        (
            "one-hot integers",
            torch.ones(6, 3).long(),
            ValueError,
            "`target` must have the shape of `logits` without dimension 1, [6], when it holds class indices, found "
            "[6, 3]. Give one class per sample (and per pixel), or probabilities.",
        ),
    ),
    *of_argument("focal_loss", "logits", focal_of, "{}")(
        ("a list", [[0.0]], TypeError, FLOATING.format("logits", "list")),
        ("without classes", torch.ones(3), ValueError, SECOND.format("logits", "C", [3])),
        ("empty", torch.ones(0, 3), ValueError, SECOND.format("logits", "C", [0, 3])),
    ),
    *of_argument("focal_loss", "gamma", focal_of, GAMMA)(
        ("negative", -1, ValueError, FINITE.format(">=", -1)),
        ("NaN", NAN, ValueError, FINITE.format(">=", NAN)),
        ("a tensor", torch.tensor(2.0), TypeError, NUMBER.format("tensor(2.) (Tensor)")),
    ),
    *of_argument("entropy_loss", "probs", lambda b, probs: entropy_loss(probs), "{}")(
        ("a list", [[0.5, 0.5]], TypeError, FLOATING.format("probs", "list")),
        ("classes", torch.ones(6, 3).long(), TypeError, FLOATING.format("probs", "torch.int64")),
        ("of one sample, without its dimension", torch.ones(3) / 3, ValueError, SECOND.format("probs", "K", [3])),
        ("empty", torch.ones(0, 3), ValueError, SECOND.format("probs", "K", [0, 3])),
    ),
]

LIGHTNING = [
    *of_argument("LightningMAXL", "maxl", lambda b, maxl: lightning(maxl), NOT_WRAPPED, needs=("lightning",))(
        ("a model that is not wrapped", nn.Linear(8, 3), TypeError, "Linear"),
        ("a class", MAXL, TypeError, "the class MAXL"),
    ),
    *of_argument(
        "LightningMAXL",
        "interval",
        lambda b, interval: lightning(b.maxl, interval=interval),
        "`interval` must be one of 'epoch', 'step', found {}. It says when schedulers are stepped.",
        needs=("lightning",),
    )(("misspelt", "epochs", ValueError, "'epochs'")),
    *of_argument(
        "LightningMAXL", "source", lambda b, source: lightning(b.maxl, source=source), SOURCE, needs=("lightning",)
    )(("a class", SingleTask, TypeError, "the class SingleTask")),
    *of_argument(
        "LightningMAXL",
        "meta_every",
        lambda b, meta_every: lightning(b.maxl, meta_every=meta_every),
        "`meta_every` must be {}. Use 1 to train the generator at every step.",
        needs=("lightning",),
    )(("zero", 0, ValueError, FOUND_ZERO), ("a switch", True, TypeError, FOUND_TRUE)),
    *of_argument(
        "LightningMAXL",
        "accumulate",
        lambda b, accumulate: lightning(b.maxl, accumulate=accumulate),
        "`accumulate` must be {}. Use 1 for a step with each batch.",
        needs=("lightning",),
    )(("zero", 0, ValueError, FOUND_ZERO), ("a float", 2.0, TypeError, INTEGER.format("2.0 (float)"))),
    *of_argument(
        "LightningMAXL", "metrics", lambda b, metrics: lightning(b.maxl, metrics=metrics), METRICS, needs=("lightning",)
    )(("a word", "all", TypeError, "str")),
    *of(
        "LightningMAXL",
        (
            "the optimizer is made already",
            lambda b: lightning(b.maxl, optimizer=b.optimizer),
            TypeError,
            "`optimizer` must be a function that makes one from parameters, found SGD. Write "
            "optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3).",
        ),
        (
            "a method is given beside a source",
            lambda b: lightning(b.maxl, source=GeneratedLabels(), method="unrolled"),
            ValueError,
            "`method` must be left out if there is a `source`, found 'unrolled'. "
            "Write source=GeneratedLabels(method=...).",
        ),
        (
            "the Trainer clips",
            lambda b: train_by_lightning(b, gradient_clip_val=1.0),
            ValueError,
            "`gradient_clip_val` must be left out of the Trainer, found 1.0: the generator learns through whole steps, "
            "clipping included. Write LightningMAXL(maxl, max_grad_norm=1.0).",
        ),
        (
            "the Trainer accumulates",
            lambda b: train_by_lightning(b, accumulate_grad_batches=2),
            ValueError,
            "`accumulate_grad_batches` must be left out of the Trainer, found 2: the generator learns through whole "
            "steps, clipping included. Write LightningMAXL(maxl, accumulate=2).",
        ),
        needs=("lightning",),
    ),
]

RUNS = [
    *of_argument("fit", "checkpoint", Bench.fit, "{}")(
        (
            "a number",
            5,
            TypeError,
            "`checkpoint` must be the path of a file, found 5 (int). Write checkpoint='run.pt'.",
        ),
        (
            "a text without a name",
            "",
            ValueError,
            "`checkpoint` must be a file, found the folder .. Name one in it: checkpoint='run.pt'.",
        ),
        (
            "a folder",
            Path("/"),
            ValueError,
            "`checkpoint` must be a file, found the folder /. Name one in it: checkpoint='/run.pt'.",
        ),
    ),
    *of_argument("fit", "resume", Bench.fit, "`resume` must be True or False, found {}. Name the file as checkpoint=.")(
        ("a word", "no", TypeError, "'no'"),
        ("the file", "run.pt", TypeError, "'run.pt'"),
    ),
    *of_argument("fit", "seed", Bench.fit, "`seed` must be an integer{}")(
        ("a switch", True, TypeError, ", found True. Train once for each of several seeds."),
        ("negative", -1, ValueError, " in 0..2**64 - 1, found -1. Take a smaller one."),
        ("too large", 2**70, ValueError, f" in 0..2**64 - 1, found {2**70}. Take a smaller one."),
    ),
    *of_argument("fit", "micro_batches", Bench.fit, MICRO.format("an integer, found {}"))(
        ("a switch", True, TypeError, "True (bool)"),
        ("missing", None, TypeError, "None (NoneType)"),
    ),
    *of_argument(
        "fit",
        "meta_loader",
        Bench.fit,
        "`meta_loader` must yield batches (x, y) or be 'next', found {}. Pass a DataLoader.",
    )(
        ("a word", "held-out", ValueError, "'held-out'"),
        ("'Next'", "Next", ValueError, "'Next'"),
    ),
    *of_argument("fit", "schedulers", Bench.fit, SCHEDULERS)(
        ("the optimizer", [SGD([torch.zeros(1)], lr=0.1)], TypeError, "SGD"),
        ("a list of classes", [StepLR], TypeError, "the class StepLR"),
        ("a list with nothing", [None], TypeError, "NoneType"),
    ),
    *of(
        "fit",
        (
            "a scheduler watches a metric",
            lambda b: b.fit(schedulers=[ReduceLROnPlateau(b.optimizer)]),
            TypeError,
            "`schedulers` must step without a metric, found ReduceLROnPlateau at position 0. "
            "Use one that counts epochs, or LightningMAXL, which watches a metric.",
        ),
        (
            "a scheduler is of another optimizer",
            lambda b: b.fit(schedulers=[StepLR(SGD([torch.zeros(1)], lr=0.1), 1)]),
            ValueError,
            "`schedulers` must be of `optimizer` or `generator_optimizer`, found a StepLR of another one at position "
            "0. Pass the optimizer that it was made with.",
        ),
        (
            "the generator's optimizer is another learner's",
            lambda b: b.fit(generator_optimizer=b.given, schedule="epoch"),
            ValueError,
            GENERATOR_LACKS,
            lambda b: SGD(classifier().parameters(), lr=0.1),
        ),
    ),
    *of(
        "MAXL.adapt",
        (
            "the loss is a number",
            lambda b: b.given.adapt(0.5),
            TypeError,
            "`loss` must be a scalar tensor, found 0.5 (float). Pass learner.loss(x, y), without item().",
            lambda b: b.maxl.clone(),
        ),
        (
            "the loss is a value a sample",
            lambda b: b.given.adapt(torch.ones(6, requires_grad=True)),
            ValueError,
            SCALAR.format("shape [6]"),
            lambda b: b.maxl.clone(),
        ),
        (
            "the loss is detached",
            lambda b: b.given.adapt(torch.tensor(1.0)),
            ValueError,
            SCALAR.format("one without a graph"),
            lambda b: b.maxl.clone(),
        ),
        (
            "the loss is of something else",
            lambda b: b.given.adapt(torch.ones((), requires_grad=True)),
            ValueError,
            "`loss` must depend on this learner's parameters, found none that it reaches. "
            "Compute it with this learner: learner.loss(x, y), anew for each step.",
            lambda b: b.maxl.clone(),
        ),
    ),
    *of(
        "MAXL.primary_loss",
        (
            "the network is the model",
            lambda b: b.maxl.primary_loss(b.x, b.y, network=b.given),
            TypeError,
            "`network` must return (primary, auxiliary) outputs, found a tensor [6, 3]. Pass a clone of maxl.network.",
            lambda b: classifier().eval(),
        ),
    ),
    *of(
        "MAXL.step",
        (
            "x is a NumPy array",
            lambda b: b.step(x=b.x.numpy()),
            TypeError,
            "`x` must be a tensor, found a NumPy array. Use torch.as_tensor.",
        ),
    ),
    *of_argument("Hierarchy", "psi", lambda b, psi: Hierarchy(psi), PSI_LIST)(
        ("a dictionary", {1: 5, 2: 5}, TypeError, "{1: 5, 2: 5}"),
        ("a set", {5}, TypeError, "{5}"),
    ),
    *of(
        "History",
        *(
            (
                f"the file holds {content!r}",
                lambda b, name=name: History.load(b.folder / name),
                ValueError,
                f"`path` must be a file that History.save wrote, found <folder>/{name}, which is none. "
                "Name another file.",
                written(name, content),
            )
            for name, content in (("a.json", "loss"), ("b.json", "{}"), ("c.json", "[]"), ("d.json", "7"))
        ),
    ),
]

CALLS = [
    *(HIERARCHY + LEARNERS + NETWORKS + GENERATORS + BATCH + OPTIMIZERS + OPTIONS + TARGETS + STEPS + INNER_LOOP),
    *(FIT + EVALUATION + RECORDS + SOURCES + LOSSES + LIGHTNING + RUNS),
]

PARTS = {
    "an argument in backticks": r"`[^`]+`",
    "a rule": r"\b(must|needs)\b",
    "what was found": r"\bfound\b",
    "advice": r"\. [A-Z'][^`]*.*\.$",
}
"""What a message must have, and how to see it."""


# ---- what comes of them


def outcome(call: BadCall) -> tuple[type[BaseException] | None, str, bool]:
    """Makes a call: what it raised, in which words, and whether it has left everything as it was."""
    for package in call.needs:
        importlib.import_module(package)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.given = call.given(bench)
        before = bench.state()
        try:
            call.call(bench)
        except Exception as error:
            words = error.args[0] if isinstance(error, KeyError) else str(error)
            found: tuple[type[BaseException] | None, str] = type(error), words.replace(folder, "<folder>")
        else:
            found = None, "accepted"
        return *found, bench.state() == before


def missing_parts(words: str) -> list[str]:
    """What a message lacks of the parts that every message has."""
    return [part for part, pattern in PARTS.items() if not re.search(pattern, words, re.DOTALL)]


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package.split(".")[0]) is not None


def figures() -> dict[str, Any]:
    """Makes all calls that the installed packages allow: how many, how many are answered correctly, which not."""
    calls = [call for call in CALLS if all(map(_is_installed, call.needs))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrong = [str(call) for call in calls if outcome(call) != (call.error, call.words, True)]
    return {"calls": len(calls), "right": len(calls) - len(wrong), "wrong": wrong}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(figures())
