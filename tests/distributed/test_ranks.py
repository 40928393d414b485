"""Several processes compute what one would on the whole batch, or all of them raise and say why they can't."""

import copy
import itertools
import os
import pickle
import re
import signal
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pool import Pool
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import maxl_l2l.distributed.reduction
import maxl_l2l.training.clock
from maxl_l2l import MAXL, AuxiliaryLabelGenerator, LabelGenerator, NonFiniteError, RandomLabels, evaluate, fit
from maxl_l2l.distributed.ranks import Ranks
from maxl_l2l.distributed.reduction import Reduction, buckets

PSI = [2, 3, 1]
# Of 10 samples one rank has 3; of 7 in the meta batch it has 5; of 12 one has 11.
CUTS = {10: 3, 7: 5, 12: 11}


def part(rank, *tensors):
    """A rank's part of a batch; all of it for a process alone."""
    cut = CUTS[len(tensors[0])]
    where = slice(None) if rank is None else (slice(cut), slice(cut, None))[rank]
    return tuple(tensor[where] for tensor in tensors)


def mlp():
    return MAXL(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)), PSI)


def cnn():
    body = nn.Sequential(
        nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh()
    )
    body = nn.Sequential(nn.Unflatten(1, (2, 2, 2)), body, nn.Linear(6, 3))
    return MAXL(nn.SyncBatchNorm.convert_sync_batchnorm(body), PSI)


def weighted():
    return MAXL(nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)), PSI, weighted=True)


class Dense(nn.Module):
    """A pixel for each of the 8 inputs."""

    def __init__(self, outputs):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, outputs, 1)

    def forward(self, x):
        return self.head(self.body(x.view(-1, 1, 2, 4)).tanh())


def dense():
    return MAXL(Dense(3), PSI)


class Targets(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 4)

    def forward(self, x, y):
        return self.body(x).tanh()


def any_regularizer():
    """A regulariser that is no function of a mean: ranks must see one another's targets."""
    return AuxiliaryLabelGenerator(
        nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)),
        Targets(),
        4,
        auxiliary_loss=lambda outputs, targets: (outputs - targets).square().mean(dim=1),
        regularizer=lambda targets: -0.1 * targets.var(dim=0).log().sum(),
    )


def lstm():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.body(x.view(-1, 4, 2))[0][:, -1])

    return MAXL(Recurrent(), PSI, generator=None)


LEARNERS = {
    "mlp": mlp,
    "sync batch norm": cnn,
    "weighted": weighted,
    "dense": dense,
    "any regularizer": any_regularizer,
    "lstm": lstm,
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "adamax": lambda parameters: torch.optim.Adamax(parameters, lr=0.01),  # the route for any optimizer
}


def learner(kind, rank):
    """The same learner in each process, and the two optimizers; small buckets, so that there are several."""
    maxl_l2l.distributed.reduction.BUCKET_BYTES = 400
    torch.manual_seed(0 if rank is None else rank)  # rank 0's parameters are those that count
    maxl = LEARNERS[kind]().double()
    if rank is not None:
        maxl.distribute()
    return maxl


def batches(kind, number, size=10):
    numbers = torch.Generator().manual_seed(1000 * size + number)
    shape = (size, 2, 4) if kind == "dense" else (size,)
    return torch.randn(size, 8, generator=numbers).double(), torch.randint(0, 3, shape, generator=numbers)


def state(maxl):
    return {name: tensor.detach().clone() for name, tensor in maxl.state_dict().items()}


def losses(result):
    names = ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "error")
    return {name: float(value) for name in names if (value := getattr(result, name)) is not None}


def train(rank, kind, optimizer, steps, how, with_meta_batch, options, size=10):
    """Trains for some steps; returns the state, the last losses, and the hypergradient of one more batch."""
    maxl = learner(kind, rank)
    network_optimizer = OPTIMIZERS[optimizer](maxl.network.parameters())
    generator_optimizer = OPTIMIZERS[optimizer](maxl.generator.parameters())
    for number in range(steps):
        x, y = part(rank, *batches(kind, number, size))
        meta_batch = part(rank, *batches(kind, number, 7)) if with_meta_batch else None
        if how == "step":
            result = maxl.step(x, y, network_optimizer, generator_optimizer, meta_batch=meta_batch, **options)
        else:
            result = maxl.network_step(x, y, network_optimizer)
            maxl.generator_step(x, y, network_optimizer, generator_optimizer, meta_batch=meta_batch, **options)
    maxl.generator.zero_grad()
    found = state(maxl)
    maxl.hypergradient(*part(rank, *batches(kind, steps)), optimizer=network_optimizer, **options)
    return found, losses(result), [parameter.grad for parameter in maxl.generator.parameters()]


CASES = [
    ("mlp", "sgd", "step", False, {}),
    ("mlp", "adamw", "step", True, {}),
    ("mlp", "adamax", "step", False, {}),
    ("mlp", "sgd", "step", True, {"max_grad_norm": 0.1}),
    ("mlp", "adamw", "halves", True, {}),
    ("mlp", "sgd", "step", True, {"micro_batches": 2}),
    ("mlp", "sgd", "step", True, {"method": "unrolled"}),
    ("mlp", "sgd", "step", False, {"method": "unrolled", "max_grad_norm": 0.1}),
    ("mlp", "sgd", "step", False, {"method": "regularizer"}),
    ("sync batch norm", "sgd", "step", True, {}),
    ("sync batch norm", "sgd", "halves", False, {"method": "unrolled"}),
    ("weighted", "sgd", "step", False, {}),
    ("dense", "adamw", "step", False, {}),
    ("any regularizer", "sgd", "step", True, {}),
    ("lstm", "sgd", "step", False, {}),
]


@pytest.mark.parametrize(("kind", "optimizer", "how", "with_meta_batch", "options"), CASES)
def test_two_processes_compute_what_one_does(pool, kind, optimizer, how, with_meta_batch, options):
    arguments = (kind, optimizer, 20, how, with_meta_batch, options)
    expected, expected_losses, expected_grads = train(None, *arguments)
    results = pool.run(train, *arguments)
    for found, found_losses, grads in results:
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)
        assert found_losses == pytest.approx(expected_losses, rel=1e-10)
        assert any(grad.norm() > 0 for grad in grads)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)
    (first, _, _), (second, _, _) = results
    assert all(torch.equal(first[name], second[name]) for name in first), "ranks have come apart"


def test_parts_that_split_into_other_numbers_of_micro_batches(pool):
    """11 samples make 4 passes, 1 sample makes one."""
    arguments = ("mlp", "sgd", 3, "step", True, {"micro_batches": 4}, 12)
    expected, _, expected_grads = train(None, *arguments)
    for found, _, grads in pool.run(train, *arguments):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["mlp", "sync batch norm"])
def test_finite_differences_leave_ranks_in_step(pool, kind):
    """Also where the distance is looked for anew, and in other numbers of passes."""
    options = {"method": "finite-difference"} | ({"micro_batches": 4} if kind == "mlp" else {})
    (first, *_), (second, *_) = pool.run(train, kind, "sgd", 110, "step", False, options, 12 if kind == "mlp" else 10)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if kind == "sync batch norm":  # the gradients before its layers are zero, but for rounding
        return
    (*_, grads), _ = pool.run(train, kind, "sgd", 3, "step", False, {"method": "finite-difference"})
    *_, exact = train(None, kind, "sgd", 3, "step", False, {})
    assert max((one - other).norm() / other.norm() for one, other in zip(grads, exact)) < 1e-3


def fall_back(rank):
    class Once(torch.autograd.Function):
        """Has a backward, but no rule for forward mode."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].cos()

    class Sine(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(8, 6), Sine(), nn.Linear(6, 3)), PSI).double()
    if rank is not None:
        maxl.distribute()
    with pytest.warns(RuntimeWarning, match="the double backward pass is used"):
        maxl.hypergradient(*part(rank, *batches("mlp", 0)))
    return [parameter.grad for parameter in maxl.generator.parameters()]


def test_ranks_fall_back_on_another_method_together(pool):
    expected = fall_back(None)
    for grads in pool.run(fall_back):
        torch.testing.assert_close(grads, expected, rtol=1e-10, atol=1e-12)


def started_during_backward(rank):
    maxl_l2l.distributed.reduction.BUCKET_BYTES = 64
    maxl = mlp()
    maxl.distribute()
    log = []
    ranks = maxl.ranks
    start = ranks.start_sum
    ranks.start_sum = lambda tensor: log.append("sum") or start(tensor)
    parameters = list(maxl.module.parameters())
    reduction = Reduction(ranks, parameters, 1)

    def backward():
        loss = maxl.module(batches("mlp", 0)[0].float()).square().sum()
        found = torch.autograd.grad(loss, parameters)
        log.append("end of backward")
        return list(found)

    reduction.add(backward)
    reduction.total()
    return log


def test_buckets_go_out_while_the_backward_pass_runs(pool):
    (log, other) = pool.run(started_during_backward)
    assert log == other
    assert log.index("end of backward") == len(log) - 2, "all but the last bucket"
    assert log.count("sum") > 3


def unused(rank):
    """A parameter that one rank's samples use and the other's do not; one that nobody's do; sparse gradients."""
    tensors = [torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    table = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    ranks = Ranks(dist.group.WORLD, torch.device("cpu"))
    found = []
    for attached in (False, True):
        reduction = Reduction(ranks, [*tensors, table], 2)
        for scale in (1.0, 2.0):

            def backward(scale=scale, attached=attached):
                loss = scale * tensors[0].square().sum()
                loss = loss + F.embedding(torch.tensor([rank]), table, sparse=True).sum()
                if rank == 1:
                    loss = loss + scale * tensors[1].sum()
                wanted = [*tensors, table]
                grads = torch.autograd.grad(loss, wanted, allow_unused=True, create_graph=attached)
                return [grad.to_dense() if grad is not None and grad.is_sparse else grad for grad in grads]

            reduction.add(backward)
        found.append(
            [
                one if one is None else one.detach()
                for one in (reduction.attached_total() if attached else reduction.total())
            ]
        )
    return found


def test_a_gradient_that_no_rank_has_stays_none_and_one_that_some_have_is_theirs(pool):
    for totals in pool.run(unused):
        for first, second, third, rows in totals:
            assert torch.equal(first, torch.full((3,), 12.0, dtype=torch.float64))
            assert torch.equal(second, torch.full((3,), 3.0, dtype=torch.float64))
            assert third is None
            assert torch.equal(rows[:2], torch.full((2, 2), 2.0, dtype=torch.float64))


def counted(rank, kind):
    """Bytes that one step hands to collectives, and the bytes of both networks' parameters."""
    maxl = LEARNERS[kind]()
    maxl.distribute()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (maxl.network, maxl.generator)]
    x, y = part(rank, *batches(kind, 0))
    maxl.step(x.float(), y, *optimizers)
    sent, originals = [], {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "all_gather_object")}
    gather = dist.all_gather
    for name, original in originals.items():
        setattr(
            dist,
            name,
            lambda one, *args, original=original, **options: (
                sent.append(one.numel() * one.element_size()),
                original(one, *args, **options),
            )[1],
        )
    dist.all_gather = lambda rows, mine, **options: (
        sent.append(mine.numel() * mine.element_size()),
        gather(rows, mine, **options),
    )[1]
    try:
        maxl.step(x.float(), y, *optimizers)
    finally:
        dist.all_gather = gather
        for name, original in originals.items():
            setattr(dist, name, original)
    sizes = [sum(p.numel() * p.element_size() for p in net.parameters()) for net in (maxl.network, maxl.generator)]
    return sum(sent), *sizes, len(list(maxl.parameters()))


@pytest.mark.parametrize("kind", ["mlp", "sync batch norm", "dense"])
def test_bytes_of_a_step_are_twice_the_network_and_once_the_generator(pool, kind):
    for sent, network, generator, number in pool.run(counted, kind):
        gradients = 2 * network + generator
        # Besides, a flag for each parameter, the header, the mean label, the losses, and what BatchNorm needs.
        assert gradients < sent < gradients + 8 * number + (200 if kind != "sync batch norm" else 2000)
        if kind != "sync batch norm":
            assert sent <= 3 * (network + generator)


def random_states(rank, even):
    """Dropout in both networks; returns what the masks do to equal samples, and the state of the generators."""
    torch.manual_seed(5)
    maxl = MAXL(nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 3)), PSI)
    maxl.distribute()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (maxl.network, maxl.generator)]
    x = torch.ones(10, 8)
    y = torch.zeros(10, dtype=torch.long)
    found = []
    for _ in range(3):
        mine = (x[:3], y[:3]) if even else part(rank, x, y)
        result = maxl.step(*mine, *optimizers)
        maxl.network_step(*mine, optimizers[0])
        before = torch.get_rng_state()
        maxl.hypergradient(*mine)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(result.outputs[:3])
    return found, torch.get_rng_state(), state(maxl)


def test_ranks_draw_other_masks(pool):
    for (first, *_), (second, *_) in [pool.run(random_states, True)]:
        assert not any(torch.equal(one, other) for one, other in zip(first, second))
        assert not torch.equal(first[0], first[1])


def test_random_states_stay_in_step_after_uneven_parts(pool):
    (_, state_0, parameters_0), (_, state_1, parameters_1) = pool.run(random_states, False)
    assert torch.equal(state_0, state_1)
    assert all(torch.equal(parameters_0[name], parameters_1[name]) for name in parameters_0)


class Counting(nn.Module):
    """Keeps what a rank has seen in buffers: counts, a mask with infinities, and the sum of its inputs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("last", torch.zeros(8))
        self.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))
        self.register_buffer("large", torch.tensor(2**60 + 1))
        self.register_buffer("small", torch.tensor(0, dtype=torch.int16))

    def forward(self, x):
        self.seen += len(x)
        self.last.copy_(x.detach().sum(dim=0))
        self.mask[0] += 1
        self.phase += 1j * len(x)
        self.large += 1
        self.small += len(x)
        return x


def buffers(rank):
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(Counting(), nn.BatchNorm1d(8), nn.Linear(8, 3)), PSI).double()
    if rank is not None:
        maxl.distribute()
    x, y = part(rank, *batches("mlp", 0))
    maxl.network_step(x, y, torch.optim.SGD(maxl.network.parameters(), lr=0.1))
    return state(maxl.module)


def test_statistics_of_batch_norm_are_averaged_and_other_buffers_are_rank_0s(pool):
    first, second = pool.run(buffers)
    x = batches("mlp", 0)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(first["1.running_mean"], 0.1 * x.mean(dim=0), rtol=1e-12, atol=1e-14)
    variance = 0.3 * x[:3].var(dim=0) + 0.7 * x[3:].var(dim=0)
    torch.testing.assert_close(first["1.running_var"], 0.9 + 0.1 * variance, rtol=1e-12, atol=1e-14)
    assert first["1.num_batches_tracked"] == 1
    assert first["0.seen"] == 3
    assert torch.equal(first["0.mask"], torch.tensor([1.0, -torch.inf], dtype=torch.float64))
    assert torch.equal(first["0.phase"], torch.full((2,), 3j, dtype=torch.complex128))
    assert first["0.large"] == 2**60 + 2
    assert first["0.small"] == 3
    torch.testing.assert_close(first["0.last"], x[:3].sum(dim=0))


def fitted(rank, folder, stop):
    """A run by fit() of 4 epochs, or of stop epochs and then the rest; the batches of one process are the ranks'."""
    x, y = batches("mlp", 0)
    data = TensorDataset(torch.cat([x, 2 * x, x[:2]]), torch.cat([y, y, y[:2]]))
    test = DataLoader(TensorDataset(*part(rank, *batches("mlp", 3))), batch_size=2)
    if rank is None:
        order = [[0, 2, 4, 6, 1, 3, 5, 7], [8, 10, 12, 14, 9, 11, 13, 15], [16, 18, 20, 17, 19, 21]]
        loader = DataLoader(data, batch_sampler=order)
    else:
        loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, 2, rank, shuffle=False))
    for epochs in (stop, 4) if stop else (4,):
        torch.manual_seed(0)
        maxl = mlp().double()
        if rank is not None:
            maxl.distribute()
        history = fit(
            maxl,
            loader,
            epochs,
            optimizer=torch.optim.Adam(maxl.network.parameters(), lr=0.01),
            generator_optimizer=torch.optim.Adam(maxl.generator.parameters(), lr=0.01),
            test_loader=test,
            checkpoint=f"{folder}/run.pt",
            resume=True,
            progress=False,
        )
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in history.epochs]
    return records, state(maxl)


@pytest.mark.parametrize("stop", [None, 2])
def test_fit_over_ranks_has_the_history_of_one_process_and_resumes(pool, tmp_path, stop):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    expected, parameters = fitted(None, folders[0], None)
    for history, found in pool.run(fitted, folders[1], stop):
        assert len(history) == 4
        for record, wanted in zip(history, expected):
            assert record == pytest.approx(wanted, rel=1e-9)
        for name, value in parameters.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)


def epochs_set(rank):
    maxl = mlp()
    maxl.distribute()
    data = TensorDataset(torch.randn(8, 8), torch.randint(0, 3, (8,)))
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 2, rank))
    epochs_set = []
    loader.sampler.set_epoch = epochs_set.append
    fit(maxl, loader, 3, progress=False)
    return epochs_set


def test_fit_tells_the_sampler_its_epoch(pool):
    assert pool.run(epochs_set) == [[0, 1, 2]] * 2


# What bad input gets: each of these functions makes one rank differ, and all ranks must say so.


def other_psi(rank):
    MAXL(nn.Linear(8, 3), [2, 3, 1] if rank == 0 else [2, 2, 2]).distribute()


def other_model(rank):
    MAXL(nn.Sequential(nn.Linear(8, 5 + rank), nn.Linear(5 + rank, 3)), PSI).distribute()


def larger_model(rank):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    if rank == 1:
        model[0].register_parameter("scale", nn.Parameter(torch.ones(8)))
    MAXL(model, PSI, generator=LabelGenerator(nn.Linear(8, 6), PSI)).distribute()


def frozen_model(rank):
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 3))
    model[0].weight.requires_grad_(rank == 0)
    MAXL(model, PSI).distribute()


def other_order(rank):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("first", "second")[:: 1 - 2 * rank]:
                setattr(self, name, nn.Linear(8, 8))
            self.head = nn.Linear(8, 3)

    MAXL(Two(), PSI).distribute()


def ready(rank):
    maxl = mlp()
    maxl.distribute()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (maxl.network, maxl.generator)]
    return maxl, torch.randn(4, 8), torch.tensor([0, 1, 2, 0]), optimizers


def no_batch_left(rank):
    maxl, x, y, optimizers = ready(rank)
    for _ in range(2 + rank):
        maxl.step(x, y, *optimizers)
    maxl.end_epoch()


def no_batch_left_in_fit(rank):
    maxl, x, y, _ = ready(rank)
    fit(maxl, [(x, y)] * (2 + rank), 1, progress=False)


def empty_batch(rank):
    maxl, x, y, optimizers = ready(rank)
    maxl.step(x[: 4 * (1 - rank)], y[: 4 * (1 - rank)], *optimizers)


def wrong_label(rank):
    maxl, x, y, optimizers = ready(rank)
    maxl.step(x, y + 3 * rank, *optimizers)


def other_method(rank):
    maxl, x, y, optimizers = ready(rank)
    maxl.step(x, y, *optimizers, method=("forward", "unrolled")[rank])


def other_lr(rank):
    maxl, x, y, optimizers = ready(rank)
    optimizers[0].param_groups[0]["lr"] *= 1 + rank
    maxl.step(x, y, *optimizers)


def other_momentum(rank):
    maxl, x, y, _ = ready(rank)
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9 * rank)
    maxl.network_step(x, y, optimizer)


def other_generator_lr(rank):
    maxl, x, y, optimizers = ready(rank)
    optimizers[1].param_groups[0]["lr"] *= 1 + rank
    maxl.step(x, y, *optimizers)


def other_gamma(rank):
    MAXL(nn.Linear(8, 3), PSI, gamma=rank).distribute()


def evaluation_on_one_rank(rank):
    maxl, x, y, _ = ready(rank)
    fit(maxl, [(x, y)], 1, progress=False, test_loader=[(x, y)] if rank == 0 else None)


def malformed_batch(rank):
    maxl, x, y, _ = ready(rank)
    fit(maxl, [(x, y), (x, y) if rank == 0 else x], 1, progress=False)


def labels_missing_on_one_rank(rank):
    maxl, x, y, _ = ready(rank)
    labels = torch.tensor([0, 2, 5, 0])
    fit(maxl, [(x, y, labels) if rank == 0 else (x, y)], 1, progress=False, source=RandomLabels())


def bad_test_data(rank):
    maxl, x, y, _ = ready(rank)
    evaluate(maxl, [(x, y + 3 * rank)])


def generator_in_other_numbers_of_passes(rank):
    body = nn.Sequential(nn.Linear(8, 6), nn.SyncBatchNorm(6), nn.Linear(6, 6))
    maxl = MAXL(nn.Linear(8, 3), PSI, generator=LabelGenerator(body, PSI))
    maxl.distribute()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (maxl.network, maxl.generator)]
    size = (9, 1)[rank]
    maxl.step(torch.randn(size, 8), torch.zeros(size, dtype=torch.long), *optimizers, micro_batches=2)


def other_number_of_micro_batches(rank):
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(8, 6), nn.SyncBatchNorm(6), nn.Linear(6, 3)), PSI)
    maxl.distribute()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (maxl.network, maxl.generator)]
    size = (8, 2)[rank]
    maxl.step(torch.randn(size, 8), torch.zeros(size, dtype=torch.long), *optimizers, micro_batches=4)


def other_call(rank):
    maxl, x, y, optimizers = ready(rank)
    if rank == 0:
        maxl.network_step(x, y, optimizers[0])
    else:
        maxl.step(x, y, *optimizers)


def broken_data(rank):
    maxl, x, y, _ = ready(rank)

    class Data(TensorDataset):
        def __getitem__(self, index):
            if rank == 1 and index == 3:
                raise OSError("image 3 is damaged")
            return super().__getitem__(index)

    fit(maxl, DataLoader(Data(x, y), batch_size=2), 1, progress=False)


def not_finite(rank):
    maxl, x, y, optimizers = ready(rank)
    if rank == 1:
        x[0] = torch.nan
    before = state(maxl)
    try:
        maxl.step(x, y, *optimizers)
    finally:
        assert all(torch.equal(before[name], value) for name, value in state(maxl).items())


BAD = {
    other_psi: (r"psi is \[2, 3, 1\] on rank 0 and \[2, 2, 2\] on rank 1",) * 2,
    other_model: (r"network.module.0.weight is \[5, 8\] torch.float32 on rank 0 and \[6, 8\] torch.float32 on",) * 2,
    larger_model: (r"network.module.0.scale is missing on rank 0 and \[8\] torch.float32 on rank 1. Build it from",)
    * 2,
    frozen_model: ("network.module.0.weight is .*float32 on rank 0 and .*float32 frozen on rank 1",) * 2,
    other_order: ("that the order of parameters is .* on rank 0 and .* on rank 1",) * 2,
    no_batch_left: (r"same number of batches, found: rank 0 is in the end of its epoch; rank 1 is in step\(\)",) * 2,
    no_batch_left_in_fit: (r"same number of batches, found: rank 0 is in the end of its epoch; rank 1",) * 2,
    empty_batch: ("rank 1 stopped: ValueError: `x` and `y` must have the same number", "ValueError: `x` and `y` must"),
    wrong_label: ("rank 1 stopped: ValueError: `y` must hold", "ValueError: `y` must hold"),
    other_method: (r"rank 0 is in step\(\) with method='forward', .*; rank 1 is in step\(\) with method='unrolled'",)
    * 2,
    other_lr: (r"rank 0 is in step\(\) with .* SGD\(lr=0.1, .*; rank 1 is in step\(\) with .* SGD\(lr=0.2",) * 2,
    other_momentum: (r"rank 0 is in network_step.* momentum=0.0, .*; rank 1 is in network_step.* momentum=0.9,",) * 2,
    other_generator_lr: (r"rank 0 is in step.*SGD\(lr=0.1.*SGD\(lr=0.1,.*; rank 1 .*SGD\(lr=0.1.*SGD\(lr=0.2,",) * 2,
    other_gamma: ("found that gamma is 0 on rank 0 and 1 on rank 1",) * 2,
    evaluation_on_one_rank: ("that test_loader is given on rank 0 and missing on rank 1",) * 2,
    malformed_batch: (
        "rank 1 stopped: TypeError: `loader` must yield batches",
        "TypeError: `loader` must yield batches",
    ),
    labels_missing_on_one_rank: (
        "rank 1 stopped: ValueError: `loader` must yield .x, y, label. for RandomLabels",
        "ValueError: `loader` must yield .x, y, label. for RandomLabels",
    ),
    bad_test_data: ("rank 1 stopped: ValueError: `y` must hold", "ValueError: `y` must hold"),
    generator_in_other_numbers_of_passes: ("SyncBatchNorm in 2 and 2 micro-batches; rank 1 .* in 1 and 1 micro",) * 2,
    other_number_of_micro_batches: (r"rank 0 .* 4 and 4 micro-batches; rank 1 .* 2 and 2 micro-batches",) * 2,
    other_call: (r"rank 0 is in network_step\(\) with .*auxiliary=True.*; rank 1 is in step\(\)",) * 2,
    broken_data: ("rank 1 stopped: OSError: image 3 is damaged", "OSError: image 3 is damaged"),
    not_finite: ("NonFiniteError: the primary loss is nan",) * 2,
}


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
def test_ranks_that_disagree_all_say_why_and_can_go_on(pool, function):
    for (ok, text), expected in zip(pool.attempt(function), BAD[function]):
        assert not ok
        assert re.search(expected, text.splitlines()[0]), text
    assert pool.run(buffers)[0]["0.seen"] == 3, "the ranks are in step again"


def dies(rank):
    maxl, x, y, optimizers = ready(rank)
    maxl.step(x, y, *optimizers)
    if rank == 1:
        os._exit(1)
    maxl.step(x, y, *optimizers)


def stays_away(rank):
    maxl, x, y, optimizers = ready(rank)
    if rank == 0:
        maxl.step(x, y, *optimizers)


@pytest.mark.parametrize("function", [dies, stays_away], ids=lambda function: function.__name__)
def test_a_rank_that_is_lost_ends_the_wait_with_a_message(function):
    with Pool(seconds=3) as processes:
        ok, text = processes.attempt(function)[0]
    assert not ok
    assert text.startswith("RankError: rank 0 of 2 got no answer from the others: ")
    assert "One of them has stopped, has left the training loop, or was not heard of until" in text


def test_without_a_process_group_distribute_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"Call torch.distributed.init_process_group\(\) first"):
        mlp().distribute()


def lacking(rank):
    """A backend that is registered with torch and can do nothing, as NCCL with tensors on a CPU."""

    class Lacking(dist.ProcessGroup):
        def getBackendName(self):
            return "lacking"

    dist.Backend.register_backend("lacking", lambda store, rank, size, timeout: Lacking(rank, size), devices=["cpu"])
    mlp().distribute(dist.new_group([0, 1], backend="lacking"))


def test_a_backend_without_the_collectives_is_named(pool):
    for ok, text in pool.attempt(lacking):
        assert not ok
        assert "`process_group` must be able to all_reduce, all_gather and broadcast tensors on cpu" in text
        assert "its backend 'lacking' says" in text
        assert "Use 'gloo' for CPUs" in text


def with_a_past(rank):
    """Rank 0 has tried its learner before the others came."""
    maxl = mlp()
    x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    for _ in range(3 * (1 - rank)):
        maxl.hypergradient(x, y)
    maxl.distribute()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (maxl.network, maxl.generator)]
    maxl.step(x, y, *optimizers)
    return state(maxl)


def test_what_a_rank_did_before_does_not_matter(pool):
    first, second = pool.run(with_a_past)
    assert all(torch.equal(first[name], second[name]) for name in first)


def empty_part(rank):
    maxl, x, y, _ = ready(rank)
    return evaluate(maxl, [(x, y)] if rank == 0 else [])


def test_evaluate_takes_parts_of_any_size(pool):
    first, second = pool.run(empty_part)
    assert first == second
    assert set(first) == {"loss", "accuracy"}


def own_forward(rank):
    layer = nn.SyncBatchNorm(6)
    layer.forward = forward = lambda input: input
    maxl = MAXL(nn.Sequential(nn.Linear(8, 6), layer, nn.SyncBatchNorm(6), nn.Linear(6, 3)), PSI)
    maxl.distribute()
    maxl.hypergradient(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))
    return layer.forward is forward and "forward" not in vars(maxl.module[2])


def test_layers_have_their_own_forward_afterwards(pool):
    assert pool.run(own_forward) == [True, True]


def branches(rank):
    """SyncBatchNorm, several buckets, and a parameter that one rank's samples alone use."""
    maxl_l2l.distributed.reduction.BUCKET_BYTES = 64

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.branch, self.head = (
                nn.Linear(8, 8),
                nn.SyncBatchNorm(8),
                nn.Linear(8, 8),
                nn.Linear(8, 3),
            )

        def forward(self, x):
            x = self.norm(self.first(x))
            chosen = x[:, 0] * 0 + 1 if rank is None else x.new_full((len(x),), float(rank == 0))
            if rank is None:
                chosen[3:] = 0
            return self.head(x + self.branch(x) * chosen[:, None] if chosen.any() else x)

    torch.manual_seed(0)
    maxl = MAXL(Branching(), PSI, generator=LabelGenerator(nn.Linear(8, 6), PSI)).double()
    if rank is not None:
        maxl.distribute()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (maxl.network, maxl.generator)]
    for number in range(3):
        maxl.step(*part(rank, *batches("mlp", number)), *optimizers)
    return state(maxl)


def test_parameters_that_one_rank_uses_under_sync_batch_norm(pool):
    expected = branches(None)
    for found in pool.run(branches):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def outside(rank):
    group = dist.new_group([0])
    if rank == 1:
        with pytest.raises(RuntimeError, match="must have this process as a member"):
            mlp().distribute(group)
    else:
        maxl = mlp()
        maxl.distribute(group)
        assert maxl.ranks.size == 1


def test_a_process_outside_the_group_gets_an_error(pool):
    pool.run(outside)


def own_orders(rank, path, stop):
    """Each rank shuffles its own part by a generator of its own, and drops out by a random state of its own."""
    data = TensorDataset(*batches("mlp", rank))
    for epochs in (stop, 4) if stop else (4,):
        torch.manual_seed(rank)
        maxl = MAXL(nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3)), PSI).double()
        maxl.distribute()
        loader = DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(rank))
        fit(maxl, loader, epochs, progress=False, checkpoint=path, resume=True)
    return state(maxl)


def test_resume_gives_each_rank_its_own_random_states(pool, tmp_path):
    whole, _ = pool.run(own_orders, tmp_path / "whole.pt", None)
    resumed, _ = pool.run(own_orders, tmp_path / "part.pt", 2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def own_clocks(rank, path, quick, hours):
    """A run of 4 epochs of 2 steps, as above; a step takes an hour by one rank's clock, the other's stands still."""
    torch.manual_seed(rank)
    maxl = MAXL(nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3)), PSI).double()
    maxl.distribute()
    data = TensorDataset(*batches("mlp", rank))
    loader = DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(rank))
    steps, take = [], maxl.step
    maxl.step = lambda *args, **kwargs: steps.append(1) or take(*args, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maxl_l2l.training.clock, "monotonic", lambda: 3600 * (rank == quick) * len(steps))
        times = {"time_limit": 60 * hours, "checkpoint_minutes": 1e9}
        return len(fit(maxl, loader, 4, progress=False, checkpoint=path, **times))


@pytest.mark.parametrize(
    ("quick", "hours", "epochs"), [(0, 5.9, 1), (0, 6, 2), (0, 9, 3), (0, 0.1, 1), (1, 0.1, 4), (0, 20, 4)]
)
def test_ranks_stop_together_at_the_end_of_an_epoch_by_rank_0s_clock(pool, tmp_path, quick, hours, epochs):
    whole, _ = pool.run(own_orders, tmp_path / "whole.pt", None)
    assert pool.run(own_clocks, tmp_path / "part.pt", quick, hours) == [epochs] * 2
    content = torch.load(tmp_path / "part.pt", weights_only=True)
    assert len(content["progress"]["history"]["epochs"]) == epochs
    resumed, _ = pool.run(own_orders, tmp_path / "part.pt", None)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def spoiled_once(rank, path, spoiled):
    """A run whose third batch of the second epoch is not finite, if spoiled."""
    torch.manual_seed(rank)
    maxl = MAXL(nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3)), PSI).double()
    maxl.distribute()
    x, y = batches("mlp", rank)
    passes = itertools.count(1)

    class Data(list):
        def __iter__(self):
            bad = torch.nan if spoiled and rank == 1 and next(passes) == 2 else 1
            return iter([(x[:4], y[:4]), (x[4:7], y[4:7]), (bad * x[7:], y[7:])])

    try:
        history = fit(maxl, Data([0, 0, 0]), 3, progress=False, checkpoint=path, resume=True)
    except NonFiniteError:
        return None
    return history["primary_loss"], state(maxl)


def test_ranks_go_on_from_before_the_step_that_was_not_finite(pool, tmp_path):
    whole = pool.run(spoiled_once, tmp_path / "whole.pt", False)
    assert pool.run(spoiled_once, tmp_path / "run.pt", True) == [None, None]
    resumed = pool.run(spoiled_once, tmp_path / "run.pt.stopped", False)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_place_inside_an_epoch_is_of_as_many_processes(pool, tmp_path):
    pool.run(spoiled_once, tmp_path / "run.pt", True)
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3)), PSI).double()
    with pytest.raises(ValueError, match=r"as many processes as there are, 1, if .* found one of 2 in .*stopped"):
        fit(maxl, [batches("mlp", 0)], 3, progress=False, checkpoint=tmp_path / "run.pt.stopped", resume=True)


def signalled(rank, folder, number):
    """A run of 4 epochs of which rank 1 alone gets a signal, with a batch of the second one; then what is left."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it

    class Data(TensorDataset):
        def __getitem__(self, index):
            if rank == 1 and index == 9 and epochs_left:
                epochs_left.pop()
                if not epochs_left:
                    os.kill(os.getpid(), number)
            return super().__getitem__(index)

    x, y = batches("mlp", 0)
    data = Data(torch.cat([x, 2 * x, x[:2]]), torch.cat([y, y, y[:2]]))
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, 2, rank, shuffle=False))

    def run(path):
        torch.manual_seed(0)
        maxl = mlp().double()
        maxl.distribute()
        options = {"test_loader": [part(rank, *batches("mlp", 3))], "checkpoint": path, "resume": True}
        history = fit(maxl, loader, 4, **options, progress=False)
        return [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs], state(maxl)

    epochs_left = []
    whole = run(f"{folder}/whole.pt")
    epochs_left += [1, 2]
    try:
        run(f"{folder}/run.pt")
    except (KeyboardInterrupt, SystemExit) as error:
        ended = f"{type(error).__name__} {error}"
    steps = torch.load(f"{folder}/run.pt", weights_only=True)["progress"]["steps"]
    torch.testing.assert_close(run(f"{folder}/run.pt"), whole, rtol=0, atol=0)
    return ended, steps


@pytest.mark.parametrize(
    ("number", "ended"), [(signal.SIGTERM, "SystemExit 143"), (signal.SIGINT, "KeyboardInterrupt ")]
)
def test_signal_to_one_rank_ends_all_after_the_same_step(pool, tmp_path, number, ended):
    (first, steps), (second, _) = pool.run(signalled, tmp_path, number)
    assert first == second == ended
    assert 3 < steps < 6  # inside the second epoch


def full_disk(rank, path):
    maxl, x, y, _ = ready(rank)
    make = tempfile.mkstemp

    def mkstemp(*args, **kwargs):
        handle, name = make(*args, **kwargs)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", mkstemp)
        fit(maxl, [(x, y)], 2, progress=False, checkpoint=path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_all_ranks_raise_when_the_checkpoint_can_not_be_written(pool, tmp_path):
    (_, first), (_, second) = pool.attempt(full_disk, tmp_path / "run.pt")
    assert first.startswith("OSError: [Errno 28] `checkpoint` must be a file that can be written")
    assert second.startswith("RankError: rank 0 stopped: OSError: [Errno 28] `checkpoint` must be a file that can be")


def copies(rank):
    maxl, *_ = ready(rank)
    other = copy.deepcopy(maxl)
    assert other.ranks is maxl.ranks
    assert pickle.loads(pickle.dumps(maxl)).ranks.size == 1
    assert maxl.clone().ranks is maxl.ranks


def test_a_copy_belongs_to_the_same_ranks_and_a_pickled_one_to_none(pool):
    pool.run(copies)


@pytest.mark.parametrize("wrapper", [nn.DataParallel, nn.parallel.DistributedDataParallel])
def test_a_model_in_a_data_parallel_wrapper_is_refused(pool, wrapper):
    for ok, text in pool.attempt(wrapped, wrapper):
        assert not ok
        assert f"TypeError: `model` must be the model itself, found {wrapper.__name__}" in text
        assert "maxl.distribute()" in text


def wrapped(rank, wrapper):
    MAXL(wrapper(nn.Linear(8, 3)), PSI)


def test_buckets_hold_every_tensor_once_from_the_last_to_the_first(monkeypatch):
    monkeypatch.setattr(maxl_l2l.distributed.reduction, "BUCKET_BYTES", 100)
    sizes = [22, 2, 3, 40, 10, 10, 1]
    tensors = [torch.zeros(size, dtype=torch.float16 if size == 3 else torch.float32) for size in sizes]
    found = buckets(tensors)
    assert sorted(itertools.chain(*found)) == list(range(7))
    assert found == [[6, 5, 4], [3], [2], [1, 0]]


def test_a_process_alone_exchanges_nothing():
    ranks = Ranks()
    value = torch.ones(2)
    assert ranks.sum(value) is value
    assert ranks.joined_rows(value) is value
    assert ranks.gathered(3) == [3]
    assert ranks.totals("", 4, 5) == (4, 5)
    mlp().end_epoch()
