"""The contenders that are other libraries, each as its users write it; and all contenders by name."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from types import ModuleType
from typing import Any

from torch import Tensor

from maxl_l2l import MAXL

from .contenders import (
    LR,
    Contender,
    Ours,
    OursAdapted,
    OursCompiled,
    OursFiniteDifference,
    Published,
    SharedUnroll,
    SingleTask,
    SingleTaskCompiled,
    TwoStages,
    Unroll,
)


def library(name: str) -> ModuleType | None:
    """Imports a library; None if it is missing.

    Warnings about deprecated packages that these libraries import (gym, pkg_resources, torch.jit) are silenced.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


higher: Any = library("higher")
learn2learn: Any = library("learn2learn")
torchopt: Any = library("torchopt")


class Higher(TwoStages):
    title = "higher"

    def add_hypergradient(self, x: Tensor, y: Tensor) -> None:
        labels = self.generator(x, y)
        with higher.innerloop_ctx(self.network, self.optimizer, copy_initial_weights=False) as (network, inner):
            for _ in range(self.inner_steps):
                inner.step(self.loss(network(x), y, labels))
            self.meta_loss(network(x), y, labels).backward(inputs=self.theta_2)


class Learn2Learn(TwoStages):
    title = "learn2learn"

    def __init__(self, maxl: MAXL, inner_steps: int = 1) -> None:
        super().__init__(maxl, inner_steps)
        self.maml = learn2learn.algorithms.MAML(maxl.network, lr=LR)

    def add_hypergradient(self, x: Tensor, y: Tensor) -> None:
        labels = self.generator(x, y)
        learner = self.maml.clone()
        for _ in range(self.inner_steps):
            learner.adapt(self.loss(learner(x), y, labels))
        self.meta_loss(learner(x), y, labels).backward(inputs=self.theta_2)


class TorchOpt(TwoStages):
    title = "TorchOpt"

    def __init__(self, maxl: MAXL, inner_steps: int = 1) -> None:
        super().__init__(maxl, inner_steps)
        self.inner = torchopt.MetaSGD(maxl.network, lr=LR)

    def add_hypergradient(self, x: Tensor, y: Tensor) -> None:
        labels = self.generator(x, y)
        before = torchopt.extract_state_dict(self.network, by="reference")
        inner_before = torchopt.extract_state_dict(self.inner, by="reference")
        for _ in range(self.inner_steps):
            self.inner.step(self.loss(self.network(x), y, labels))
        self.meta_loss(self.network(x), y, labels).backward(inputs=self.theta_2)
        torchopt.recover_state_dict(self.network, before)
        torchopt.recover_state_dict(self.inner, inner_before)


KNOWN: dict[str, tuple[type[Contender], Any]] = {
    "single": (SingleTask, True),
    "single-compiled": (SingleTaskCompiled, True),
    "ours": (Ours, True),
    "ours-finite-difference": (OursFiniteDifference, True),
    "ours-compiled": (OursCompiled, True),
    "unroll": (Unroll, True),
    "unroll-shared": (SharedUnroll, True),
    "higher": (Higher, higher),
    "learn2learn": (Learn2Learn, learn2learn),
    "torchopt": (TorchOpt, torchopt),
    "published": (Published, True),
    "ours-adapted": (OursAdapted, True),
}
CONTENDERS = {name: contender for name, (contender, there) in KNOWN.items() if there}
"""The contenders whose library is installed."""
