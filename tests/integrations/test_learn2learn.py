"""Against the real learn2learn: its programs run with MAXL in MAML's place, copies work and are independent, and
generated labels enter the inner loops of its other learners."""

import copy
import gc
import pickle
import types
import warnings

import by_hand
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maxl_l2l import MAXL, AuxiliaryLabelGenerator, MultiTaskNetwork

with warnings.catch_warnings():
    # It imports packages that are deprecated by now (gym, pkg_resources, torch.jit): theirs to mend, not ours.
    warnings.simplefilter("ignore")
    import learn2learn as l2l

PSI = [2, 3, 1]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Shared(nn.Module):
    """One layer under two names, within submodules that are themselves registered twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.body = nn.Sequential(nn.Flatten(), self.layer, nn.Tanh(), self.layer, nn.Tanh())
        self.out = nn.Sequential(nn.Linear(32, 3))
        self.all = nn.Sequential(self.body, self.out)

    def forward(self, x):
        return self.all(x)


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3))


def normalised():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
    model.register_buffer("of_no_use", torch.randn(1, 2, 3))
    return model


MODELS = {"mlp": mlp, "batch norm": normalised, "lstm": Recurrent, "shared": Shared}


def batch(seed=0, size=6):
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, 8, generator=numbers).double(), torch.randint(0, 3, (size,), generator=numbers)


def maxl_in_place_of_maml(model, lr=0.5, **options):
    return MAXL(model, PSI, lr, **options)


def program(learner_class, model, **options):
    """A training loop as learn2learn's users write it; returns the last gradients, and the parameters it leads to."""
    maml = learner_class(model, lr=0.5, **options)
    optimizer = torch.optim.Adam(maml.parameters(), lr=0.01)
    for iteration in range(3):
        optimizer.zero_grad()
        for task in range(2):
            learner, (x, y) = maml.clone(), batch(10 * iteration + task)
            for _ in range(3):
                learner.adapt(F.cross_entropy(learner(x), y))
            F.cross_entropy(learner(x), y).backward()
        optimizer.step()
    return [parameter.grad for parameter in model.parameters()], list(model.parameters())


# Programs written for MAML


@pytest.mark.filterwarnings("ignore:first_order=True:UserWarning")
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_maml_program_trains_the_same_model(kind, first_order):
    model = MODELS[kind]().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # learn2learn reads .grad of the weights of a cloned LSTM
        expected = program(l2l.algorithms.MAML, copy.deepcopy(model), first_order=first_order)
    found = program(maxl_in_place_of_maml, model, first_order=first_order)
    assert len(found[0]) == len(expected[0]) > 0
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_a_maml_program_with_a_frozen_layer_trains_the_same_model():
    model = mlp().double()
    model[1].weight.requires_grad_(False)
    expected, _ = program(l2l.algorithms.MAML, copy.deepcopy(model), allow_nograd=True)
    found, _ = program(maxl_in_place_of_maml, model, allow_nograd=True)
    assert found[0] is expected[0] is None
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-8, atol=1e-11)


@pytest.mark.filterwarnings("ignore:first_order=True:UserWarning")
def test_flags_are_those_of_maml():
    model = mlp()
    names = ("first_order", "allow_unused", "allow_nograd")
    for given in ({}, {"allow_nograd": True}, {"first_order": True, "allow_unused": True}, {"allow_unused": False}):
        ours, theirs = maxl_in_place_of_maml(model, 0.3, **given), l2l.algorithms.MAML(model, 0.3, **given)
        assert ours.lr == theirs.lr == 0.3
        for again in ({}, {"first_order": True, "allow_unused": False, "allow_nograd": True}):
            for name in names:
                assert getattr(ours.clone(**again), name) == getattr(theirs.clone(**again), name)
                assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_are_those_of_the_model(kind):
    model = MODELS[kind]().double().eval()  # in training mode BatchNorm's buffers would move on
    maxl, (x, _) = maxl_in_place_of_maml(model), batch()
    expected = model(x)
    for learner in (maxl, maxl.clone(), maxl.clone().clone(), cloned_module(maxl)):
        torch.testing.assert_close(learner(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", MODELS)
def test_the_models_parameters_come_first(kind):
    model = MODELS[kind]()
    maxl = maxl_in_place_of_maml(model)
    assert maxl.module is model
    for ours, theirs in zip(maxl.parameters(), model.parameters()):
        assert ours is theirs
    for ours, theirs in zip(maxl.clone().parameters(), model.parameters()):
        assert torch.equal(ours, theirs)


def test_attributes_are_looked_up_on_the_model():
    model = Recurrent()
    maxl = maxl_in_place_of_maml(model)
    assert maxl.rnn is l2l.algorithms.MAML(model, 0.1).rnn is model.rnn
    assert maxl.clone().rnn is not model.rnn
    with pytest.raises(AttributeError, match="no_such_thing"):
        maxl.no_such_thing  # noqa: B018


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_reach_the_original_before_and_after_adapting(kind):
    model = MODELS[kind]().double()
    maxl, (x, y) = maxl_in_place_of_maml(model), batch()
    for steps in range(3):
        learner = maxl.clone()
        for _ in range(steps):
            learner.adapt(F.cross_entropy(learner(x), y))
        F.cross_entropy(learner(x), y).backward()
        assert all(parameter.grad.norm() > 0 for parameter in model.parameters())
        maxl.zero_grad()


def test_adapting_lowers_the_loss_and_leaves_the_original_alone():
    maxl, (x, y) = maxl_in_place_of_maml(normalised().double()), batch()
    before = frozen(maxl)
    learner = maxl.clone()
    losses = [F.cross_entropy(learner(x), y)]
    for _ in range(3):
        learner.adapt(losses[-1])
        losses.append(F.cross_entropy(learner(x), y))
    assert losses == sorted(losses, reverse=True)
    assert frozen(maxl) == before


@pytest.mark.filterwarnings("ignore:first_order=True:UserWarning")
def test_first_order_gradients_are_those_at_the_adapted_parameters():
    model, (x, y) = mlp().double(), batch()
    learner = maxl_in_place_of_maml(model, first_order=True).clone()
    for _ in range(3):
        learner.adapt(F.cross_entropy(learner(x), y))
    adapted = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, value in zip(adapted.parameters(), learner.parameters()):
            parameter.copy_(value)
    F.cross_entropy(adapted(x), y).backward()
    F.cross_entropy(learner(x), y).backward()
    for parameter, expected in zip(model.parameters(), adapted.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-10, atol=1e-13)


def test_half_of_the_parameters_may_go_unused_with_leave():
    model = mlp()
    learner = maxl_in_place_of_maml(model).clone()
    loss = sum(parameter.norm() for number, parameter in enumerate(learner.parameters()) if number % 2 == 0)
    with pytest.raises(RuntimeError, match=r"1\.bias.*allow_unused=True"):
        learner.adapt(loss)
    learner.adapt(loss, allow_unused=True)
    learner = maxl_in_place_of_maml(model, allow_unused=True).clone()
    learner.adapt(sum(parameter.norm() for number, parameter in enumerate(learner.parameters()) if number % 2 == 0))
    sum(parameter.norm() for parameter in learner.parameters()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_frozen_parameters_are_refused_without_leave():
    model, (x, y) = mlp().double(), batch()
    model[1].weight.requires_grad_(False)
    before = model[1].weight.clone()
    learner = maxl_in_place_of_maml(model).clone()
    with pytest.raises(RuntimeError, match=r"1\.weight.*allow_nograd=True"):
        learner.adapt(F.cross_entropy(learner(x), y))
    learner.adapt(F.cross_entropy(learner(x), y), allow_nograd=True)
    for maxl in (learner, maxl_in_place_of_maml(model, allow_nograd=True)):
        again = maxl.clone(allow_nograd=True)
        again.adapt(F.cross_entropy(again(x), y))
        F.cross_entropy(again(x), y).backward()
        assert torch.equal(again.network.module[1].weight, before)
    assert model[1].weight.grad is None
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_of_three_layers_with_as_many_outputs_the_last_is_the_head():
    # The shape of the model in learn2learn's own tests: three linear layers with as many outputs as classes.
    model = nn.Sequential(
        nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.Sigmoid(), nn.Linear(20, 20), nn.Softmax(dim=1)
    )
    maxl = MAXL(model, psi=[5] * 20, lr=0.01)
    assert maxl.network.head == "4"
    x = torch.randn(7, 10)
    learner = maxl.clone()
    torch.testing.assert_close(learner(x), model(x), rtol=0, atol=0)
    learner.adapt(learner(x).norm())
    learner(x).norm().backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.parameters())


def test_low_level_functions_adapt_a_cloned_module_as_adapt_does():
    maxl, (x, y) = maxl_in_place_of_maml(normalised().double()), batch()
    learner, cloned = maxl.clone(), cloned_module(maxl)
    learner.adapt(learner.loss(x, y))
    parameters = list(cloned.network.parameters())
    grads = torch.autograd.grad(cloned.loss(x, y), parameters, create_graph=True)
    l2l.update_module(cloned.network, [-0.5 * grad for grad in grads])
    found = [torch.autograd.grad(thing.meta_loss(x, y), list(maxl.parameters())) for thing in (cloned, learner)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


# Copies


class Targets(nn.Module):
    """Real-valued auxiliary targets."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(32, 4))

    def forward(self, x, y):
        return self.body(x).tanh() + y.unsqueeze(1)


def squared_error(outputs, targets):
    return (outputs - targets).square().mean(dim=1)


def spread(targets):
    return -0.1 * targets.var(dim=0).mean()


def with_custom_losses():
    # A loss that holds a tensor, which a copy must not share.
    return AuxiliaryLabelGenerator(
        mlp(),
        Targets(),
        4,
        primary_loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double()),
        auxiliary_loss=squared_error,
        regularizer=spread,
    )


LEARNERS = {
    "plain": lambda: MAXL(mlp(), PSI),
    "weighted": lambda: MAXL(mlp(), PSI, weighted=True),
    "backbone": lambda: MAXL(nn.Sequential(nn.Flatten(), nn.Linear(32, 7), nn.Tanh()), PSI, num_features=7),
    "batch norm": lambda: MAXL(normalised(), PSI),
    "lstm": lambda: MAXL(Recurrent(), PSI),
    "shared": lambda: MAXL(Shared(), PSI),
    "custom losses": with_custom_losses,
}


def through_state_dict(maxl, build):
    other = build().double()
    other.load_state_dict(maxl.state_dict())
    return other


def cloned_module(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an LSTM it reads .grad of weights that have a graph
        return l2l.clone_module(module)


def detached_module(maxl):
    """What learn2learn has for a copy without the graph; buffers stay the original's, by its design."""
    cloned = cloned_module(maxl)
    l2l.detach_module(cloned, keep_requires_grad=True)
    return cloned


COPIES = {
    "deepcopy": lambda maxl, build: copy.deepcopy(maxl),
    "pickle": lambda maxl, build: pickle.loads(pickle.dumps(maxl)),
    "state_dict": through_state_dict,
}


def frozen(maxl):
    """All that a learner's parameters, buffers and gradients are, bit by bit."""
    tensors = [*maxl.named_parameters(), *maxl.named_buffers()]
    return {
        name: (tensor.detach().numpy().tobytes(), None if tensor.grad is None else tensor.grad.numpy().tobytes())
        for name, tensor in tensors
    }


def frozen_parameters(maxl):
    """The same of its parameters alone."""
    everything = frozen(maxl)
    return {name: everything[name] for name, _ in maxl.named_parameters()}


def losses(maxl):
    (x, y), (xq, yq) = batch(1), batch(2)
    return [maxl.loss(x, y), maxl.primary_loss(x, y), maxl.meta_loss(xq, yq)]


def adapted_grads(maxl, origin):
    """Gradients of the meta loss after two inner steps, at the origin's parameters."""
    (x, y), (xq, yq) = batch(1), batch(2)
    learner = maxl.clone()
    for _ in range(2):
        learner.adapt(learner.loss(x, y))
    return torch.autograd.grad(learner.meta_loss(xq, yq), list(origin.parameters()), allow_unused=True)


def hypergradients(maxl):
    """Of all methods; ``.grad`` is left as it was."""
    found = []
    for method in ("forward", "unrolled", "finite-difference"):
        maxl.hypergradient(*batch(1), meta_batch=batch(2), method=method)
        found += [parameter.grad for parameter in maxl.generator.parameters()]
        maxl.zero_grad()
    return found


def trained(maxl):
    """Parameters and buffers after two iterations."""
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.01)
    results = [maxl.step(*batch(seed), optimizer, generator_optimizer) for seed in (3, 4)]
    maxl.zero_grad()
    return [*maxl.parameters(), *maxl.buffers(), *(result.meta_loss for result in results)]


def behaviour(maxl):
    """What a learner computes, and what it becomes by training, as numbers."""
    found = [*losses(maxl), *adapted_grads(maxl, maxl), *hypergradients(maxl), *trained(maxl)]
    return [torch.as_tensor(value).detach().clone() for value in found if value is not None]


def reachable(*roots):
    """All that the roots refer to, directly or not. Classes and functions belong to nobody, but closures count."""
    found, waiting = {}, list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in found or isinstance(thing, (type, types.ModuleType, types.BuiltinFunctionType)):
            continue
        found[id(thing)] = thing
        waiting += (thing.__closure__ or ()) if isinstance(thing, types.FunctionType) else gc.get_referents(thing)
    return found


def shared_between(one, other):
    """What two object graphs have in common, of all that can be changed; and the memory common to their tensors."""
    mutable = (nn.Module, torch.Tensor, list, dict, set, types.CellType)
    common = [thing for key, thing in one.items() if key in other and isinstance(thing, mutable)]
    memory = [
        {thing.untyped_storage().data_ptr() for thing in things.values() if isinstance(thing, torch.Tensor)}
        for things in (one, other)
    ]
    return [*common, *(memory[0] & memory[1] - {0})]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    # Finite differences magnify the rounding of sums, whose order depends on where a tensor lies in memory.
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", LEARNERS)
def test_copy_works_and_neither_moves_the_other(kind, how):
    maxl = LEARNERS[kind]().double()
    copied = COPIES[how](maxl, LEARNERS[kind])
    before = frozen(maxl)
    assert frozen(copied) == before
    of_the_copy = behaviour(copied)
    assert frozen(maxl) == before
    assert frozen(copied) != before
    moved = frozen(copied)
    assert_same(behaviour(maxl), of_the_copy)
    assert frozen(copied) == moved


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", LEARNERS)
def test_copy_refers_to_nothing_of_the_original(kind, how):
    maxl = LEARNERS[kind]().double()
    behaviour(maxl)  # so that it holds whatever it comes to hold
    copied = COPIES[how](maxl, LEARNERS[kind])
    assert shared_between(reachable(copied), reachable(maxl)) == []


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["batch norm", "custom losses"])
def test_copy_of_a_compiled_learner_works_and_can_be_compiled(kind, how):
    maxl = LEARNERS[kind]().double()
    parts = reachable(maxl)  # torch.compile's own objects, which lead everywhere, are not there yet
    maxl.compile(backend="eager")
    hypergradients(maxl)
    plain, compiled = (COPIES[how](maxl, LEARNERS[kind]) for _ in range(2))
    assert shared_between(reachable(plain), parts) == []
    compiled.compile(backend="eager")
    before = frozen(maxl)
    found = behaviour(compiled)
    assert frozen(maxl) == before
    assert_same(found, behaviour(plain))
    assert_same(found, behaviour(maxl))


@pytest.mark.parametrize("kind", LEARNERS)
def test_cloned_module_computes_the_same_and_is_connected(kind):
    maxl = LEARNERS[kind]().double()
    buffers = dict(maxl.named_buffers())
    start = {name: buffer.clone() for name, buffer in buffers.items()}
    found = []
    for learner in (maxl, cloned_module(maxl), cloned_module(maxl.clone())):
        grads = adapted_grads(learner, maxl)
        found.append([*losses(learner), *(grad for grad in grads if grad is not None)])
        for name, buffer in buffers.items():
            buffer.copy_(start[name])  # those of learn2learn's clone are the original's, by its design
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("kind", LEARNERS)
def test_detached_cloned_module_trains_apart_from_the_original(kind):
    maxl = LEARNERS[kind]().double()
    expected = behaviour(copy.deepcopy(maxl))
    before = frozen_parameters(maxl)
    assert_same(behaviour(detached_module(maxl)), expected)
    assert frozen_parameters(maxl) == before


def test_detached_cloned_module_of_a_compiled_learner_trains_apart_from_it():
    maxl = LEARNERS["plain"]().double()
    expected = behaviour(copy.deepcopy(maxl))
    maxl.compile(backend="eager")
    hypergradients(maxl)
    before = frozen_parameters(maxl)
    assert_same(behaviour(detached_module(maxl)), expected)
    assert frozen_parameters(maxl) == before


def pickled(learner, build):
    return pickle.loads(pickle.dumps(learner))


@pytest.mark.parametrize("how", [through_state_dict, pickled])
@pytest.mark.parametrize("kind", LEARNERS)
def test_copy_of_an_adapted_clone_works_without_its_graph(kind, how):
    maxl = LEARNERS[kind]().double()
    learner = maxl.clone()
    learner.adapt(learner.loss(*batch(5)))
    copied = how(learner, LEARNERS[kind])
    assert shared_between(reachable(copied), reachable(learner)) == []
    before = frozen(maxl)
    of_the_copy = [*losses(copied), *adapted_grads(copied, copied.network)]
    assert frozen(maxl) == before
    # At the generator's parameters the gradients differ: the copy has not been adapted as a function of them.
    assert_same(of_the_copy, [*losses(learner), *adapted_grads(learner, learner.network)])


def test_deepcopy_of_a_clone_raises_as_it_does_for_maml():
    for learner in (l2l.algorithms.MAML(mlp(), lr=0.1), LEARNERS["plain"]()):
        with pytest.raises(RuntimeError, match="deepcopy protocol"):
            copy.deepcopy(learner.clone())


def test_clone_shares_the_generator_and_has_a_network_of_its_own():
    maxl = LEARNERS["batch norm"]().double()
    learner = maxl.clone()
    assert learner.generator is maxl.generator
    assert shared_between(reachable(learner.network), reachable(maxl.network)) == []


# Generated labels in the inner loops of other learners


def small(entropy_weight=0.2):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    return MAXL(model, PSI, entropy_weight=entropy_weight).double()


def flat_batch(seed):
    x, y = batch(seed)
    return x[:, 0], y


def perturbed(parameters):
    """Moves parameters apart, so that no two have the same value."""
    parameters = list(parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(0.5 + torch.rand_like(parameter)).add_(0.1 * torch.randn_like(parameter))
    return parameters


def maml(network):
    return l2l.algorithms.MAML(network, lr=0.4), [], lambda theta_1, grads: sgd(theta_1, grads, [0.4] * len(grads))


def meta_sgd(network):
    learner = l2l.algorithms.MetaSGD(network, lr=0.4)
    rates = perturbed(learner.lrs)
    return learner, rates, lambda theta_1, grads: sgd(theta_1, grads, rates)


def gbml(network):
    transform = l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear)
    learner = l2l.algorithms.GBML(network, transform, lr=0.4).double()
    factors = perturbed(learner.compute_update.parameters())

    def rule(theta_1, grads):
        # A gradient [n, m] is multiplied by a positive matrix from each side; a bias is [n, 1].
        updates = [
            (left.T @ left @ grad.reshape(len(left), -1) @ right.T @ right).reshape(grad.shape)
            for grad, left, right in zip(grads, factors[::2], factors[1::2])
        ]
        return sgd(theta_1, updates, [0.4] * len(updates))

    return learner, factors, rule


def sgd(theta_1, grads, rates):
    return [parameter - rate * grad for parameter, grad, rate in zip(theta_1, grads, rates)]


def assert_gradients_by_hand(maxl, rates, rule, steps):
    """Compares all gradients, which are in ``.grad``, with those of the mathematics written out."""
    theta_1, theta_2 = list(maxl.network.parameters()), list(maxl.generator.parameters())
    batches = [flat_batch(seed) for seed in range(steps)]
    loss = by_hand.unrolled(theta_1, theta_2, rule, batches, flat_batch(9), PSI)
    trained = [*theta_1, *theta_2, *rates]
    expected = torch.autograd.grad(loss, trained, allow_unused=True)
    # The last step of the auxiliary head does not enter the query loss, and so its rates do not.
    assert sum(grad is None for grad in expected) == (2 * len(rates) // len(theta_1) if steps == 1 else 0)
    for parameter, grad in zip(trained, expected):
        if grad is None:
            assert parameter.grad is None or not parameter.grad.any()
        else:
            assert (parameter.grad - grad).norm() <= 1e-9 * grad.norm()
            assert grad.norm() > 0


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("algorithm", [maml, meta_sgd, gbml])
def test_query_loss_trains_initialisation_rates_and_generator_together(algorithm, steps):
    maxl = small()
    learner, rates, rule = algorithm(maxl.network)
    adapted = learner.clone()
    for seed in range(steps):
        adapted.adapt(maxl.loss(*flat_batch(seed), network=adapted))
    maxl.meta_loss(*flat_batch(9), network=adapted).backward()
    assert_gradients_by_hand(maxl, rates, rule, steps)


@pytest.mark.parametrize("steps", [1, 2])
def test_features_stay_while_a_shared_layer_and_both_heads_adapt(steps):
    torch.manual_seed(2)
    features, shared = nn.Sequential(nn.Linear(8, 5), nn.Tanh()), nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    maxl = MAXL(nn.Sequential(features, shared), PSI, num_features=4).double()
    top = MultiTaskNetwork(shared, maxl.network.auxiliary_head, primary_head=maxl.network.primary_head)
    adapted = l2l.algorithms.MAML(top, lr=0.4).clone()

    def network(x):
        return adapted(features(x))

    for seed in range(steps):
        adapted.adapt(maxl.loss(*flat_batch(seed), network=network))
    maxl.meta_loss(*flat_batch(9), network=network).backward()
    assert_gradients_by_hand(
        maxl, [], lambda theta_1, grads: [*theta_1[:2], *sgd(theta_1[2:], grads[2:], [0.4] * 6)], steps
    )


def test_with_the_heads_alone_adapting_labels_do_not_reach_the_query_loss():
    # The heads share no parameter, so the auxiliary loss moves the auxiliary head alone, which the query does not see.
    features = nn.Sequential(nn.Linear(8, 5), nn.Tanh())
    maxl = MAXL(features, PSI, num_features=5, entropy_weight=0.0).double()
    heads = MultiTaskNetwork(nn.Identity(), maxl.network.auxiliary_head, primary_head=maxl.network.primary_head)
    adapted = l2l.algorithms.MAML(heads, lr=0.4).clone()
    adapted.adapt(maxl.loss(*flat_batch(0), network=lambda x: adapted(features(x))))
    maxl.primary_loss(*flat_batch(9), network=lambda x: adapted(features(x))).backward()
    assert all(parameter.grad is not None for parameter in features.parameters())
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in maxl.generator.parameters())


@pytest.mark.parametrize("algorithm", [maml, meta_sgd, gbml])
def test_one_optimizer_lowers_the_query_loss_through_all_of_them(algorithm):
    maxl = small()
    learner, rates, _ = algorithm(maxl.network)
    parts = [list(maxl.network.parameters()), list(maxl.generator.parameters()), rates]
    optimizer = torch.optim.Adam([parameter for part in parts for parameter in part], lr=0.01)
    starts = [[parameter.detach().clone() for parameter in part] for part in parts]
    query_losses = []
    for _ in range(20):
        optimizer.zero_grad()
        adapted = learner.clone()
        for _ in range(2):
            adapted.adapt(maxl.loss(*flat_batch(0), network=adapted))
        query_losses.append(maxl.meta_loss(*flat_batch(0), network=adapted))
        query_losses[-1].backward()
        optimizer.step()
    assert query_losses[-1] < query_losses[0]
    for part, start in zip(parts, starts):
        assert all(not torch.equal(parameter, before) for parameter, before in zip(part, start))
