"""The check of a model before training: each defect is found and named, and a clean model has none."""

import copy
import random
import warnings
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from maxl_l2l import MAXL, AuxiliaryLabelGenerator, LabelGenerator, NonFiniteError
from maxl_l2l.model_check import central_differences as differences
from maxl_l2l.model_check.check import ModelCheck, check_model

PSI = [3, 4]
X, Y = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 6)


class Net(nn.Module):
    """A clean classifier; a test gives it a defect."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, 2)

    def before(self, x):
        return x

    def after(self, features):
        return features

    def forward(self, x):
        return self.head(self.after(self.dropout(self.norm(self.body(self.before(x))).tanh())))


def checked(model, x=X, **options):
    return check_model(MAXL(model, PSI, head="head", generator=clean_generator()), x, Y, **options)


def clean_generator():
    return LabelGenerator(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 7)), PSI)


def test_clean_model_is_ok():
    check = check_model(MAXL(Net(), PSI), X, Y)
    assert check.ok
    assert check.problems == check.notes == ()
    assert check.relative_error < 1e-4
    assert check.seconds > check.single_task_seconds > 0
    assert check.saved_bytes > check.single_task_saved_bytes > 12 * 16 * 4
    with pytest.raises(FrozenInstanceError):
        check.problems = ("another",)


def test_model_with_a_sequence_for_a_head_is_ok():
    model = Net()
    model.head = nn.Sequential(nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2))
    check = check_model(MAXL(model, PSI, head="head"), X, Y)
    assert check.ok
    assert check.problems == check.notes == ()
    assert check.relative_error < 1e-4


def test_report_has_the_findings_and_the_costs():
    check = ModelCheck(("This is wrong.", "That is too. " * 12), ("Mind this.",), 2e-9, 1.5, 0.3, 6_000_000, 3_000_000)
    lines = str(check).split("\n")
    assert lines[:6] == [
        "Model check: 2 problems found",
        "  hypergradient  differs by 2e-09 of its size from central differences of a real step",
        "  time           1.50 s a step, 5.0 times single-task training (300 ms)",
        "  memory         6 MB kept for backward, 2.0 times single-task training (3 MB)",
        "Problems",
        "  1. This is wrong.",
    ]
    assert lines[-2:] == ["Notes", "  1. Mind this."]
    assert max(map(len, lines)) <= 100
    clean = ModelCheck((), (), None, 0.002, 0.0, 2_500_000_000, 0)
    assert str(clean).split("\n") == [
        "Model check: no problem found",
        "  hypergradient  could not be measured",
        "  time           2 ms a step, more than single-task training (0 ms)",
        "  memory         2.5 GB kept for backward, more than single-task training (0 MB)",
    ]


# --- what is trained -------------------------------------------------------------------------------------------------


class Listed(Net):
    def __init__(self):
        super().__init__()
        self.blocks = [nn.Linear(16, 16), {"scale": [torch.ones(16, requires_grad=True)]}]

    def after(self, features):
        return self.blocks[0](features) * self.blocks[1]["scale"][0]


def test_parameters_in_plain_lists_are_named():
    (problem,) = checked(Listed()).problems
    assert problem.startswith("`model` and `generator` must hold what is to be trained as parameters, found 3 tensors")
    assert "blocks[0].weight" in problem
    assert "blocks[0].bias" in problem
    assert "blocks[1]['scale'][0]" in problem
    assert problem.endswith(
        "Keep layers in nn.ModuleList or nn.ModuleDict, tensors in nn.ParameterList or as "
        "nn.Parameter attributes; or detach them."
    )


def test_trained_tensors_that_no_module_holds_have_a_shape():
    scale, model = torch.ones(1, 16, requires_grad=True), Net()
    model.after = lambda features: features * scale
    (problem,) = checked(model).problems
    assert "found 1 tensors with a gradient that are none: a tensor [1, 16] outside of all modules" in problem


def test_buffer_with_a_gradient_is_no_parameter():
    model = Net()
    model.register_buffer("scale", torch.ones(16, requires_grad=True))
    model.after = lambda features: features * model.scale
    (problem,) = checked(model).problems
    assert "that are none: scale." in problem


def test_hidden_parameter_of_the_generator_is_named_as_its():
    generator = clean_generator()
    generator.body.extra = [torch.ones(7, requires_grad=True)]
    generator.body.register_forward_hook(lambda module, args, logits: logits * module.extra[0])
    (problem,) = check_model(MAXL(Net(), PSI, generator=generator), X, Y).problems
    assert "that are none: generator.body.extra[0]." in problem


def test_input_with_a_gradient_is_not_taken_for_a_parameter():
    x = X.clone().requires_grad_()
    assert checked(Net(), x).ok
    assert x.grad is None


def test_frozen_parameters_are_noted():
    model = Net()
    model.body.requires_grad_(False)
    check = checked(model)
    assert check.ok
    assert check.notes == (
        "2 parameter tensors: frozen (requires_grad=False), so they stay as they are: body.weight, body.bias.",
    )


def test_parameters_behind_a_detach_are_noted():
    model = Net()
    model.after = lambda features: features.detach()
    model.spare = nn.Linear(2, 3)
    note, zero = checked(model).notes
    assert "could not be compared with central differences: it is zero" in zero
    assert note.startswith("6 parameter tensors: reached by no gradient of the multi-task loss (unused, or behind")
    assert note.endswith("so they stay as they are: body.weight, body.bias, norm.weight and 3 more.")


def test_parameters_without_a_slope_are_noted():
    model = Net()
    with torch.no_grad():
        model.norm.bias.fill_(-100.0)
    model.after = lambda features: (features + 1).relu() * 0
    notes = checked(model).notes
    assert any("of zero gradient on this batch" in note and "body.weight" in note for note in notes)


def test_model_that_cannot_learn_is_a_problem():
    model = Net().requires_grad_(False)
    check = checked(model)
    assert check.relative_error is None
    assert check.problems[0] == (
        "`model` must have trainable parameters that its loss reaches, found none: nothing of it would learn. "
        "Call requires_grad_(True) on some, and compute the logits without detach() or no_grad()."
    )


@pytest.mark.parametrize("part", ["network", "generator"])
def test_frozen_network_raises(part):
    maxl = MAXL(Net(), PSI)
    getattr(maxl, part).requires_grad_(False)
    with pytest.raises(
        ValueError, match=f"`maxl` must have parameters to train in .* all of the {part}'s are frozen. C"
    ):
        check_model(maxl, X, Y)


# --- passes that do not repeat themselves ----------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_random_numbers_of_others_are_a_problem(draw):
    model = Net()
    model.after = lambda features: features * (1 + draw())
    check = checked(model)
    (problem,) = check.problems
    assert problem.startswith("`model` must give the same outputs from the same random state and buffers, found that")
    assert "by random numbers of Python's random or of numpy." in problem
    assert problem.endswith("Draw them with torch.")
    assert check.relative_error is None


def test_counter_is_a_problem():
    class Counts(Net):
        calls = 0

        def after(self, features):
            self.calls += 1
            return features * self.calls

    (problem,) = checked(Counts()).problems
    assert "by state in plain attributes: calls." in problem
    assert problem.endswith("Keep it in tensors, by register_buffer.")


def test_generator_of_its_own_is_a_problem():
    model, numbers = Net(), random.Random(0)
    model.after = lambda features: features * numbers.random()
    (problem,) = checked(model).problems
    assert "by randomness or state outside of torch (a generator of its own," in problem


def test_label_generator_that_does_not_repeat_itself_is_a_problem():
    generator = clean_generator()
    generator.body.register_forward_hook(lambda module, args, logits: logits * (1 + random.random()))
    (problem,) = check_model(MAXL(Net(), PSI, generator=generator), X, Y).problems
    assert problem.startswith("`generator` must give the same outputs")


# --- passes that move things -----------------------------------------------------------------------------------------


def test_input_changed_in_place_is_a_problem_though_no_step_can_be_taken():
    model = Net()
    model.before = lambda x: x.mul_(0.5)  # which the generator's backward pass needs
    check = checked(model)
    problem, consequence = check.problems
    assert problem.startswith("`model` must leave its input as it is, found that its forward changes `x` in place.")
    assert problem.endswith("Begin its forward with a copy, x = x.clone(), or use operations without inplace=True.")
    assert consequence.startswith("A step raises RuntimeError: one of the variables needed for gradient computation")
    assert consequence.endswith("See to the other problems first.")
    assert check.seconds is check.single_task_seconds is check.saved_bytes is check.single_task_saved_bytes is None
    assert str(check).count("could not be measured") == 3


def test_input_changed_in_place_is_seen_where_this_batch_stays_the_same():
    model = Net()
    model.before = lambda x: x.clamp_(-100, 100)
    assert "changes `x` in place" in checked(model).problems[0]


def test_mapping_changed_in_place_is_a_problem():
    class Keywords(Net):
        def forward(self, x, scale):
            return super().forward(x * scale.clamp_(max=0.9))

    class Body(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x * scale)

    maxl = MAXL(Keywords(), PSI, head="head", generator=LabelGenerator(Body(8, 7), PSI))
    scale = torch.linspace(0.5, 1, 12).unsqueeze(1)
    (problem,) = check_model(maxl, {"x": X, "scale": scale}, Y).problems
    assert "its forward changes `x` in place" in problem
    assert torch.equal(scale, torch.linspace(0.5, 1, 12).unsqueeze(1))


def test_parameters_changed_in_place_are_a_problem():
    class Words(Net):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 8, max_norm=0.5)

        def before(self, x):
            return x + self.words(torch.arange(12) % 5)

    (problem,) = [text for text in checked(Words()).problems if "parameters as they are" in text]
    assert problem.startswith("`model` must leave its parameters as they are, found that its forward changes words.w")


def test_running_statistics_in_plain_tensors_are_a_problem():
    class Averages(Net):
        def __init__(self):
            super().__init__()
            self.average = torch.zeros(16)
            self.norms = [nn.BatchNorm1d(16, affine=False)]

        def after(self, features):
            self.average = 0.9 * self.average + 0.1 * features.detach().mean(dim=0)
            return self.norms[0](features)

    (problem,) = checked(Averages()).problems
    assert problem.startswith(
        "`model` must keep what it carries from pass to pass in buffers, found plain tensors that"
    )
    assert "average, norms[0].running_mean, norms[0].running_var, norms[0].num_batches_tracked." in problem


def test_results_kept_for_a_look_do_no_harm():
    class Keeps(Net):
        def after(self, features):
            self.last = features
            self.seen = [features.detach()]
            return features

    assert checked(Keeps()).ok


# --- outputs ---------------------------------------------------------------------------------------------------------


class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)


def test_probabilities_are_a_problem():
    (problem,) = checked(Probabilities()).problems
    assert problem.startswith(
        "`model` must return logits, found rows that are non-negative and sum to 1: probabilities"
    )


def test_logits_that_are_not_negative_are_no_probabilities():
    model = Net()
    with torch.no_grad():
        model.head.bias.fill_(100.0)
    assert checked(model).ok


def test_probabilities_are_noted_where_the_loss_is_the_users():
    maxl = AuxiliaryLabelGenerator(
        Probabilities(),
        clean_generator(),
        7,
        head="head",
        primary_loss=lambda outputs, y: F.nll_loss(outputs.log(), y),
    )
    check = check_model(maxl, X, Y)
    assert check.ok
    assert check.notes[0].startswith("the model's outputs: found rows that are non-negative and sum to 1")


# --- the derivative --------------------------------------------------------------------------------------------------


def hooked(features):
    features.register_hook(torch.abs)
    return features


def test_wrong_backward_is_a_problem():
    model = Net()
    model.after = lambda features: hooked(features) if features.requires_grad else features
    check = checked(model)
    (problem,) = check.problems
    assert check.relative_error > 0.01
    assert problem.startswith("`model` must be differentiable in its parameters, found the hypergradient (method 'forw")
    assert f"{check.relative_error:.1%} away from central differences of a real step" in problem


def test_jumps_are_not_settled_by_differences():
    model = Net()
    model.after = lambda features: features + (features.detach() * 1e13).floor() % 3
    check = checked(model)
    assert check.ok
    assert check.relative_error is None
    assert check.notes == (
        "The hypergradient could not be compared with central differences: it is zero or too small for the precision, "
        "or the losses have kinks or jumps everywhere.",
    )


def test_hypergradient_of_zero_is_noted():
    maxl = MAXL(Net(), [1, 1])
    check = check_model(maxl, X, Y)
    assert check.ok
    assert check.relative_error is None
    assert any("it is zero or too small" in note for note in check.notes)


def test_model_that_wants_its_own_dtype_is_compared_in_it():
    model = Net()
    model.before = lambda x: x.float()
    check = checked(model)
    assert check.ok
    assert check.relative_error < 0.05
    (note,) = check.notes
    assert note.startswith(
        "The hypergradient was compared in torch.float32, as the model does not run in float64 (Runt"
    )


def test_model_that_cannot_be_copied_is_checked():
    model = Net()
    model.last = model(X)
    check = checked(model)
    assert check.ok
    assert "does not run in float64 (RuntimeError: Only Tensors created explicitly" in check.notes[0]


class Squeezed(torch.autograd.Function):
    """Knows its derivative, and neither a forward-mode nor a second one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


def test_fall_back_is_noted_with_its_cost_and_forgotten():
    model = Net()
    model.after = Squeezed.apply
    maxl = MAXL(model, PSI, head="head", generator=clean_generator())
    check = check_model(maxl, X, Y)
    assert check.ok
    first, second = check.notes
    assert first.startswith("`method` 'forward' does not work for this network:")
    assert second.startswith("`method` 'unrolled' does not work for this network:")
    assert "finite differences are used" in second
    assert " a step, " in second
    assert " times single-task training (" in second
    assert " a step, " not in first
    with pytest.warns(RuntimeWarning, match="does not work for this network"):
        maxl.hypergradient(X, Y)


def test_input_of_several_parts_is_taken_to_double():
    class Pair(Net):
        def forward(self, x):
            return super().forward(x[0] * x[1])

    class Body(nn.Linear):
        def forward(self, x):
            return super().forward(x[0])

    maxl = MAXL(Pair(), PSI, head="head", generator=LabelGenerator(Body(8, 7), PSI))
    check = check_model(maxl, (X, 2.0), Y)
    assert (check.problems, check.notes) == ((), ())
    assert check.relative_error < 1e-4


def test_large_networks_are_compared_in_their_own_dtype(monkeypatch):
    monkeypatch.setattr(differences, "MOST_PARAMETERS", 100)
    check = checked(Net())
    assert check.ok
    assert (
        "in torch.float32, as the model does not run in float64 (MemoryError: a copy of 592 parameter" in check.notes[0]
    )


def test_losses_that_are_modules_are_taken_to_double():
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    maxl = AuxiliaryLabelGenerator(Net(), clean_generator(), 7, head="head", primary_loss=weighted)
    check = check_model(maxl, X, Y)
    assert (check.problems, check.notes) == ((), ())
    assert check.relative_error < 1e-4
    assert weighted.weight.dtype == torch.float32


# --- arguments and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["maxl", "model"])
def test_evaluation_mode_is_noted(part):
    model = Net()
    maxl = MAXL(model, PSI)
    (maxl if part == "maxl" else model).eval()
    assert check_model(maxl, X, Y).notes == (
        "The model is in evaluation mode: no dropout, and BatchNorm stands still. Call maxl.train() unless that is "
        "meant.",
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (Net(), X, Y),
            {},
            TypeError,
            "`maxl` must be an instance of AuxiliaryLabelGenerator, found Net. Wrap the model",
        ),
        ((MAXL(Net(), PSI), X, Y[:3]), {}, ValueError, "`x` and `y` must have the same number of samples"),
        (
            (MAXL(Net(), PSI), X, Y),
            {"method": "regularizer"},
            ValueError,
            "`method` must be one of 'forward', .*found 're",
        ),
    ],
    ids=["kind", "batch", "method"],
)
def test_wrong_argument_raises(arguments, options, error, message):
    with pytest.raises(error, match=message):
        check_model(*arguments, **options)


def test_error_of_the_model_is_its_own():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        check_model(MAXL(Net(), PSI), X[:1], Y[:1])


def test_loss_that_is_not_finite_raises():
    with pytest.raises(NonFiniteError, match="primary loss is nan"):
        check_model(MAXL(Net(), PSI), X * float("nan"), Y)


def test_warnings_of_the_model_are_given_once():
    class Warns(Net):
        def after(self, features):
            warnings.warn("mind the gap", FutureWarning, stacklevel=2)
            return features

    with pytest.warns(FutureWarning, match="mind the gap") as caught:
        checked(Warns())
    assert len(caught) == 1


# --- nothing changes -------------------------------------------------------------------------------------------------


class Nasty(Net):
    """Moves all that it can, and fails after as many passes as a test allows."""

    def __init__(self, passes):
        super().__init__()
        self.calls, self.log, self.passes = 0, [], passes
        self.average = torch.zeros(16)
        self.words = nn.Embedding(5, 8, max_norm=0.5)

    def before(self, x):
        self.calls += 1
        self.log.append(self.calls)
        self.passes()
        self.average += 1
        return x.mul_(0.9 + 0.1 * random.random() * np.random.rand()) + self.words(torch.arange(12) % 5)


def everything(maxl, x):
    return copy.deepcopy(
        {
            "state": maxl.state_dict(),
            "gradients": [parameter.grad for parameter in maxl.parameters()],
            "modes": [module.training for module in maxl.modules()],
            "random": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()],
            "model": [maxl.module.calls, maxl.module.log, maxl.module.average],
            "batch": [x, Y],
        }
    )


@pytest.mark.parametrize("passes", [1, 3, 1000])
def test_nothing_changes(passes):
    allowed = iter(range(passes))
    maxl, x = MAXL(Nasty(lambda: next(allowed)), PSI, lr=0.5, generator=clean_generator()), X.clone()
    maxl.module.dropout.eval()
    for parameter in maxl.parameters():
        parameter.grad = torch.ones_like(parameter)
    grads = [parameter.grad for parameter in maxl.parameters()]
    parameters, before = list(maxl.parameters()), everything(maxl, x)
    if passes == 1000:
        assert len(check_model(maxl, x, Y).problems) >= 3
    else:
        with pytest.raises(StopIteration):
            check_model(maxl, x, Y)
    torch.testing.assert_close(everything(maxl, x), before, rtol=0, atol=0)
    assert all(one is other for one, other in zip(maxl.parameters(), parameters))
    assert all(parameter.grad is grad for parameter, grad in zip(maxl.parameters(), grads))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in maxl.modules())


# --- real models -----------------------------------------------------------------------------------------------------


def test_resnet18_is_ok():
    maxl = MAXL(torchvision.models.resnet18(weights=None, num_classes=2), PSI)
    check = check_model(maxl, torch.randn(8, 3, 16, 16), torch.tensor([0, 1] * 4))
    assert check.ok
    assert check.relative_error < 1e-3


def test_tiny_bert_is_ok():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=2, **sizes)
    maxl = MAXL(transformers.BertForSequenceClassification(config).train(), PSI)
    tokens = torch.randint(1, 30, (6, 5))
    check = check_model(maxl, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, Y[:6])
    assert check.ok
    assert check.relative_error < 1e-3
