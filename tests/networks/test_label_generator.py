"""The label generator: labels and weights, and the fresh copy of the model that is its default."""

import re

import pytest
import torch
from torch import nn
from wrapped_models import (
    PSI,
    C,
    K,
    Segmenter,
    TwoParts,
    Wrapped,
    assert_same_state,
    mlp,
    mlp_head,
    snapshot,
    torchvision_model,
    vit,
)

from maxl_l2l import MAXL, Hierarchy, LabelGenerator, masked_softmax
from maxl_l2l.networks.label_generator import default_generator


def test_generator_without_logits_is_named_in_the_error():
    with pytest.raises(
        TypeError,
        match=r"`generator`, or the `model` .* must return its logits, .*, found a dict with 'scores'. Wrap it",
    ):
        LabelGenerator(Wrapped(lambda head, x: {"scores": head(x)}), PSI)(torch.ones(2, 8), torch.tensor([0, 1]))


def test_default_generator_has_the_models_architecture_with_k_outputs():
    torch.manual_seed(0)
    model = torchvision_model("mobilenet_v3_small")
    body = MAXL(model, PSI).generator.body
    assert [type(module) for module in body.modules()] == [type(module) for module in model.modules()]
    own, copied = model.state_dict(), body.state_dict()
    different = {name for name in own if own[name].shape != copied[name].shape}
    assert list(own) == list(copied)
    assert different == {"classifier.3.weight", "classifier.3.bias"}
    assert copied["classifier.3.bias"].shape == (K,)


@pytest.mark.parametrize("make", [mlp, vit, Segmenter, lambda: nn.Linear(8, C)], ids=["mlp", "vit", "dense", "linear"])
def test_default_generator_shares_nothing_with_the_model(make):
    model = make()
    before = snapshot(model)
    generator = MAXL(model, PSI).generator
    own = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert own.isdisjoint(tensor.data_ptr() for tensor in [*generator.parameters(), *generator.buffers()])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.fill_(3.0)
    assert_same_state(model, before)


def normalised(parametrization):
    return nn.Sequential(parametrization(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, C))


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (mlp, "4"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, C)), "3"),
        (lambda: nn.TransformerEncoderLayer(C, 2, 8), "linear2"),
        (lambda: normalised(nn.utils.parametrizations.weight_norm), "2"),
        (lambda: normalised(nn.utils.parametrizations.spectral_norm), "2"),
    ],
    ids=["mlp", "cnn", "attention", "weight-norm", "spectral-norm"],
)
def test_default_generator_is_freshly_initialised(make, head):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    generator = default_generator(model, Hierarchy(PSI), head, None)
    assert [name for name, parameter in generator.body.named_parameters() if (parameter == 7.0).any()] == []


def test_default_generator_forgets_the_models_batch_statistics():
    torch.manual_seed(0)
    model = mlp()
    model(torch.randn(16, 8) + 5)
    norm = MAXL(model, PSI).generator.body[1]
    assert norm.num_batches_tracked == 0
    assert (norm.running_mean == 0).all()
    assert (norm.running_var == 1).all()


def test_generators_of_two_wrappers_start_differently():
    torch.manual_seed(0)
    model = mlp()
    first, second = (MAXL(model, PSI).generator.body for _ in range(2))
    assert not any(torch.equal(first[at].weight, second[at].weight) for at in (0, 4))


def test_default_generator_of_a_frozen_model_is_trainable():
    model = mlp().requires_grad_(False)
    maxl = MAXL(model, PSI)
    assert all(parameter.requires_grad for parameter in maxl.generator.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_model_that_cannot_be_copied_needs_a_generator():
    model = Wrapped()
    model.last = model(torch.ones(1, 8))  # a result kept as attribute: it has a graph, so deepcopy refuses it
    with pytest.raises(ValueError, match=r"`generator` must be given .* can't be copied: .*Pass generator=LabelGener"):
        MAXL(model, PSI)
    generator = LabelGenerator(nn.Linear(8, K), PSI)
    assert MAXL(model, PSI, generator=generator).generator is generator


def test_label_generator_is_the_masked_softmax_of_its_body():
    torch.manual_seed(0)
    generator, x, y = LabelGenerator(nn.Linear(8, K), PSI), torch.randn(4, 8), torch.tensor([0, 1, 3, 1])
    assert torch.equal(generator(x, y), masked_softmax(generator.body(x), y, PSI))


def test_label_generator_makes_dense_labels():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 8, 6), torch.randint(C, (2, 8, 6))
    probs = MAXL(Segmenter(), PSI).generator(x, y)
    assert probs.shape == (2, K, 8, 6)
    assert (probs[~Hierarchy(PSI).mask(y)] == 0).all()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(2, 8, 6))


def test_label_generator_of_half_precision_gives_float32():
    generator = LabelGenerator(nn.Linear(8, K).bfloat16(), PSI)
    assert generator(torch.ones(2, 8, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def test_labels_are_differentiable_in_the_body():
    torch.manual_seed(0)
    generator, x = LabelGenerator(nn.Linear(8, K), PSI), torch.randn(4, 8)
    probs = generator(x, torch.tensor([1, 1, 3, 0]))
    weight, _ = torch.autograd.grad(probs.square().sum(), list(generator.parameters()))
    moved = weight.abs().sum(dim=1) > 0
    assert moved.tolist() == [False, True, True, False, True, True]  # only blocks of two classes can move


def test_hierarchy_adds_no_key_to_the_label_generators_state_but_moves_with_it():
    generator = LabelGenerator(nn.Linear(8, K), PSI)
    assert list(generator.state_dict()) == ["body.weight", "body.bias"]
    assert generator.to("meta").primary_of_auxiliary.device.type == "meta"


@pytest.mark.parametrize(
    ("body", "y", "expected", "found"),
    [
        (nn.Linear(8, 5), torch.tensor([0, 1]), [2, K], [2, 5]),
        (nn.Linear(8, K), torch.tensor([0, 1, 2]), [3, K], [2, K]),
        (nn.Linear(8, K), torch.zeros(2, 3, dtype=torch.long), [2, K, 3], [2, K]),
    ],
    ids=["width", "batch", "dense"],
)
def test_label_generator_refuses_logits_of_another_shape(body, y, expected, found):
    message = f"`generator` must give logits of shape {expected} before its softmax, found {found}. Give its network"
    with pytest.raises(ValueError, match=re.escape(message)):
        LabelGenerator(body, PSI)(torch.ones(2, 8), y)


def test_weighted_labels_sum_to_a_bounded_weight_of_each_sample():
    body = nn.Linear(1, 7)
    with torch.no_grad():
        body.weight.zero_()
        body.weight[6] = 1.0
        body.bias.zero_()
    generator = LabelGenerator(body, PSI, weighted=True)
    labels = generator(torch.tensor([[0.0], [1e4], [-1e4]]), torch.tensor([1, 1, 1]))
    torch.testing.assert_close(labels.sum(dim=1), torch.tensor([1.0, 4.0, 0.25]))
    torch.testing.assert_close(labels[0], torch.tensor([0, 0.5, 0.5, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"must give logits of shape \[3, 7\].* = 6 outputs and one for the weight"):
        LabelGenerator(nn.Linear(1, 6), PSI, weighted=True)(torch.zeros(3, 1), torch.tensor([1, 1, 1]))


def test_weighted_dense_labels_have_one_weight_a_sample():
    model = nn.Conv2d(3, C, 1)
    maxl = MAXL(model, PSI, weighted=True)
    mass = maxl.generator(torch.randn(2, 3, 4, 4), torch.randint(0, C, (2, 4, 4))).sum(dim=1)
    torch.testing.assert_close(mass, mass[:, :1, :1].expand(2, 4, 4))
    assert abs(mass[0, 0, 0] - mass[1, 0, 0]) > 1e-6


@pytest.mark.parametrize("weighted", [False, True])
def test_generator_of_a_model_with_an_mlp_head_has_its_outputs_in_the_last_layer(weighted):
    torch.manual_seed(0)
    model, x, y = TwoParts(nn.Linear(8, 6), mlp_head()), torch.randn(4, 8), torch.tensor([0, 1, 3, 1])
    maxl = MAXL(model, PSI, head="classifier", weighted=weighted)
    own, copied = model.state_dict(), maxl.generator.body.state_dict()
    different = {name for name in own if own[name].shape != copied[name].shape}
    assert list(own) == list(copied)
    assert different == {"classifier.3.weight", "classifier.3.bias"}
    assert copied["classifier.3.bias"].shape == (K + weighted,)
    assert maxl.network.auxiliary_head[3].out_features == K
    mass = maxl.generator(x, y).sum(dim=1)
    assert ((mass - 1).abs() > 1e-4).all() if weighted else torch.allclose(mass, torch.ones(4))
