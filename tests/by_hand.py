"""The paper's mathematics in plain tensor algebra, for the tests to compare with: nothing of maxl_l2l is in here.

Both networks are multilayer perceptrons with tanh; their parameters are lists ``[weight, bias, weight, bias, ...]`` in
the order of ``parameters()``: hidden layers first, then the primary head, then the auxiliary one.
"""

import torch


def network(theta_1, x):
    *hidden, primary, auxiliary = _layers(theta_1)
    for layer in hidden:
        x = torch.tanh(_linear(layer, x))
    return _linear(primary, x), _linear(auxiliary, x)


def labels(theta_2, x, y, psi):
    *hidden, last = _layers(theta_2)
    for layer in hidden:
        x = torch.tanh(_linear(layer, x))
    primary_of_auxiliary = torch.repeat_interleave(torch.arange(len(psi)), torch.tensor(psi))
    scores = torch.exp(_linear(last, x)) * (primary_of_auxiliary == y[:, None])
    return scores / scores.sum(dim=1, keepdim=True)


def focal(logits, targets):
    probs = torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)
    return -(targets * (1 - probs) ** 2 * torch.log(probs)).sum(dim=1).mean()


def primary_loss(theta_1, x, y):
    logits = network(theta_1, x)[0]
    return focal(logits, torch.eye(logits.shape[1], dtype=logits.dtype)[y])


def inner_loss(theta_1, theta_2, x, y, psi):
    return primary_loss(theta_1, x, y) + focal(network(theta_1, x)[1], labels(theta_2, x, y, psi))


def meta_loss(theta_1, theta_2, x, y, psi, entropy_weight=0.2):
    mean_label = labels(theta_2, x, y, psi).mean(dim=0)
    return primary_loss(theta_1, x, y) + entropy_weight * (mean_label * torch.log(mean_label)).sum()


def unrolled(theta_1, theta_2, rule, batches, query, psi):
    """The meta loss after a step by ``rule(theta_1, grads) -> theta_1`` on each batch, connected to all that enters."""
    for x, y in batches:
        grads = torch.autograd.grad(inner_loss(theta_1, theta_2, x, y, psi), theta_1, create_graph=True)
        theta_1 = rule(theta_1, grads)
    return meta_loss(theta_1, theta_2, *query, psi)


def _layers(parameters):
    return list(zip(parameters[::2], parameters[1::2]))


def _linear(layer, x):
    weight, bias = layer
    return x @ weight.T + bias
