"""Finding the layer that gives a model's logits."""

import re

import pytest
import torch
from torch import nn

from maxl_l2l import MAXL, LabelGenerator
from maxl_l2l.networks.heads import find_head, logits_layer

C = 4
PSI = [1, 2, 1, 2]


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, C))


@pytest.mark.parametrize(
    ("model", "num_outputs", "head"),
    [
        (nn.Linear(8, C), C, ""),
        (nn.Sequential(nn.Linear(8, C), nn.ReLU(), nn.Linear(C, C)), C, "2"),
        (nn.ModuleDict({"convolution": nn.Conv2d(3, C, 1), "linear": nn.Linear(8, C)}), C, "linear"),
        (nn.Sequential(nn.Linear(8, C), nn.ReLU(), nn.Linear(C, 2)), C, "0"),
        (nn.Sequential(nn.Linear(8, C), nn.ReLU(), nn.Linear(C, 2)), None, "2"),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, C, 3)), C, "1"),
        (nn.ModuleDict({"encoder": nn.Linear(8, 8), "decoder": nn.Conv3d(8, C, 1)}), C, "decoder"),
    ],
    ids=["itself", "sequence", "linear-last", "by-width", "last-of-any", "transposed", "volume"],
)
def test_head_is_found_by_its_number_of_outputs(model, num_outputs, head):
    assert find_head(model, num_outputs) == head


def test_several_candidates_are_listed_by_name():
    model = nn.ModuleDict({"left": nn.Linear(8, C), "right": nn.Linear(8, C), "other": nn.Linear(8, 7)})
    expected = f"`head` must be named, as 2 layers have {C} outputs: 'left', 'right'. Pass .* head='right'"
    with pytest.raises(ValueError, match=expected):
        MAXL(model, PSI)
    assert MAXL(model, PSI, head="left", generator=nn.Linear(8, 6)).network.head == "left"


def test_linear_gate_before_a_convolutional_head_is_ambiguous():
    model = nn.ModuleDict({"gate": nn.Linear(8, C), "head": nn.Conv2d(3, C, 1)})
    with pytest.raises(ValueError, match="2 layers have 4 outputs: 'gate', 'head'"):
        find_head(model, C)


def test_layer_inside_a_model_of_another_width_is_found_out_at_the_first_pass():
    model = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 7))  # a bottleneck as wide as psi is long
    maxl = MAXL(model, [5, 5], generator=LabelGenerator(nn.Linear(8, 10), [5, 5]))
    message = r"`psi` must have an entry per model output: it has 2, the model returned \[3, 7\].*head="
    with pytest.raises(ValueError, match=message):
        maxl.loss(torch.zeros(3, 8), torch.tensor([0, 1, 0]))


def test_lazy_layers_are_refused_until_they_have_a_shape():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.LazyLinear(C))
    with pytest.raises(
        ValueError, match=r"found lazy ones that have no shape yet: 2.weight, 2.bias. Call the model once"
    ):
        MAXL(model, PSI)
    model(torch.zeros(1, 8))
    assert MAXL(model, PSI).network.head == "2"


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_head_under_two_names_is_replaced_under_both_in_the_generator():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, C)
            self.heads = nn.ModuleList([self.fc])

        def forward(self, x):
            return self.heads[0](x)

    maxl = MAXL(Twice(), PSI)
    assert maxl.generator(torch.zeros(3, 8), torch.tensor([0, 1, 2])).shape == (3, 6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Flatten()),
            "`psi` must have an entry per model output: no .* no linear layer or convolution",
        ),
        (mlp(), f"`psi` must have an entry per model output: .* with 3 outputs was found, .*'4' \\({C} outputs\\)"),
    ],
    ids=["no-layer", "width"],
)
def test_model_without_a_fitting_head_raises(model, message):
    with pytest.raises(ValueError, match=message):
        MAXL(model, [2, 2, 2])


def test_model_without_any_layer_has_no_head():
    with pytest.raises(ValueError, match=r"the model must have a head: .* with any outputs"):
        find_head(nn.ReLU(), None)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("9", "`head` must name .*, found no such layer at '9'. The model has: '0', '4'."),
        ("2", "`head` must name .*, found a ReLU at '2'"),
        ("0", f"`psi` must have an entry per model output: it has {C}, the head '0' has 16 outputs. Give psi 16"),
    ],
    ids=["unknown", "no-layer", "width"],
)
def test_wrong_name_of_a_head_raises(head, message):
    with pytest.raises(ValueError, match=message):
        MAXL(mlp(), PSI, head=head)


class Parts(nn.Module):
    """A model with a backbone and a head that a test chooses."""

    def __init__(self, head):
        super().__init__()
        self.body = nn.Linear(8, 6)
        self.head = head

    def forward(self, x):
        return self.head(self.body(x))


def sequence(*after, last=None):
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), last or nn.Linear(5, C), *after)


ACTIVATION = nn.Tanh()
CONVOLUTION = nn.Conv2d(5, C, 1)


@pytest.mark.parametrize(
    ("head", "layer"),
    [
        (nn.Linear(6, C), ""),
        (sequence(), "2"),
        (sequence(nn.Dropout(0.5), nn.Identity(), nn.Flatten()), "2"),
        (
            nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Sequential(nn.Linear(5, C), nn.Identity())),
            "1.0",
        ),
        (nn.Sequential(nn.Conv2d(6, 5, 1), CONVOLUTION, nn.AdaptiveAvgPool2d(1), nn.Flatten()), "1"),
        (nn.Sequential(nn.ModuleDict(), nn.Conv1d(6, C, 3), nn.MaxPool1d(2), nn.Upsample(8)), "1"),
        (sequence(nn.Softmax(dim=1)), None),
        (sequence(nn.BatchNorm1d(C)), None),
        (sequence(nn.AvgPool1d(2)), None),  # which would pool the classes
        (nn.Sequential(CONVOLUTION, nn.ReLU(), nn.AdaptiveAvgPool2d(1)), None),
        (nn.Sequential(CONVOLUTION, nn.PixelShuffle(2)), None),
        (nn.Sequential(nn.Linear(6, 5), ACTIVATION, nn.Linear(5, C), ACTIVATION), None),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), None),
        (nn.Sequential(), None),
        (nn.ModuleList([nn.Linear(6, C)]), None),
    ],
    ids=[
        *("layer", "mlp", "harmless", "nested", "pooled", "resized", "softmax", "norm", "classes-pooled", "rectified"),
        *("shuffled", "shared-activation", "no-layer", "empty", "list"),
    ],
)
def test_logits_of_a_sequence_come_out_of_its_last_layer_if_nothing_alters_them_after(head, layer):
    assert logits_layer(head) == layer
    name = None if layer is None else f"head.{layer}".rstrip(".")
    assert logits_layer(Parts(head), "head") == name


def test_head_without_a_name_is_a_single_layer():
    assert find_head(Parts(sequence()), C) == find_head(Parts(sequence()), None) == "head.2"


@pytest.mark.parametrize(
    ("head", "found", "layers"),
    [
        (sequence(nn.Softmax(dim=1)), "one that ends with ReLU, Linear, Softmax at 'head'", "'head.0', 'head.2'"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "one that ends with Flatten, ReLU at 'head'", None),
        (nn.Sequential(), "one that ends with nothing at 'head'", None),
    ],
    ids=["softmax", "no-layer", "empty"],
)
def test_sequence_that_does_not_end_with_its_logits_raises(head, found, layers):
    message = (
        "`head` must name a linear layer or convolution of the model, or a nn.Sequential that ends with one, found "
        f"{found}. Name what gives the logits: the losses take their softmax themselves. The model has: 'body'"
    )
    with pytest.raises(ValueError, match=re.escape(message + (f", {layers}." if layers else "."))):
        MAXL(Parts(head), PSI, head="head")


def test_sequence_of_another_width_raises():
    message = f"`psi` must have an entry per model output: it has 3, the head 'head' has {C} outputs. Give psi {C} entr"
    with pytest.raises(ValueError, match=message):
        MAXL(Parts(sequence(nn.Flatten())), [2, 2, 2], head="head")


@pytest.mark.parametrize(
    ("model", "head", "layer"),
    [(sequence(), "", "2"), (nn.Sequential(nn.Flatten(), sequence()), "1", "1.2")],
    ids=["all", "all-parameters"],
)
def test_sequence_that_leaves_nothing_to_share_raises(model, head, layer):
    message = (
        f"`head` must leave parameters of the model for both tasks to share, found all of them in '{head}'. "
        f"Name a later part of it, for example the layer '{layer}'."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        MAXL(model, PSI, head=head)
