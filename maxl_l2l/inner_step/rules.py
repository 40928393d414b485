"""Update rules: what each optimizer of torch.optim does in one step, elementwise on flat vectors and differentiable.

A rule is ``rule(theta, grad, state, group) -> theta_plus``. State holds the optimizer's own, with vectors where it
keeps tensors; it is empty before the first step. Roots of averaged squares have derivative 0 where the average is 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

State = Mapping[str, Any]
UpdateRule = Callable[[Tensor, Tensor, State, State], Tensor]


def sgd(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """Stochastic gradient descent with momentum, Nesterov's too, and weight decay."""
    update = _decayed(theta, grad, group)
    momentum = group["momentum"]
    if momentum:
        previous = state.get("momentum_buffer")
        velocity = update if previous is None else momentum * previous + (1 - group["dampening"]) * update
        update = update + momentum * velocity if group["nesterov"] else velocity
    return _moved(theta, group["lr"], update)


def sgd_slope(state: State, group: State) -> Any:
    """The derivative of :func:`sgd` by the gradient, one number for all entries; state's values are not used."""
    slope = -group["lr"] if not group["maximize"] else group["lr"]
    if not group["momentum"]:
        return slope
    fresh = 1 - group["dampening"] if "momentum_buffer" in state else 1
    return slope * (1 + group["momentum"] * fresh if group["nesterov"] else fresh)


def adam(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """Adam (Kingma and Ba 2015) with AMSGrad; weight decay coupled, or decoupled if the group says so."""
    theta, grad = _shrunk(theta, grad, group, group.get("decoupled_weight_decay", False))
    return _adam(theta, grad, state, group)


def adamw(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    theta, grad = _shrunk(theta, grad, group, True)
    return _adam(theta, grad, state, group)


def nadam(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """Adam with Nesterov momentum (Dozat 2016)."""
    theta, grad = _shrunk(theta, grad, group, group.get("decoupled_weight_decay", False))
    step, mean, square = _moments(grad, state, group)
    beta1, beta2 = group["betas"]
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (at * group["momentum_decay"])) for at in (step, step + 1))
    product = float(torch.tensor(state.get("mu_product", 1.0)) * mu)  # torch keeps it in the default dtype
    denominator = _root(square / (1 - beta2**step)) + group["eps"]
    update = (1 - mu) / (1 - product) * grad + mu_next / (1 - product * mu_next) * mean
    return _moved(theta, group["lr"], update / denominator)


def radam(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """Rectified Adam (Liu et al. 2020)."""
    theta, grad = _shrunk(theta, grad, group, group.get("decoupled_weight_decay", False))
    step, mean, square = _moments(grad, state, group)
    beta1, beta2 = group["betas"]
    update = mean / (1 - beta1**step)
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length > 5:
        gain = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        update = update * gain**0.5 * (1 - beta2**step) ** 0.5 / (_root(square) + group["eps"])
    return _moved(theta, group["lr"], update)


def rmsprop(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """RMSprop (Tieleman and Hinton 2012), centred or not, with momentum."""
    update, alpha = _decayed(theta, grad, group), group["alpha"]
    average = alpha * state.get("square_avg", 0.0) + (1 - alpha) * update * update
    if group["centered"]:
        mean = alpha * state.get("grad_avg", 0.0) + (1 - alpha) * update
        average = average - mean * mean
    update = update / (_root(average) + group["eps"])
    if group["momentum"] > 0:
        update = group["momentum"] * state.get("momentum_buffer", 0.0) + update
    return _moved(theta, group["lr"], update)


def adagrad(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """Adagrad (Duchi et al. 2011)."""
    update = _decayed(theta, grad, group)
    total = state["sum"] + update * update  # Adagrad fills its state when it is made
    lr = group["lr"] / (1 + state["step"] * group["lr_decay"])
    return _moved(theta, lr, update / (_root(total) + group["eps"]))


def adadelta(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    """Adadelta (Zeiler 2012)."""
    update, rho, eps = _decayed(theta, grad, group), group["rho"], group["eps"]
    average = rho * state.get("square_avg", 0.0) + (1 - rho) * update * update
    past = state.get("acc_delta", torch.zeros_like(theta))
    return _moved(theta, group["lr"], update * ((past + eps) / (average + eps)).sqrt())


RULES: dict[type[Optimizer], UpdateRule] = {
    SGD: sgd,
    Adam: adam,
    AdamW: adamw,
    NAdam: nadam,
    RAdam: radam,
    RMSprop: rmsprop,
    Adagrad: adagrad,
    Adadelta: adadelta,
}
"""The rule of each optimizer, by its exact class."""


def _adam(theta: Tensor, grad: Tensor, state: State, group: State) -> Tensor:
    step, mean, square = _moments(grad, state, group)
    beta1, beta2 = group["betas"]
    if group["amsgrad"] and "max_exp_avg_sq" in state:
        square = torch.maximum(state["max_exp_avg_sq"], square)
    denominator = _root(square) / (1 - beta2**step) ** 0.5 + group["eps"]
    return _moved(theta, group["lr"] / (1 - beta1**step), mean / denominator)


def _moments(grad: Tensor, state: State, group: State) -> tuple[float, Tensor, Tensor]:
    """The number of this step, and the running means of the gradient and of its square."""
    beta1, beta2 = group["betas"]
    mean = beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * grad
    square = beta2 * state.get("exp_avg_sq", 0.0) + (1 - beta2) * grad * grad
    return state.get("step", 0) + 1, mean, square


def _shrunk(theta: Tensor, grad: Tensor, group: State, decoupled: bool) -> tuple[Tensor, Tensor]:
    """Applies weight decay to the parameters or to the gradient."""
    if decoupled:
        return theta * (1 - group["lr"] * group["weight_decay"]), _descent(grad, group)
    return theta, _decayed(theta, grad, group)


def _decayed(theta: Tensor, grad: Tensor, group: State) -> Tensor:
    descent = _descent(grad, group)
    return descent if group["weight_decay"] == 0 else descent + group["weight_decay"] * theta


def _descent(grad: Tensor, group: State) -> Tensor:
    return -grad if group["maximize"] else grad


def _moved(theta: Tensor, lr: Any, update: Tensor) -> Tensor:
    moved: Tensor = theta - lr * update if isinstance(lr, Tensor) else torch.add(theta, update, alpha=-lr)
    return moved


def _root(values: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0.

    An average of squares is 0 only where the gradient and its whole history are; there the factor d(average)/d(grad)
    is 0, and autograd's infinity times 0 would be NaN.
    """
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)
