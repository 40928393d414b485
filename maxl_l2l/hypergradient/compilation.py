"""Compilation: virtual passes of a network through torch.compile."""

import contextlib
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..passes import placed, take_over
from .bilevel import Pass, plain_pass
from .tape import Call, Tape


class CompiledPass:
    """The :func:`virtual_pass` of one module, compiled.

    Args:
        module: The module.
        traced: Name of the method that a pass calls.
        around: Makes the context that it runs in, which is not compiled.
        options: Keyword arguments of ``torch.compile``.
    """

    def __init__(
        self,
        module: nn.Module,
        traced: str,
        around: Callable[[], AbstractContextManager[object]],
        options: Mapping[str, Any],
    ) -> None:
        self.module, self.around = module, around
        self.caller = _Caller(module, traced)
        # A code object of its own: torch.compile counts recompilations by it, and gives up after some.
        function = type(self)._call
        own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        self.compiled = torch.compile(types.MethodType(own, self), **options)

    def __call__(
        self, parameters: Mapping[str, Tensor], buffers: dict[str, Tensor], *args: Any, tape: Tape | None = None
    ) -> Any:
        """Arguments as in :func:`virtual_pass`; the tape records as in an uncompiled pass."""
        places, state = placed(self.module, parameters, buffers)
        state = {f"module.{place}": tensor for place, tensor in state.items()}
        with self.around():
            result, calls, moved = self.compiled(state, args, tape is not None)
        take_over(buffers, places, {place: moved[f"module.{place}"] for place in places})
        if tape is not None:
            tape.calls += [call._replace(version=call.kept[0]._version) if call.kept else call for call in calls]
        return result

    def _call(
        self, state: dict[str, Tensor], args: tuple[Any, ...], keep: bool
    ) -> tuple[Any, list[Call], dict[str, Tensor]]:
        tape = Tape(traced=True)
        with tape if keep else contextlib.nullcontext():
            result = functional_call(self.caller, state, args, tie_weights=False)
        return result, tape.calls, state


def compile_options(**options: Any) -> dict[str, Any]:
    """Returns keyword arguments of ``torch.compile`` with which compiled passes draw the random numbers of plain ones.

    By default inductor draws numbers of its own, and so other dropout masks than the forward-mode pass.

    Raises:
        RuntimeError: torch is older than 2.9, and can't compile these passes as a whole.
    """
    if torch.__version__ < "2.9":  # a torch.torch_version.TorchVersion, which compares as versions do
        raise RuntimeError(f"compile() needs torch 2.9 or newer, found {torch.__version__}. Train without it.")
    if options.get("backend", "inductor") != "inductor":
        return options
    mode = options.pop("mode", None)
    chosen = {} if mode is None else torch._inductor.list_mode_options(mode)
    return {**options, "options": {**chosen, **(options.get("options") or {}), "fallback_random": True}}


def passes_of(
    network: nn.Module, generator: nn.Module, compiled: tuple[CompiledPass, CompiledPass] | None
) -> tuple[Pass, Pass]:
    """Returns the compiled passes of two modules, or plain ones if the compiled ones are of other modules or missing.

    They are of other modules in a shallow copy of a learner, such as learn2learn.clone_module makes.
    """
    if compiled is not None and compiled[0].module is network and compiled[1].module is generator:
        return compiled
    return plain_pass(network), plain_pass(generator)


class _Caller(nn.Module):
    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module = module
        self.name = name

    def forward(self, *args: Any) -> Any:
        return getattr(self.module, self.name)(*args)
