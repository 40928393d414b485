"""Finding the layer that gives a model's logits."""

import pytest
from torch import nn

from maxl_l2l import MAXL
from maxl_l2l.heads import find_head

C = 4
PSI = [1, 2, 1, 2]


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, C))


@pytest.mark.parametrize(
    ("model", "num_outputs", "head"),
    [
        (nn.Linear(8, C), C, ""),
        (nn.Sequential(nn.Linear(8, C), nn.ReLU(), nn.Linear(C, C)), C, "2"),
        (nn.ModuleDict({"linear": nn.Linear(8, C), "convolution": nn.Conv2d(3, C, 1)}), C, "linear"),
        (nn.Sequential(nn.Linear(8, C), nn.ReLU(), nn.Linear(C, 2)), C, "0"),
        (nn.Sequential(nn.Linear(8, C), nn.ReLU(), nn.Linear(C, 2)), None, "2"),
        (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, C, 3)), C, "1"),
        (nn.ModuleDict({"encoder": nn.Linear(8, 8), "decoder": nn.Conv3d(8, C, 1)}), C, "decoder"),
    ],
    ids=["itself", "sequence", "linear-first", "by-width", "last-of-any", "transposed", "volume"],
)
def test_head_is_found_by_its_number_of_outputs(model, num_outputs, head):
    assert find_head(model, num_outputs) == head


def test_several_candidates_are_listed_by_name():
    model = nn.ModuleDict({"left": nn.Linear(8, C), "right": nn.Linear(8, C), "other": nn.Linear(8, 7)})
    expected = f"`head` must be named, as 2 layers have {C} outputs: 'left', 'right'. Pass .* head='right'"
    with pytest.raises(ValueError, match=expected):
        MAXL(model, PSI)
    assert MAXL(model, PSI, head="left", generator=nn.Linear(8, 6)).network.head == "left"


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
