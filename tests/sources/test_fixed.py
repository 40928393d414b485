"""Label sources: six ways to label, one interface."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from maxl_l2l import MAXL, EntropyLabels, GeneratedLabels, Hierarchy, HumanLabels, RandomLabels, SingleTask, fit
from maxl_l2l.kmeans import KMeansLabels

PSI = [3, 2]


def clusters():
    """Five well separated clusters: three in primary class 0, two in primary class 1."""
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 9.0], [9.0, 0.0], [9.0, 9.0], [-9.0, 0.0], [0.0, -9.0]])
    truth = torch.arange(5).repeat_interleave(10)
    x = centers[truth] + torch.randn(50, 2)
    order = torch.randperm(50)
    return x[order], (truth >= 3).long()[order], truth[order]


def all_sources(truth):
    return {
        "single": SingleTask(),
        "random": RandomLabels(0),
        "kmeans": KMeansLabels(0),
        "human": HumanLabels(truth),
        "entropy": EntropyLabels(),
        "maxl": GeneratedLabels(),
    }


def labels_of(dataset):
    return torch.stack([dataset[index][2] for index in range(len(dataset))])


@pytest.mark.parametrize("schedule", ["batch", "epoch"])
@pytest.mark.parametrize("name", ["single", "random", "kmeans", "human", "entropy", "maxl"])
def test_one_loop_serves_every_source(name, schedule):
    x, y, truth = clusters()
    source = all_sources(truth)[name]
    maxl = MAXL(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)), PSI, lr=0.1)
    loader = DataLoader(source.label(TensorDataset(x, y), PSI), batch_size=10, shuffle=True)
    before = [parameter.detach().clone() for parameter in maxl.generator.parameters()]
    history = fit(maxl, loader, 20, source=source, schedule=schedule, seed=0, progress=False)
    assert history["accuracy"][-1] == 1.0
    moved = any(not torch.equal(a, b) for a, b in zip(before, maxl.generator.parameters()))
    assert moved == source.trains_generator == (name in ("entropy", "maxl"))
    assert ("auxiliary_loss" in history.epochs[-1]) == (name != "single")
    assert ("meta_loss" in history.epochs[-1]) == (name == "maxl")


@pytest.mark.parametrize("source", [RandomLabels(3), KMeansLabels(3)], ids=["random", "kmeans"])
def test_fixed_labels_lie_in_their_block_and_depend_on_the_seed_alone(source):
    x, y, _ = clusters()
    labels = labels_of(source.label(TensorDataset(x, y), PSI))
    Hierarchy(PSI).check_auxiliary(labels, y)
    assert len(labels.unique()) == 5
    torch.manual_seed(99)
    assert torch.equal(labels_of(type(source)(3).label(TensorDataset(x, y), PSI)), labels)


def test_random_labels_are_uniform_within_the_block():
    y = torch.zeros(3000, dtype=torch.long)
    labels = labels_of(RandomLabels(0).label(TensorDataset(y.float(), y), [3]))
    counts = labels.bincount(minlength=3)
    # Five standard deviations of a binomial with n = 3000 and p = 1/3.
    assert (counts - 1000).abs().max() < 5 * (3000 * 2 / 9) ** 0.5
    assert not torch.equal(labels_of(RandomLabels(1).label(TensorDataset(y.float(), y), [3])), labels)


def test_kmeans_finds_the_clusters_of_each_class():
    x, y, truth = clusters()
    labels = labels_of(KMeansLabels(0).label(TensorDataset(x, y), PSI))
    pairs = {(int(a), int(b)) for a, b in zip(labels, truth)}
    assert len(pairs) == 5  # one label a cluster


def test_kmeans_clusters_features_if_given():
    x, y, truth = clusters()
    points = torch.cat([x, 1000 * torch.randn(50, 1)], dim=1)  # noise that would decide
    labels = labels_of(KMeansLabels(0, features=lambda batch: batch[:, :2]).label(TensorDataset(points, y), PSI))
    assert len({(int(a), int(b)) for a, b in zip(labels, truth)}) == 5


def test_kmeans_copes_with_absent_and_small_classes():
    dataset = TensorDataset(torch.randn(2, 4), torch.tensor([1, 1]))
    labels = labels_of(KMeansLabels().label(dataset, [2, 5, 3]))
    assert set(labels.tolist()) == {2, 3}


def test_human_labels_outside_their_block_are_refused():
    dataset = TensorDataset(torch.zeros(3, 2), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match=r"`labels` must lie in the block.*label 0 at position 2, where y is 1"):
        HumanLabels(torch.tensor([0, 1, 0])).label(dataset, PSI)
    with pytest.raises(ValueError, match=r"`labels` must have the shape of `y`, \[3\], found \[2\]"):
        HumanLabels(torch.tensor([0, 1])).label(dataset, PSI)
    with pytest.raises(
        TypeError, match=r"`labels` must be an int64 tensor of auxiliary class indices, found torch.float32"
    ):
        HumanLabels(torch.zeros(3)).label(dataset, PSI)


@pytest.mark.parametrize(
    ("y", "kind", "message"),
    [
        (torch.tensor([0, 2]), ValueError, "`y` must hold primary class indices in 0..1, found 2"),
        (torch.tensor([0.0, 1.0]), TypeError, "`y` must be an int64 tensor"),
        (
            torch.zeros(2, 3, dtype=torch.long),
            ValueError,
            r"one primary class per item for RandomLabels, found .*\[3\]",
        ),
    ],
)
def test_datasets_that_cannot_be_labelled_are_refused(y, kind, message):
    with pytest.raises(kind, match=message):
        RandomLabels().label(TensorDataset(torch.zeros(2, 4), y), PSI)


def test_datasets_without_a_length_or_items_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match="`dataset` must have a length and items by index, found Stream"):
        RandomLabels().label(Stream(), PSI)
    with pytest.raises(ValueError, match="`dataset` must have at least one item"):
        RandomLabels().label(TensorDataset(torch.zeros(0, 4), torch.zeros(0).long()), PSI)


def test_fixed_labels_need_a_labelled_loader():
    x, y, truth = clusters()
    maxl = MAXL(nn.Linear(2, 2), PSI)
    with pytest.raises(ValueError, match=r"`loader` must yield \(x, y, label\) for HumanLabels, found 2.*source.label"):
        fit(maxl, DataLoader(TensorDataset(x, y), batch_size=10), 1, source=HumanLabels(truth), progress=False)


def test_sources_without_a_generator_have_no_generator_step():
    with pytest.raises(NotImplementedError, match="SingleTask has no generator to train"):
        SingleTask().generator_step(MAXL(nn.Linear(2, 2), PSI), None, None, None)
