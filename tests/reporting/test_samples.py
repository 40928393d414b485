"""What a report reads out of a learner: the right numbers, and without a trace."""

import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from maxl_l2l import MAXL, Hierarchy
from maxl_l2l.reporting.evidence import record_of
from maxl_l2l.reporting.maps import chosen_classes
from maxl_l2l.reporting.samples import Samples, gather


def samples(y, labels, psi, **more):
    given = {"human": None, "features": None, "images": None, "is_dense": False, "are_first": False, **more}
    return Samples(Hierarchy(psi), np.array(y), np.array(labels, dtype=float), **given)


def learner(psi=(2, 3), width=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, len(psi)))
    return MAXL(model, psi)


def data(size=40):
    torch.manual_seed(1)
    return torch.randn(size, 4), torch.arange(size) % 2


def test_record_counts_use_and_relative_entropy_by_hand():
    # Entropies 0 and log 2 over log 2, and (3/4, 1/4) over log 2; the class of one sub-class has nothing to choose.
    labels = [[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.75, 0], [0, 0, 1]]
    record = record_of(samples([0, 0, 0, 1], labels, [2, 1]))
    assert record["use"] == [2, 1, 1]
    third = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert record["relative_label_entropy"] == pytest.approx((0 + 1 + third) / 3)


def test_record_of_classes_that_are_not_split_has_no_relative_entropy():
    assert record_of(samples([0, 1], np.eye(2), [1, 1])) == {"use": [1, 1]}


def test_gather_gives_labels_and_features_of_evaluation_mode():
    maxl, (x, y) = learner(), data()
    found = gather(maxl, [(x, y)], 1000, seed=0)
    maxl.eval()
    with torch.no_grad():
        labels = maxl.generator(x, y)
        features = maxl.module[:3](x)
    np.testing.assert_allclose(found.labels, labels.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.features, features.numpy(), rtol=1e-5, atol=1e-6)
    assert found.assigned.tolist() == labels.argmax(dim=1).tolist()
    assert (found.y == y.numpy()).all()
    assert found.human is None
    assert found.images is None


def test_gather_of_a_headless_backbone_has_its_output_as_features():
    torch.manual_seed(0)
    backbone, (x, y) = nn.Sequential(nn.Linear(4, 7), nn.Tanh()), data()
    maxl = MAXL(backbone, [2, 2], num_features=7)
    found = gather(maxl, [(x, y)], 1000, seed=0)
    np.testing.assert_allclose(found.features, backbone(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_gather_averages_features_over_positions_of_a_layer():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.classifier = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.classifier(self.body(x)).mean(dim=1)

    torch.manual_seed(0)
    model, x = Tokens(), torch.randn(6, 3, 4)
    found = gather(MAXL(model, [2, 2]), [(x, torch.arange(6) % 2)], 10, seed=0)
    np.testing.assert_allclose(found.features, model.body(x).mean(dim=1).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_gather_averages_features_over_positions_of_a_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(6, 1, 8, 8)
    found = gather(MAXL(model, [2, 2]), [(x, torch.arange(6) % 2)], 10, seed=0)
    np.testing.assert_allclose(found.features, model[:2](x).mean(dim=(2, 3)).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_gather_of_a_weighted_generator_gives_probabilities():
    torch.manual_seed(0)
    x, y = data()
    found = gather(MAXL(nn.Sequential(nn.Linear(4, 2)), [2, 3], weighted=True), [(x, y)], 100, seed=0)
    np.testing.assert_allclose(found.labels.sum(axis=1), 1, rtol=1e-5)


def test_gather_of_pixels_gives_their_labels_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    x, y = torch.randn(3, 3, 16, 16), torch.randint(0, 2, (3, 16, 16))
    found = gather(MAXL(model, [2, 3]), [(x, y, 10 * y)], 10, seed=0)
    assert found.is_dense
    assert found.labels.shape == (300, 5)  # 100 a sample
    assert (found.human == 10 * found.y).all()
    assert found.features is None
    assert found.images is None
    for block, primary in (((0, 1), 0), ((2, 3, 4), 1)):
        np.testing.assert_allclose(found.labels[found.y == primary][:, block].sum(axis=1), 1, rtol=1e-5)


class Counting(Dataset):
    """Items whose first feature is their number; counts how many are read, and draws random numbers of all kinds."""

    def __init__(self, size):
        self.size, self.read = size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read += 1
        noise = np.random.rand() + random.random() + float(torch.rand(()))
        return torch.tensor([float(index), noise, 0, 0]), index % 2, index


@pytest.mark.parametrize("kind", ["plain", "shuffled", "sampler", "batch_sampler"])
def test_gather_draws_from_all_of_an_indexed_dataset_and_reads_no_more(kind):
    dataset = Counting(1000)
    options = {
        "plain": {"batch_size": 10},
        "shuffled": {"batch_size": 10, "shuffle": True, "generator": torch.Generator().manual_seed(3)},
        "sampler": {"batch_size": 10, "sampler": SubsetRandomSampler(range(500, 1000), torch.Generator())},
        "batch_sampler": {"batch_sampler": [[number, number + 1] for number in range(0, 1000, 2)]},
    }[kind]
    loader = DataLoader(dataset, **options)
    generators = [one for one in (loader.generator, getattr(loader.sampler, "generator", None)) if one is not None]
    before = [generator.get_state() for generator in generators]
    found = gather(learner(), loader, 50, seed=0)
    assert dataset.read == 50
    assert len(set(found.human)) == 50
    assert found.human.max() > 800
    assert found.human.min() < (600 if kind == "sampler" else 200)
    if kind == "sampler":
        assert found.human.min() >= 500
    assert not found.are_first
    assert all((one.get_state() == state).all() for one, state in zip(generators, before))
    again = gather(learner(), loader, 50, seed=0)
    assert (again.human == found.human).all()
    assert (again.labels == found.labels).all()


def test_gather_of_a_stream_takes_the_first_batches_and_no_more():
    class Stream(IterableDataset):
        read = 0

        def __iter__(self):
            for number in range(1000):
                Stream.read += 1
                yield torch.full((4,), float(number)), number % 2, number

    found = gather(learner(), DataLoader(Stream(), batch_size=8), 20, seed=0)
    assert found.are_first
    assert Stream.read == 24
    assert len(found.y) == 20
    assert (found.human[:16] == range(16)).all()
    assert set(found.human[16:]) < set(range(16, 24))


def test_gather_cuts_one_large_batch_of_a_mapping_at_random():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)

        def forward(self, values, note):
            return self.body(values)

    x, y = data()
    found = gather(MAXL(Model(), [2, 2]), [({"values": x, "note": "kept"}, y, torch.arange(40))], 10, seed=0)
    chosen = found.human
    assert len(set(chosen)) == 10
    assert (chosen == sorted(chosen)).all()
    assert chosen.tolist() != list(range(10))
    np.testing.assert_allclose(found.features, x[chosen].numpy())


def test_gather_of_images_and_features_of_different_sizes_has_neither():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    model = nn.Sequential(OrderedDict(body=nn.Conv2d(1, 2, 1), head=head))
    y = torch.tensor([0, 1])
    batches = [(torch.rand(2, 1, 9, 9), y), (torch.rand(2, 1, 12, 12), y)]
    found = gather(MAXL(model, [2, 2], head="head"), batches, 10, seed=0)
    assert found.images is None
    assert found.features is None
    assert gather(MAXL(model, [2, 2], head="head"), batches[:1], 10, seed=0).features.shape == (2, 162)


def test_gather_scales_images_from_lowest_to_highest_and_shrinks_large_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    x = torch.full((2, 3, 192, 96), 5.0)
    x[0, 0], x[1, 2] = -3.0, 13.0
    found = gather(MAXL(model, [2, 2]), [(x, torch.tensor([0, 1]), torch.tensor([0, 1]))], 10, seed=0)
    assert found.images.shape == (2, 96, 48, 3)
    assert found.images[0, 0, 0].tolist() == [0.0, 0.5, 0.5]
    assert found.images[1, 5, 5].tolist() == [0.5, 0.5, 1.0]


def test_gather_takes_images_of_to_images_as_they_are():
    maxl, (x, y) = learner(), data(4)
    found = gather(maxl, [(x, y)], 10, seed=0, to_images=lambda x: x[:, :, None].repeat(1, 1, 2).clamp(-1, 2))
    assert found.images.shape == (4, 4, 2)
    np.testing.assert_allclose(found.images[:, :, 0], x.clamp(0, 1).numpy())


@pytest.mark.parametrize(
    "wrong", [lambda x: x, lambda x: x[:1, :, None], lambda x: x[:, None, None].repeat(1, 2, 1, 1)]
)
def test_to_images_of_another_shape_raises(wrong):
    maxl, (x, y) = learner(), data(4)
    with pytest.raises(ValueError, match=r"`to_images` must give images \[N, H, W\] or .*, 4 of them, found shape \["):
        gather(maxl, [(x, y)], 10, seed=0, to_images=wrong)


@pytest.mark.parametrize("third", [torch.rand(40), "text", torch.zeros(3, dtype=torch.long)])
def test_a_third_element_that_is_no_label_is_passed_over(third):
    x, y = data()
    assert gather(learner(), [(x, y, third)], 10, seed=0).human is None


def test_an_empty_loader_raises():
    with pytest.raises(ValueError, match=r"`loader` must yield at least one batch, found none\. Check the dataset"):
        gather(learner(), iter([]), 10, seed=0)


class Restless(nn.Module):
    """Moves a buffer in evaluation mode, puts another in a new tensor, and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        self.last = x[0].clone()
        return x + 0 * torch.rand(())


def state_of(maxl):
    tensors = {name: tensor.clone() for name, tensor in (*maxl.named_parameters(), *maxl.named_buffers())}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in maxl.named_parameters()}
    modes = [module.training for module in maxl.modules()]
    hooks = [len(module._forward_pre_hooks) for module in maxl.modules()]
    return tensors, grads, modes, hooks, torch.get_rng_state(), np.random.get_state(), random.getstate()


def assert_same(first, second):
    for one, two in zip(first[:2], second[:2]):
        assert one.keys() == two.keys()
        assert all((one[key] is None and two[key] is None) or torch.equal(one[key], two[key]) for key in one)
    assert first[2:4] == second[2:4]
    assert torch.equal(first[4], second[4])
    assert all(np.array_equal(one, two) for one, two in zip(first[5], second[5]))
    assert first[6] == second[6]


@pytest.mark.parametrize("fails", [False, True])
def test_gather_leaves_learner_and_random_states_as_they_were_also_if_it_raises(fails):
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(Restless(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)), [2, 2])
    x, y = data()
    maxl.loss(x, y).backward()
    maxl.module[2].eval()  # a part that the user has frozen
    dataset = Counting(40)

    def batches():
        yield from DataLoader(dataset, batch_size=20)
        if fails:
            raise OSError("the disk is gone")

    before = state_of(maxl)
    if fails:
        with pytest.raises(OSError, match="the disk is gone"):
            gather(maxl, batches(), 1000, seed=0)
    else:
        gather(maxl, batches(), 1000, seed=0)
    assert dataset.read == 40
    assert_same(before, state_of(maxl))


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([3, 0, 5], {0: "", 2: ""}),
        ([9, 8, 7, 1, 1, 1, 1], {**dict.fromkeys([0, 1, 2], "largest"), **dict.fromkeys([6, 5, 4], "surest labels")}),
    ],
)
def test_chosen_classes_are_the_largest_and_those_with_the_surest_labels(sizes, chosen):
    assert chosen_classes(sizes, [number / 10 for number in range(len(sizes))]) == chosen


def test_data_loader_of_tensors_works():
    x, y = data()
    assert len(gather(learner(), DataLoader(TensorDataset(x, y), batch_size=16), 1000, seed=0).y) == 40


class Own:
    """A sampler with random numbers of its own, and perhaps a length."""

    def __init__(self, size):
        self.size, self.generator, self.passes = size, torch.Generator().manual_seed(5), 0

    def __iter__(self):
        self.passes += 1
        yield from torch.randperm(self.size, generator=self.generator).tolist()


class Sized(Own):
    def __len__(self):
        return self.size


@pytest.mark.parametrize("can_be_copied", [True, False])
def test_gather_does_not_advance_what_is_inside_a_batch_sampler(can_be_copied):
    sampler = Sized(200)
    if not can_be_copied:
        sampler.lock = (number for number in range(3))
    loader = DataLoader(Counting(200), batch_sampler=BatchSampler(sampler, 10, False))
    state = sampler.generator.get_state()
    assert len(gather(learner(), loader, 50, seed=0).y) == 50
    assert (sampler.generator.get_state() == state).all()
    assert sampler.passes == (0 if can_be_copied else 1)
    assert loader.dataset.read == 50


def test_gather_of_a_sampler_without_a_length_takes_the_first_batches():
    found = gather(learner(), DataLoader(Counting(200), batch_size=10, sampler=Own(200)), 30, seed=0)
    assert found.are_first
    assert len(found.y) == 30


def prepare(number):
    torch.utils.data.get_worker_info().dataset.prepared = number + 1


class Prepared(Dataset):
    prepared = 0

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.zeros(4), index % 2, self.prepared


def test_gather_reads_with_the_workers_of_the_loader():
    loader = DataLoader(Prepared(), batch_size=10, num_workers=1, worker_init_fn=prepare)
    assert (gather(learner(), loader, 10, seed=0).human == 1).all()


@pytest.mark.parametrize("kind", [tuple, list])
def test_gather_cuts_an_x_of_several_parts(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)

        def forward(self, parts):
            values, texts = parts
            assert len(values) == len(texts) == 10
            assert all(float(text) == value for text, value in zip(texts, values[:, 0].tolist()))
            return self.body(values)

    x, y = data()
    texts = [str(value) for value in x[:, 0].tolist()]
    maxl = MAXL(Model(), [2, 2])
    for batches in ([(kind([x, texts]), y)], iter([(kind([x, texts]), y)])):
        assert len(gather(maxl, batches, 10, seed=0).y) == 10


def test_gather_takes_a_share_of_each_batch_of_a_list():
    batches = [(torch.randn(20, 4), torch.full((20,), number % 2), torch.full((20,), number)) for number in range(10)]
    found = gather(learner(), batches, 40, seed=0)
    assert len(found.y) == 40
    assert len(set(found.human)) > 7
    assert not found.are_first


def test_samples_whose_labels_are_not_finite_are_left_out_and_counted():
    x, y = data()
    x[3], x[7] = float("nan"), float("inf")
    found = gather(learner(), [(x, y, torch.arange(40))], 100, seed=0)
    assert found.dropped == 2
    assert set(range(40)) - set(found.human) == {3, 7}
    assert np.isfinite(found.labels).all()
    none = gather(learner(), [(torch.full((5, 4), float("nan")), y[:5])], 100, seed=0)
    assert none == "the generator's labels of all 5 samples that were looked at are not finite."


def test_odd_pixels_do_not_darken_the_images():
    torch.manual_seed(0)
    x = torch.rand(20, 1, 8, 8)
    x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 0, 0] = 1e4, float("inf"), float("nan")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(model[1].weight)
    maxl = MAXL(model, [2, 2])
    maxl.generator.forward = lambda x, y: torch.eye(4)[2 * y]
    found = gather(maxl, [(x, torch.arange(20) % 2)], 100, seed=0)
    assert found.dropped == 0
    assert 0.4 < found.images.mean() < 0.6
    assert found.images[:3, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_batches_without_human_labels_have_unknown_ones():
    x, y = data()
    found = gather(learner(), [(x[:20], y[:20], torch.ones(20, dtype=torch.uint8)), (x[20:], y[20:])], 100, seed=0)
    assert found.human.tolist() == [1] * 20 + [-1] * 20
