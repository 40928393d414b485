"""The multi-task network around models of every kind, and their heads."""

import copy
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
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

from maxl_l2l import MAXL, LabelGenerator, MultiTaskNetwork, masked_softmax
from maxl_l2l.networks.heads import find_head
from maxl_l2l.networks.multi_task import multi_task_network

TORCHVISION_HEADS = {
    "resnet18": "fc",
    "vgg11_bn": "classifier.6",
    "mobilenet_v3_small": "classifier.3",
    "squeezenet1_1": "classifier.1",
    "efficientnet_b0": "classifier.1",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "vit": "heads.head",
}


def num_hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.fixture(scope="module", params=TORCHVISION_HEADS)
def torchvision_case(request):
    """A torchvision model in eval mode, the name of its head, and images."""
    torch.manual_seed(0)
    model = vit() if request.param == "vit" else torchvision_model(request.param)
    if request.param == "vit":
        nn.init.normal_(model.heads.head.weight)  # which torchvision sets to zero
    return model.eval(), TORCHVISION_HEADS[request.param], torch.randn(2, 3, 32, 32)


def test_head_of_torchvision_model_is_found(torchvision_case):
    model, head, _ = torchvision_case
    assert find_head(model, C) == find_head(model, None) == head


@torch.no_grad()
def test_torchvision_model_is_left_as_it_is(torchvision_case):
    model, _, x = torchvision_case
    kind, keys, expected = type(model), list(model.state_dict()), model(x)
    network = multi_task_network(model, C, K, None, None)
    primary, _ = network(x)
    assert network.module is model
    assert type(model) is kind
    assert list(model.state_dict()) == keys
    assert torch.equal(primary, expected)
    assert torch.equal(model(x), expected)
    assert torch.equal(network.predict(x), expected)
    assert num_hooks(model) == 0


@torch.no_grad()
def test_auxiliary_logits_are_the_head_of_the_features_that_enter_the_models_own(torchvision_case):
    model, head, x = torchvision_case
    network = multi_task_network(model, C, K, None, None)
    seen = []
    with model.get_submodule(head).register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        model(x)
    expected = network.auxiliary_head(seen[0])
    if expected.dim() == 4:  # squeezenet averages over positions after its convolutional head
        expected = expected.mean(dim=(2, 3))
    _, auxiliary = network(x)
    assert auxiliary.shape == (2, K)
    assert auxiliary.std() > 0
    # The same numbers up to the order of a mean.
    torch.testing.assert_close(auxiliary, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"num_features": 8}], ids=["head", "headless"])
@pytest.mark.parametrize(("model", "found"), [(print, "builtin_function_or_method"), (nn.Linear, "type")])
def test_model_that_is_no_module_raises(model, found, options):
    with pytest.raises(TypeError, match=f"`model` must be a torch.nn.Module, found {found}. Pass the model itself"):
        MAXL(model, PSI, **options)


def test_own_state_dict_loads_into_the_bare_model():
    torch.manual_seed(0)
    model, bare, x = mlp().eval(), mlp().eval(), torch.randn(3, 8)
    MAXL(model, PSI)
    bare.load_state_dict(model.state_dict())
    assert torch.equal(bare(x), model(x))


@pytest.mark.parametrize(
    ("route", "error"),
    [
        (lambda head, x: head(x[:, :2]), RuntimeError),
        (lambda head, x: head(x).no_such_method(), AttributeError),
        (lambda head, x: {"scores": head(x)}, TypeError),
    ],
    ids=["in-head", "after-head", "output"],
)
def test_no_hook_is_left_behind_by_an_exception(route, error):
    model = Wrapped(route)
    with pytest.raises(error):
        multi_task_network(model, C, K, None, None)(torch.ones(2, 8))
    assert num_hooks(model) == 0


def test_hooks_of_the_user_are_kept_and_run_once():
    model, calls = Wrapped(), []
    model.head.register_forward_pre_hook(lambda *_: calls.append("pre"))
    model.head.register_forward_hook(lambda *_: calls.append("post"))
    multi_task_network(model, C, K, None, None)(torch.ones(2, 8))
    assert calls == ["pre", "post"]
    assert num_hooks(model) == 2


@pytest.mark.parametrize("size", [(9, 12), (8, 8)])
def test_dense_auxiliary_logits_follow_the_resizing_of_the_primary(size):
    torch.manual_seed(0)
    model = Segmenter()
    network = multi_task_network(model, C, K, None, None)
    x = torch.randn(2, 3, *size)
    primary, auxiliary = network(x)
    coarse = network.auxiliary_head(model.body(x).relu())
    assert network.is_dense
    assert (primary.shape, auxiliary.shape) == ((2, C, *size), (2, K, *size))
    assert coarse.shape[2:] != size
    assert torch.equal(auxiliary, F.interpolate(coarse, size=size, mode="bilinear", align_corners=False))


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutional_head_gets_a_convolution_of_the_same_geometry(num_dims, transposed):
    torch.manual_seed(0)
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{num_dims}d")
    options = {"output_padding": 1} if transposed else {"padding_mode": "circular", "dilation": 2}
    head = kind(4, C, 3, stride=2, padding=2, bias=False, dtype=torch.float64, **options)
    network = multi_task_network(nn.Sequential(nn.Identity(), head), C, K, None, None)
    primary, auxiliary = network(torch.randn(2, 4, *[9] * num_dims, dtype=torch.float64))
    assert type(network.auxiliary_head) is kind
    for name in ("kernel_size", "stride", "padding", "dilation", "output_padding", "padding_mode", "bias"):
        assert getattr(network.auxiliary_head, name) == getattr(head, name)
    assert auxiliary.shape == (2, K, *primary.shape[2:])
    assert auxiliary.dtype == torch.float64


def test_grouped_head_gets_an_auxiliary_head_of_any_width():
    model = nn.Sequential(nn.Conv2d(C, C, 1, groups=C))
    assert multi_task_network(model, C, 7, None, None)(torch.zeros(1, C, 2, 2))[1].shape == (1, 7, 2, 2)


def test_positions_pooled_after_a_convolutional_head_are_averaged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network, x = multi_task_network(model, C, K, None, None), torch.randn(2, 3, 5, 4)
    primary, auxiliary = network(x)
    assert (primary.shape, auxiliary.shape) == ((2, C), (2, K))
    torch.testing.assert_close(auxiliary, network.auxiliary_head(x).mean(dim=(2, 3)))


def test_positions_flattened_after_a_convolutional_head_are_flattened():
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.Flatten(2))
    primary, auxiliary = multi_task_network(model, C, K, None, None)(torch.randn(2, 3, 4, 5))
    assert primary.shape == (2, C, 20)
    assert auxiliary.shape == (2, K, 20)


def test_positions_that_do_not_match_are_refused():
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.Flatten(2), nn.AvgPool1d(3))
    network = multi_task_network(model, C, K, None, None)
    with pytest.raises(RuntimeError, match=r"`head` must give logits for the positions.*\[2, 6, 4, 5\].*\[2, 4, 6\]"):
        network(torch.randn(2, 3, 4, 5))


def test_tokens_pooled_after_a_linear_head_leave_the_classes():
    torch.manual_seed(0)
    model = Wrapped(lambda head, x: head(x).mean(dim=1))
    network, x = multi_task_network(model, C, K, None, None), torch.randn(2, 5, 8)
    primary, auxiliary = network(x)
    assert (primary.shape, auxiliary.shape) == ((2, C), (2, K))
    torch.testing.assert_close(auxiliary, network.auxiliary_head(x).mean(dim=1))


def test_position_picked_after_a_linear_head_is_picked_of_the_auxiliary_logits_too():
    torch.manual_seed(0)
    last = torch.tensor([4, 0])
    model = Wrapped(lambda head, x: head(x)[torch.arange(2), last])
    network, x = multi_task_network(model, C, K, None, None), torch.randn(2, 5, 8)
    primary, auxiliary = network(x)
    assert primary.shape == (2, C)
    assert torch.equal(auxiliary, network.auxiliary_head(x)[torch.arange(2), last])


def test_head_called_by_keyword_is_seen():
    network = multi_task_network(Wrapped(lambda head, x: head(input=x)), C, K, None, None)
    x = torch.ones(2, 8)
    assert torch.equal(network(x)[1], network.auxiliary_head(x))


Named = namedtuple("Named", ["logits", "extra"])


RETURNS = {
    "dict": lambda logits: {"loss": None, "logits": logits},
    "segmentation": lambda logits: {"out": logits, "aux": -logits},
    "object": lambda logits: SimpleNamespace(loss=None, logits=logits),
    "named tuple": lambda logits: Named(logits, -logits),
}


@pytest.mark.parametrize("wrap", RETURNS.values(), ids=RETURNS)
def test_logits_are_found_in_what_the_model_returns_and_its_output_is_untouched(wrap):
    maxl, x, y = MAXL(Wrapped(lambda head, x: wrap(head(x))), PSI), torch.ones(2, 8), torch.tensor([0, 3])
    primary, auxiliary = maxl.network(x)
    assert torch.equal(primary, maxl.module.head(x))
    assert torch.equal(auxiliary, maxl.network.auxiliary_head(x))
    assert type(maxl(x)) is type(wrap(x))
    assert maxl.generator(x, y).shape == (2, K)
    assert maxl.hypergradient(x, y).outputs.shape == (2, C)


class Keywords(nn.Module):
    """Takes two tensors by name."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, C)

    def forward(self, left, right=None):
        return self.head(left if right is None else left - right)


def test_mapping_is_passed_as_keyword_arguments_to_the_model_and_to_its_copy():
    maxl, y = MAXL(Keywords(), PSI), torch.tensor([0, 1])
    x = {"right": torch.ones(2, 8), "left": torch.randn(2, 8)}
    expected = maxl.module(x["left"], x["right"])
    assert torch.equal(maxl.network(x)[0], expected)
    for output in (maxl(x), maxl(**x), maxl(x["left"], x["right"]), maxl(x["left"], right=x["right"])):
        assert torch.equal(output, expected)
    assert torch.equal(maxl.generator(x, y), masked_softmax(maxl.generator.body(**x), y, PSI))


def test_headless_backbone_takes_a_mapping_too():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 5)

        def forward(self, left, right):
            return self.layer(left - right)

    maxl = MAXL(Backbone(), PSI, num_features=5)
    x = {"right": torch.ones(2, 8), "left": torch.randn(2, 8)}
    assert torch.equal(maxl(x), maxl.network(x)[0])
    assert maxl.generator(x, torch.tensor([0, 1])).shape == (2, K)
    maxl.module.forward = lambda **x: {"pooler_output": x["left"]}
    for called in (maxl, maxl.network):
        with pytest.raises(TypeError, match=r"must return its features, as one tensor, found a dict with 'pooler_outp"):
            called(x)


@pytest.mark.parametrize(
    ("route", "times"), [(lambda head, x: head(x) + head(-x), 2), (lambda head, x: x[:, :C], 0)], ids=["twice", "never"]
)
def test_head_that_does_not_run_once_raises(route, times):
    with pytest.raises(
        RuntimeError, match=f"`head` must run once in a forward pass, but 'head' ran {times} times. Name"
    ):
        multi_task_network(Wrapped(route), C, K, None, None)(torch.ones(2, 8))


def test_headless_backbone_gets_both_heads():
    torch.manual_seed(0)
    backbone, x = nn.Sequential(nn.Linear(8, 5), nn.Tanh()).double(), torch.randn(3, 8, dtype=torch.float64)
    maxl = MAXL(backbone, PSI, num_features=5)
    primary, auxiliary = maxl.network(x)
    assert maxl.module is backbone
    assert torch.equal(primary, maxl.network.primary_head(backbone(x)))
    assert torch.equal(auxiliary, maxl.network.auxiliary_head(backbone(x)))
    assert torch.equal(maxl(x), primary)
    assert maxl.generator(x, torch.tensor([0, 1, 3])).shape == (3, K)


@pytest.mark.parametrize("options", [{"num_features": 0}, {"num_features": -1}, {"num_features": 16, "head": "4"}])
def test_wrong_width_of_a_headless_backbone_raises(options):
    with pytest.raises(ValueError, match=r"`num_features` must be the width \(>= 1\) .* and without `head`, found"):
        MAXL(mlp(), PSI, **options)


@pytest.mark.parametrize("training", [True, False])
def test_wrapping_keeps_parameters_buffers_and_mode(training):
    model = mlp().train(training)
    before = snapshot(model)
    MAXL(model, PSI)
    assert_same_state(model, before)
    assert model.training is training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_new_parts_take_the_models_dtype(dtype):
    maxl = MAXL(mlp().to(dtype), PSI)
    assert {p.dtype for p in [*maxl.generator.parameters(), *maxl.network.auxiliary_head.parameters()]} == {dtype}


def test_multi_task_network_trains_the_model_through_both_heads():
    torch.manual_seed(0)
    network = multi_task_network(mlp(), C, K, None, None)
    assert isinstance(network, MultiTaskNetwork)
    names = [name for name, _ in network.named_parameters()]
    assert names[-2:] == ["auxiliary_head.weight", "auxiliary_head.bias"]
    _, auxiliary = network(torch.randn(4, 8))
    auxiliary.square().sum().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {"module.4.weight", "module.4.bias"}


def test_copy_of_a_multi_task_network_reads_its_own_features():
    torch.manual_seed(0)
    network, x = multi_task_network(mlp().eval(), C, K, None, None).eval(), torch.randn(3, 8)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network.module[0].weight.zero_()
    assert not torch.equal(network(x)[1], twin(x)[1])
    assert torch.equal(twin(x)[1], twin.auxiliary_head(twin.module[:4](x)))


def mlp_by_hand(parameters, features):
    """Linear, BatchNorm with the batch's statistics, ReLU, Linear, in plain algebra."""
    weight, bias, scale, shift, last_weight, last_bias = parameters
    hidden = features @ weight.T + bias
    variance = (hidden - hidden.mean(dim=0)).square().mean(dim=0)
    hidden = (hidden - hidden.mean(dim=0)) / (variance + 1e-5).sqrt() * scale + shift
    return hidden.clamp_min(0) @ last_weight.T + last_bias


@pytest.mark.parametrize("inplace", [False, True])
def test_mlp_head_gets_an_auxiliary_mlp_on_the_same_features(inplace):
    torch.manual_seed(0)
    model, x = TwoParts(nn.Linear(8, 6), mlp_head(inplace=inplace)).double(), torch.randn(7, 8).double()
    keys, kind, expected = list(model.state_dict()), type(model), copy.deepcopy(model)(x)
    network = MAXL(model, PSI, head="classifier").network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    features = x @ model.body.weight.T + model.body.bias
    primary, auxiliary = network(x)
    torch.testing.assert_close(primary, mlp_by_hand(list(model.classifier.parameters()), features))
    torch.testing.assert_close(auxiliary, mlp_by_hand(list(network.auxiliary_head.parameters()), features))
    assert (auxiliary.shape, expected.shape) == ((7, K), (7, C))
    assert (type(model), list(model.state_dict())) == (kind, keys)
    assert torch.equal(network.predict(x), model(x))
    assert num_hooks(network) == 0


@torch.no_grad()
def test_wrapping_a_model_with_an_mlp_head_leaves_its_outputs():
    torch.manual_seed(0)
    model, x = TwoParts(nn.Linear(8, 6), mlp_head()).eval(), torch.randn(7, 8)
    before, expected = snapshot(model), model(x)
    maxl = MAXL(model, PSI, head="classifier")
    assert_same_state(model, before)
    assert torch.equal(maxl(x), expected)
    assert torch.equal(maxl.network(x)[0], expected)


@pytest.mark.parametrize("first", [nn.Hardtanh, nn.ELU], ids=["saturating", "twice-is-another"])
@pytest.mark.parametrize("before", [nn.Identity, nn.Flatten])
def test_head_that_alters_its_features_in_place_does_not_alter_the_auxiliary_heads(first, before):
    torch.manual_seed(0)
    x = 3 * torch.randn(7, 8)
    head = nn.Sequential(before(), first(inplace=True), nn.Linear(6, C))
    model = TwoParts(nn.Linear(8, 6), head)
    network = multi_task_network(model, C, K, "classifier", None)
    primary, auxiliary = network(x)
    altered = first()(model.body(x))
    assert torch.equal(primary, head[2](altered))
    assert torch.equal(auxiliary, network.auxiliary_head[2](altered))
    (primary.sum() + auxiliary.sum()).backward()
    assert model.body.weight.grad.norm() > 0


def test_failed_pass_of_a_head_in_place_leaves_nothing_behind():
    model = TwoParts(nn.Linear(8, 6), nn.Sequential(nn.ELU(inplace=True), nn.Linear(5, C)))
    network = multi_task_network(model, C, K, "classifier", None)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.randn(2, 8))
    assert num_hooks(network) == 0
    assert network._kept == network._passed_on == []


def test_both_mlp_heads_train_and_the_statistics_of_both_move_once_a_step():
    torch.manual_seed(0)
    maxl, x, y = MAXL(TwoParts(nn.Linear(8, 6), mlp_head()), PSI, head="classifier"), torch.randn(8, 8), torch.arange(8)
    network = maxl.network
    before = snapshot(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    maxl.step(x, y % C, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=0.1))
    after = network.state_dict()
    # What a layer before BatchNorm adds to all samples has no gradient.
    still = {"module.classifier.0.bias", "auxiliary_head.0.bias"}
    assert all(not torch.equal(after[name], before[name]) for name in before.keys() - still)
    assert network.auxiliary_head[1].num_batches_tracked == network.module.classifier[1].num_batches_tracked == 1


def test_torchvision_vgg_has_the_papers_head_for_each_task():
    torch.manual_seed(0)
    model, x = torchvision.models.vgg16_bn(num_classes=C).features, torch.randn(2, 3, 32, 32)
    layers = [nn.Flatten(), nn.Linear(512, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, C)]
    vgg = TwoParts(model, nn.Sequential(*layers)).eval()  # torchvision's layers of 4096 are of no use here
    network = MAXL(vgg, PSI, head="classifier", generator=LabelGenerator(nn.Flatten(), PSI)).network.eval()
    primary, auxiliary = network(x)
    features = model(x).flatten(1)
    _, first, _, _, last = network.auxiliary_head
    assert (first.in_features, first.out_features, last.out_features) == (512, 8, K)
    assert torch.equal(primary, vgg(x))
    torch.testing.assert_close(
        auxiliary, F.linear(F.linear(features, first.weight, first.bias).relu(), *last.parameters())
    )


def test_convolutional_sequence_gives_dense_logits_that_follow_the_models_resizing():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3, stride=2, padding=1)

        def forward(self, x):
            return {"out": self.layer(x)}

    torch.manual_seed(0)
    segmentation = torchvision.models.segmentation
    model = segmentation.FCN(Backbone(), segmentation.fcn.FCNHead(8, C), None).eval()
    maxl = MAXL(model, PSI, head="classifier")
    x, y = torch.randn(2, 3, 9, 12), torch.randint(C, (2, 9, 12))
    primary, auxiliary = maxl.network(x)
    coarse = maxl.network.auxiliary_head(model.backbone(x)["out"])
    assert maxl.network.is_dense
    assert (primary.shape, coarse.shape) == ((2, C, 9, 12), (2, K, 5, 6))
    assert torch.equal(auxiliary, F.interpolate(coarse, size=(9, 12), mode="bilinear", align_corners=False))
    assert maxl.generator(x, y).shape == (2, K, 9, 12)
    assert maxl.hypergradient(x, y).outputs.shape == (2, C, 9, 12)


@pytest.mark.parametrize("inside", [False, True])
def test_positions_pooled_in_or_after_a_convolutional_sequence_are_averaged(inside):
    torch.manual_seed(0)
    layers, pool = [nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, C, 1)], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    head = nn.Sequential(*layers, *pool) if inside else nn.Sequential(*layers)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), head, *([] if inside else pool))
    network, x = multi_task_network(model, C, K, "1", None), torch.randn(2, 3, 5, 4)
    primary, auxiliary = network(x)
    first, _, last, *_ = network.auxiliary_head
    assert (primary.shape, auxiliary.shape) == ((2, C), (2, K))
    torch.testing.assert_close(auxiliary, last(first(model[0](x)).tanh()).mean(dim=(2, 3)))


def test_tokens_pooled_after_a_linear_sequence_leave_the_classes():
    torch.manual_seed(0)
    model = TwoParts(nn.Linear(8, 6), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, C), nn.Dropout(0.0)))
    model.forward = lambda x: model.classifier(model.body(x)).mean(dim=1)
    network, x = multi_task_network(model, C, K, "classifier", None), torch.randn(2, 3, 8)
    assert not network.is_dense
    torch.testing.assert_close(network(x)[1], network.auxiliary_head(model.body(x)).mean(dim=1))


def test_auxiliary_head_of_the_users_own_need_not_end_with_a_layer():
    network = MultiTaskNetwork(nn.Linear(8, C), nn.Sequential(nn.Linear(8, K), nn.Softmax(dim=1)))
    assert not network.is_dense
    assert network(torch.randn(2, 8))[1].shape == (2, K)
