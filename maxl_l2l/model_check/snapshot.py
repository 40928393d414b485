"""A snapshot of all that a module holds and a pass may change, and its restoration."""

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..passes import RandomNumbers, RandomState, cuda_devices, tensors_in


class Snapshot:
    """Parameters, buffers, gradients, plain attributes and modes of a module, and the random states, at one moment.

    Tensors keep their identity; their values are restored. Plain attributes are restored, and the content of lists,
    dicts and sets among them, but not that of other objects.

    Attributes:
        values: A copy of every tensor that the module held, by the tensor's id.
        random: torch's random states.
    """

    def __init__(self, module: nn.Module) -> None:
        self.attributes = [(name, vars(part), dict(vars(part))) for name, part in module.named_modules()]
        # _parameters, _buffers and _modules are such dicts.
        held = [value for _, _, values in self.attributes for value in values.values()]
        self.containers = [(value, copy.copy(value)) for value in held if type(value) in (list, dict, OrderedDict, set)]
        self.tensors = [*module.parameters(), *module.buffers(), *plain_tensors(module).values()]
        self.values = {id(tensor): tensor.detach().clone() for tensor in self.tensors}
        self.grads = [(parameter, parameter.grad) for parameter in module.parameters()]
        self.random = RandomState(cuda_devices(module))
        self.numbers = RandomNumbers(cuda_devices(module), {})
        self.all_random = self.numbers.state()

    def restore(self) -> None:
        """Puts everything back."""
        for _, attributes, values in self.attributes:
            attributes.clear()
            attributes.update(values)
        for container, value in self.containers:
            container.clear()
            container.extend(value) if isinstance(container, list) else container.update(value)
        for tensor in self.tensors:
            value = self.values[id(tensor)]
            if not same(tensor, value):
                tensor.data.copy_(value)
        for parameter, grad in self.grads:
            parameter.grad = grad
        self.restore_random_numbers()

    def moved_attributes(self) -> list[str]:
        """Names the plain attributes that have changed."""
        return [
            f"{prefix}.{name}" if prefix else name
            for prefix, attributes, values in self.attributes
            for name, value in attributes.items()
            if value is not values.get(name)
        ]

    def restore_random_numbers(self) -> None:
        """Puts back the states of torch's, Python's and NumPy's random number generators alone."""
        self.numbers.restore(self.all_random)


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Finds tensors in plain attributes, lists, tuples and dicts of a module, where PyTorch does not look.

    Returns:
        The tensors by path, such as ``"blocks[0].weight"``, without the module's parameters and buffers.
    """
    registered = {id(thing) for thing in (*module.parameters(), *module.buffers(), *module.modules())}
    found: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            for path, tensor in tensors_in(value, f"{prefix}.{name}" if prefix else name, registered):
                found[path] = tensor
    return found


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN being the same as NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
