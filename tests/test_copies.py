"""Fresh copies of a model's architecture: drawn anew by whatever draws the model, with another number of outputs."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

from maxl_l2l import MAXL
from maxl_l2l.copies import fresh_copy

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
