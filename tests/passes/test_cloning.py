"""Connected clones: differentiable copies of modules, and new tensors in the place of their parameters."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from maxl_l2l import MAXL
from maxl_l2l.passes.cloning import connected_clone, replace_parameters


class Tied(nn.Module):
    """An autoencoder of one matrix, used by two layers."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x).tanh())


class SharedLayer(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x).tanh())


class Bound(nn.Module):
    """Keeps a bound method of a layer as attribute."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.f = self.layer.forward

    def forward(self, x):
        return self.f(x).tanh()


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body = kind(4, 3, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.body(x.unsqueeze(1).expand(-1, 3, -1))[0].sum(dim=1)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4, 4) for _ in range(2)])

    def forward(self, x):
        return (x @ self.weights[0]).tanh() @ self.weights[1]


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        # With weights asked for, attention runs in operations that have a second derivative.
        return self.body(x[None], x[None], x[None], need_weights=True)[0][0]


def normalised():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


MODELS = {
    "batch-norm": normalised,
    "tied": Tied,
    "shared-layer": SharedLayer,
    "bound-method": Bound,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "weight-norm": lambda: nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)),
    "spectral-norm": lambda: nn.Sequential(spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)),
    "parameter-list": Listed,
    "attention": Attentive,
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().double()


def batch(seed=1):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_state(module, expected):
    state = module.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def call_with(module, values, x):
    """functional_call with an entry per place: its own tying does not restore a layer that has two names."""
    names = {tensor: name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    entries = {}
    for prefix, submodule in module.named_modules():
        for name, tensor in {**submodule._parameters, **submodule._buffers}.items():
            if tensor is not None:
                entries[f"{prefix}.{name}".lstrip(".")] = values[names[tensor]]
    return functional_call(module, entries, (x,), tie_weights=False)


def test_clone_has_the_class_and_the_state_of_the_original(model):
    clone = connected_clone(model)
    assert [type(module) for module in clone.modules()] == [type(module) for module in model.modules()]
    assert_state(clone, snapshot(model))


def test_gradient_through_a_clone_reaches_the_originals(model):
    originals = list(model.parameters())
    through = torch.autograd.grad(connected_clone(model)(batch()).square().sum(), originals)
    direct = torch.autograd.grad(model(batch()).square().sum(), originals)
    for found, expected in zip(through, direct):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert any((grad != 0).any() for grad in direct)


def test_gradient_through_two_replaced_steps_is_that_of_functional_call(model):
    def unrolled(forward, parameters, replace):
        """Gradient of a loss after two inner steps, at the values before them."""
        for seed in (1, 2):
            loss = forward(batch(seed)).square().mean()
            grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
            parameters = replace(parameters, grads)
        return torch.autograd.grad(forward(batch(3)).square().mean(), list(model.parameters()))

    def stepped(parameters, grads):
        return {name: value - 0.3 * grad for (name, value), grad in zip(parameters.items(), grads)}

    def replace_in_clone(parameters, grads):
        replace_parameters(clone, {parameters[name]: value for name, value in stepped(parameters, grads).items()})
        return dict(clone.named_parameters())

    def replace_in_state(parameters, grads):
        state.update(stepped(parameters, grads))
        return {name: state[name] for name in parameters}

    clone, state = connected_clone(model), dict(model.named_parameters())
    buffers, before = {name: buffer.clone() for name, buffer in model.named_buffers()}, snapshot(model)
    through = unrolled(clone, dict(clone.named_parameters()), replace_in_clone)
    assert_state(model, before)
    oracle = unrolled(lambda x: call_with(model, {**state, **buffers}, x), dict(state), replace_in_state)
    for found, expected in zip(through, oracle):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_clone_holds_tensors_with_a_graph_instead_of_parameters(model):
    for tensor in connected_clone(model).parameters():
        assert not isinstance(tensor, nn.Parameter)
        assert tensor.grad_fn is not None
    assert all(parameter.is_leaf and parameter.grad is None for parameter in model.parameters())


def test_passes_of_a_clone_do_not_move_the_originals_buffers():
    torch.manual_seed(0)
    model = normalised().double()
    before, clone = snapshot(model), connected_clone(model)
    clone(batch())
    assert_state(model, before)
    assert clone[1].num_batches_tracked == 1
    expected = 0.9 * before["1.running_mean"] + 0.1 * model[0](batch()).mean(dim=0)
    torch.testing.assert_close(clone[1].running_mean, expected, rtol=1e-12, atol=1e-14)


def test_passes_of_the_original_do_not_move_the_clones_buffers():
    torch.manual_seed(0)
    model = normalised().double()
    clone = connected_clone(model)
    before = snapshot(clone)
    model(batch())
    assert_state(clone, before)


def test_buffer_with_a_graph_is_copied():
    model = nn.Linear(4, 1)
    model.register_buffer("last", 2 * model.weight)  # copy.deepcopy alone refuses it
    clone = connected_clone(model)
    assert clone.last is not model.last
    assert torch.equal(clone.last, model.last)


def test_tied_parameters_stay_tied_and_are_replaced_together():
    clone = connected_clone(Tied())
    assert clone.encoder.weight is clone.decoder.weight
    new = torch.zeros(4, 4)
    replace_parameters(clone, {clone.decoder.weight: new})
    assert clone.encoder.weight is clone.decoder.weight is new


def test_bound_methods_of_a_clone_are_bound_to_the_clone():
    clone = connected_clone(Bound())
    assert clone.f.__self__ is clone.layer
    replace_parameters(clone, {clone.layer.weight: torch.zeros(4, 4), clone.layer.bias: torch.ones(4)})
    assert torch.equal(clone(torch.randn(3, 4)), torch.ones(3, 4).tanh())


def test_replacing_leaves_other_parameters_and_the_original_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, bias=False))
    before, clone = snapshot(model), connected_clone(model)
    bias, last, new = clone[0].bias, clone[1].weight, torch.zeros(4, 4)
    replace_parameters(clone, {clone[0].weight: new, torch.zeros(4, 4): torch.ones(4, 4)})
    assert clone[0].weight is new
    assert clone[0].bias is bias
    assert clone[1].weight is last
    assert clone[1].bias is None
    assert_state(model, before)


def test_clone_of_a_clone_reaches_the_originals():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    first = connected_clone(model)
    replace_parameters(first, {first.weight: 3 * first.weight})
    second = connected_clone(first)
    x = torch.randn(5, 4)
    (grad,) = torch.autograd.grad(second(x).sum(), model.weight)
    torch.testing.assert_close(grad, 3 * x.sum(dim=0, keepdim=True))


def test_frozen_parameters_stay_frozen():
    model = nn.Linear(4, 1)
    model.bias.requires_grad_(False)
    clone = connected_clone(model)
    assert clone.weight.requires_grad
    assert not clone.bias.requires_grad
    assert clone.bias is not model.bias


# PyTorch's own: the first forward-mode derivative of a process compiles its rules with torch.jit.script.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["forward", "unrolled"])
def test_layers_under_two_names_are_still_the_models_own_after_a_hypergradient(method):
    torch.manual_seed(0)
    model = nn.Sequential(SharedLayer(), nn.Linear(4, 2)).double()
    parameters, before = list(model.parameters()), snapshot(model)
    MAXL(model, [2, 2]).hypergradient(batch(), torch.tensor([0, 1, 0, 1, 1, 0]), method=method)
    assert [id(parameter) for parameter in model.parameters()] == [id(parameter) for parameter in parameters]
    assert_state(model, before)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.generator = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.settings = {"names": ["a"]}
        self.aliases = [self.generator]


def test_shared_objects_are_the_same_objects_in_the_clone():
    pair = Pair()
    clone = connected_clone(pair, shared=[pair.generator, pair.settings])
    assert clone.generator is pair.generator
    assert clone.aliases[0] is pair.generator
    assert clone.settings is pair.settings
    assert clone.network is not pair.network
    assert all(isinstance(parameter, nn.Parameter) for parameter in clone.generator.parameters())
    assert not isinstance(clone.network.weight, nn.Parameter)


def test_without_sharing_everything_is_copied():
    pair = Pair()
    clone = connected_clone(pair)
    assert clone.generator is clone.aliases[0]
    assert clone.generator is not pair.generator
    assert clone.settings == pair.settings
    assert clone.settings is not pair.settings


def test_parameter_tied_to_a_shared_module_is_the_shared_one():
    pair = Pair()
    pair.network.bias = pair.generator.bias
    clone = connected_clone(pair, shared=iter([pair.generator]))
    assert clone.network.bias is pair.generator.bias
