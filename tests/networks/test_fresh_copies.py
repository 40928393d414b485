"""Fresh copies of a model's architecture: drawn anew by whatever draws the model, with another number of outputs."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from maxl_l2l import MAXL, LabelGenerator
from maxl_l2l.networks.fresh_copies import fresh_copy, fresh_head

PSI = [2, 1, 3]


class Model(nn.Module):
    """A token of its own beside a layer, and its own way to draw both."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4))
        self.head = nn.Linear(4, 3)
        self.num_classes = 3


class DrawsItself(Model):
    def init_weights(self, std=2.0):
        nn.init.normal_(self.token, std=std)
        nn.init.constant_(self.head.bias, 0.5)


class DrawsEach(Model):
    def _init_weights(self, module):
        if isinstance(module, Model):
            nn.init.normal_(module.token)
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.bias, 0.5)


def filled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    return model


@pytest.mark.parametrize("kind", [DrawsItself, DrawsEach])
def test_model_that_draws_its_parameters_has_the_last_word(kind):
    model = filled(kind())
    copied = fresh_copy(model, 6, "head", None)
    assert not (copied.token == 7).any()
    assert copied.token.std() > 0
    assert (copied.head.bias == 0.5).all()
    assert copied.head.weight.std() > 0
    assert all((parameter == 7).all() for parameter in model.parameters())


def test_parameter_that_nothing_draws_is_copied():
    assert (fresh_copy(filled(Model()), 6, "head", None).token == 7).all()


def test_method_that_wants_more_arguments_is_let_alone():
    class Loads(Model):
        def init_weights(self, checkpoint):
            raise AssertionError

        def _init_weights(self, module, std):
            raise AssertionError

    assert (fresh_copy(filled(Loads()), 6, "head", None).token == 7).all()


def test_count_of_outputs_follows_the_head():
    class Reshapes(Model):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(num_labels=3)
            self.num_labels = 5  # of something else

        def forward(self, x):
            return self.head(x).view(-1, self.num_classes)

    model = Reshapes()
    maxl = MAXL(model, PSI)
    assert maxl.generator(torch.ones(2, 4), torch.tensor([0, 2])).shape == (2, 6)
    body = maxl.generator.body
    assert (body.num_classes, body.config.num_labels, body.num_labels) == (6, 6, 5)
    assert (model.num_classes, model.config.num_labels) == (3, 3)


def test_headless_backbone_gets_a_linear_layer():
    copied = fresh_copy(nn.Linear(8, 5).double(), 6, None, 5)
    assert copied(torch.ones(2, 8).double()).shape == (2, 6)
    assert list(copied.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_count_that_cannot_be_set_is_let_alone():
    class Config(NamedTuple):
        num_labels: int = 3

    model = Model()
    model.config = Config()
    assert fresh_copy(model, 6, "head", None).config.num_labels == 3


def filled_sequence():
    """Frozen, nested, trained, and with all that a head may have before its last layer."""
    layers = [nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.25)]
    head = filled(nn.Sequential(nn.Sequential(*layers), nn.Sequential(nn.Linear(5, 3), nn.Identity())))
    head[0][1].running_mean.fill_(7.0)
    return head.double().requires_grad_(False)


def test_sequence_is_copied_as_a_head_with_new_values_and_other_outputs():
    torch.manual_seed(0)
    own = filled_sequence()
    head = fresh_head(own, 6)
    assert [type(module) for module in head.modules()] == [type(module) for module in own.modules()]
    shapes = {name: list(tensor.shape) for name, tensor in head.named_parameters()}
    norm = {"0.1.weight": [5], "0.1.bias": [5]}
    assert shapes == {"0.0.weight": [5, 4], **norm, "1.0.weight": [6, 5], "1.0.bias": [6]}
    assert {tensor.dtype for tensor in head.parameters()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert not any((tensor == 7).any() for tensor in head.state_dict().values())
    assert (head[0][1].running_mean == 0).all()
    assert head[0][3].p == 0.25
    assert all((parameter == 7).all() and not parameter.requires_grad for parameter in own.parameters())
    assert own[1][0].out_features == 3
    theirs = {tensor.data_ptr() for tensor in own.state_dict().values()}
    assert theirs.isdisjoint(tensor.data_ptr() for tensor in head.state_dict().values())


def test_copied_model_gets_its_outputs_in_the_last_layer_of_a_sequence():
    model = nn.Sequential(nn.Linear(4, 4), filled_sequence())
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    copied = fresh_copy(model, 6, "1", None).state_dict()
    assert list(copied) == list(own)
    assert {name for name in own if copied[name].shape != own[name]} == {"1.1.0.weight", "1.1.0.bias"}


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize(
    ("kind", "memory_format"),
    [
        (nn.Conv2d, torch.channels_last),
        (nn.ConvTranspose2d, torch.channels_last),
        (nn.Conv3d, torch.channels_last_3d),
        (nn.Conv2d, torch.contiguous_format),
    ],
)
def test_memory_format_is_kept(kind, memory_format, sequence):
    layer = kind(4, 3, 2).to(memory_format=memory_format)
    head = fresh_head(nn.Sequential(kind(5, 4, 2).to(memory_format=memory_format), layer) if sequence else layer, 6)
    for parameter in head.parameters():
        assert parameter.dim() == 1 or parameter.is_contiguous(memory_format=memory_format)


def test_sequence_that_cannot_be_copied_raises():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))
    model[1].last = model(torch.ones(1, 4))  # it has a graph, so deepcopy refuses it
    message = r"`head` must name layers that can be copied, found a sequence that can't be: Only Tensors.*Name the last"
    with pytest.raises(ValueError, match=message):
        MAXL(model, PSI, head="1", generator=LabelGenerator(nn.Linear(4, 6), PSI))
