"""The benchmark suite: contenders compute the same iteration, nothing dense appears, tables and figures are written."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import epoch, growth, measure
from benchmarks.case import Case
from benchmarks.contenders import GENERATOR_LR, LR
from benchmarks.figures import draw_growth
from benchmarks.libraries import CONTENDERS
from benchmarks.measure import Result, first_iteration
from benchmarks.networks import network
from benchmarks.report import rows, table
from maxl_l2l import MAXL

ROOT = Path(__file__).parents[2]
EXACT = ("ours", "unroll", "unroll-shared", "higher", "learn2learn", "torchopt", "ours-adapted")
SEVERAL_STEPS = ("unroll", "higher", "learn2learn", "torchopt", "ours-adapted")


@pytest.fixture
def batch():
    return torch.randn(8, 3, 8, 8).double(), torch.randint(0, 3, (8,))


@pytest.fixture
def learner():
    """Convolution, BatchNorm and smooth activations, so that finite differences mean something too."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    return MAXL(model.double(), [2, 3, 2], lr=LR)


def exact(learner, batch, method="unrolled"):
    learner = copy.deepcopy(learner)
    learner.hypergradient(*batch, method=method)
    return flat(parameter.grad for parameter in learner.generator.parameters())


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def iterated(name, learner, batch, inner_steps=1):
    contender = CONTENDERS[name](copy.deepcopy(learner), inner_steps)
    contender.iteration(*batch)
    return contender


def relative(found, expected):
    return (found - expected).norm() / expected.norm()


@pytest.mark.parametrize("name", EXACT)
def test_exact_contenders_have_the_exact_hypergradient(name, learner, batch):
    contender = iterated(name, learner, batch)
    assert relative(flat(p.grad for p in contender.theta_2), exact(learner, batch)) <= 1e-9


@pytest.mark.parametrize("name", EXACT)
def test_exact_contenders_update_both_networks_as_torch_does(name, learner, batch):
    contender = iterated(name, learner, batch)
    maxl = copy.deepcopy(learner)
    loss = maxl.loss(*batch)
    grads = torch.autograd.grad(loss, list(maxl.network.parameters()))
    theta_1 = [p - LR * grad for p, grad in zip(maxl.network.parameters(), grads)]
    torch.testing.assert_close(flat(contender.theta_1), flat(theta_1), rtol=1e-9, atol=1e-12)
    theta_2 = flat(maxl.generator.parameters()) - GENERATOR_LR * exact(learner, batch)
    torch.testing.assert_close(flat(contender.theta_2), theta_2, rtol=1e-9, atol=1e-12)


def test_after_several_inner_steps_all_have_the_same_hypergradient(learner, batch):
    found = [flat(p.grad for p in iterated(name, learner, batch, 3).theta_2) for name in SEVERAL_STEPS]
    assert relative(found[0], exact(learner, batch)) > 1e-3  # it is another one than that of a single step
    for other in found[1:]:
        assert relative(other, found[0]) <= 1e-9


def test_our_finite_difference_is_near_the_exact_hypergradient(learner, batch):
    contender = iterated("ours-finite-difference", learner, batch)
    assert relative(flat(p.grad for p in contender.theta_2), exact(learner, batch)) <= 1e-4


def test_published_scheme_is_near_the_hypergradient_but_for_the_entropy_term(learner, batch):
    found = flat(p.grad for p in iterated("published", learner, batch).theta_2)
    with_entropy = exact(learner, batch)
    without_entropy = with_entropy - exact(learner, batch, "regularizer")
    # Its perturbation has length 0.01: an error of the order of 1e-4.
    assert relative(found, without_entropy) <= 1e-3
    assert relative(found, with_entropy) > 0.1


def test_published_scheme_takes_the_same_step_of_the_network(learner, batch):
    contender = iterated("published", learner, batch)
    torch.testing.assert_close(
        flat(contender.theta_1), flat(iterated("unroll", learner, batch).theta_1), rtol=1e-9, atol=1e-12
    )


def test_single_task_trains_the_model_alone(learner, batch):
    contender = iterated("single", learner, batch)
    loss = learner.primary_loss(*batch)
    grads = torch.autograd.grad(loss, list(learner.module.parameters()))
    expected = flat(p - LR * grad for p, grad in zip(learner.module.parameters(), grads))
    torch.testing.assert_close(flat(contender.maxl.module.parameters()), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(flat(contender.theta_2), flat(learner.generator.parameters()))


@pytest.mark.parametrize(("name", "plain"), [("single-compiled", "single"), ("ours-compiled", "ours")])
def test_compiled_contenders_do_what_they_do_uncompiled(name, plain, learner, batch, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # traced, but not built for a minute
    compiled, expected = (iterated(contender, learner, batch) for contender in (name, plain))
    for found, other in ((compiled.theta_1, expected.theta_1), (compiled.theta_2, expected.theta_2)):
        torch.testing.assert_close(flat(found), flat(other), rtol=1e-9, atol=1e-12)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operator returns."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.found = max([self.found, *sizes])
        return result


def test_with_10000_sub_classes_no_tensor_is_larger_than_logits_or_parameters():
    num_samples, num_auxiliary = 7, 10_000
    # More classes than samples or features: a matrix of C x K would be the largest tensor of all.
    maxl = MAXL(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 50)), [200] * 50)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (maxl.network, maxl.generator)]
    with Largest() as largest:
        maxl.step(torch.randn(num_samples, 8), torch.randint(0, 50, (num_samples,)), *optimizers)
    num_parameters = sum(parameter.numel() for parameter in maxl.network.parameters())
    assert num_samples * num_auxiliary <= largest.found <= max(num_samples * num_auxiliary, num_parameters)


def test_what_fails_for_want_of_a_second_derivative_runs_with_math_attention():
    result, entrant = first_iteration(Case("vit", batch=2), "unroll")
    assert entrant is not None
    assert result.math_attention
    assert "attention" in result.failure
    assert first_iteration(Case("vit", batch=2), "ours")[0] == Result("ours", first_seconds=pytest.approx(1, abs=30))


def test_contender_that_fails_is_shown_with_its_reason(monkeypatch):
    class Failing(CONTENDERS["higher"]):
        def iteration(self, x, y):
            raise NotImplementedError("no rule for this operator\nand a long trace")

    monkeypatch.setitem(CONTENDERS, "higher", Failing)
    case = Case("vgg-1x5-0.02", batch=2)
    result, entrant = first_iteration(case, "higher")
    assert entrant is None
    assert "| higher |  |  |  |  |  | fails: NotImplementedError: no rule for this operator |" in table(
        rows(case, [result])
    )


def test_ratios_are_taken_repeat_by_repeat():
    found = rows(Case("vit"), [Result("single", seconds=[1.0, 2.0, 4.0]), Result("ours", seconds=[4.0, 6.0, 20.0])])
    assert found[0]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert found[1]["ratio"] == {"median": 4, "low": 3.5, "high": 4.5}
    assert found[1]["seconds"]["median"] == 6


@pytest.mark.parametrize(("name", "convolutions"), [("vgg16-0.1", 13), ("vgg-2x5-0.1", 10), ("resnet18", 20)])
def test_networks_have_their_depth_and_classify_small_images(name, convolutions):
    model = network(name, 7)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_unknown_network_raises():
    with pytest.raises(ValueError, match=r"`name` must be vgg16-<width>, .*, found 'vgg19'"):
        network("vgg19", 7)


def test_growth_is_measured_and_drawn(tmp_path, monkeypatch):
    curve = dataclasses.replace(growth.CURVES["inner_steps"], changes={1: {"inner_steps": 1}, 2: {"inner_steps": 2}})
    monkeypatch.setitem(growth.CURVES, "inner_steps", curve)
    monkeypatch.setattr(measure, "peak_memory", lambda entrant: 2**20 * entrant.case.inner_steps)
    points = list(growth.points(["inner_steps"], {"batch": 2, "network": "vgg-1x5-0.02"}, repeats=1, iterations=1))
    assert [point["value"] for point in points] == [1, 2]
    assert [result["contender"] for result in points[0]["results"]] == ["ours-adapted", "learn2learn", "higher"]
    assert points[1]["results"][0]["peak_bytes"] == 2**21
    draw_growth(points, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A small run from the command line: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    options = "--networks vgg-1x5-0.125 --batch 16 --repeats 2 --contenders single ours unroll published --device cpu"
    command = [sys.executable, "-m", "benchmarks.run", *options.split(), "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_run_prints_a_row_for_each_contender(measured):
    titles = [line.split("|")[1].strip() for line in measured[1].splitlines() if line.startswith("| ")]
    assert titles == ["", "single task", "ours", "torch, unrolled", "published finite difference"]


def test_run_writes_all_times_and_where_they_were_taken(measured):
    found = json.loads((measured[0] / "costs.json").read_text())
    assert found["versions"]["torch"] == str(torch.__version__)
    assert found["settings"]["batch"] == 16
    results = {result["contender"]: result for result in found["cases"][0]["results"]}
    assert all(len(result["seconds"]) == 2 for result in results.values())
    assert results["single"]["error"] is None
    assert results["ours"]["error"] < 1e-4 < results["published"]["method_error_without_entropy"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere freed memory may stay resident")
def test_memory_of_a_second_graph_is_seen(measured):
    summary = json.loads((measured[0] / "costs.json").read_text())["summary"]
    single, ours, unrolled, _ = (row["peak_mib"] for row in summary)
    assert 0 < single < ours < unrolled


def test_run_draws_a_figure(measured):
    assert (measured[0] / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_epoch_measures_each_way_and_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(epoch, "IMAGES", 300)
    out = tmp_path / "epoch.json"
    epoch.main(["--width", "0.05", "--batch", "10", "--repeats", "2", "--iterations", "1", "--out", str(out)])
    content = json.loads(out.read_text())
    found = {row["way"]: row for row in content["summary"]}
    assert list(found) == ["single task", "MAXL, both stages", "MAXL, fused", "plain torch, unrolled"]
    assert found["plain torch, unrolled"]["ratio_to_unroll"]["median"] == 1
    single = found["single task"]
    assert single["seconds_an_epoch"] == pytest.approx(30 * single["seconds_a_batch"]["median"])
    assert single["images_a_second"] == pytest.approx(10 / single["seconds_a_batch"]["median"])
    # Forward 1, backward 2 of the network; but its first layer has no gradient for its input.
    assert 2.5 < single["operations_a_batch"] / forward_operations(0.05, 10) <= 3
    # Both stages do the network's own step once more than the fused one, and one pass of the generator.
    more = found["MAXL, both stages"]["operations_a_batch"] - found["MAXL, fused"]["operations_a_batch"]
    assert more / forward_operations(0.05, 10) == pytest.approx(4, abs=0.4)
    assert f"| single task | {single['seconds_an_epoch']:.1f} |" in capsys.readouterr().out


def forward_operations(width, batch):
    """Of the paper's VGG-16, from its layers: 2 operations for each product of a weight and an input."""
    channels, size, total, before = (64, 128, 256, 512, 512), 32, 0, 3
    for wide, number in zip(channels, (2, 2, 3, 3, 3)):
        wide = max(1, round(width * wide))
        for _ in range(number):
            total += 2 * batch * size * size * 9 * before * wide
            before = wide
        size //= 2
    return total


def test_a_library_that_is_missing_is_left_out():
    blocked = "import sys; sys.modules['higher'] = None; from benchmarks.libraries import CONTENDERS as c; print(*c)"
    printed = subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(CONTENDERS) - set(printed.stdout.split()) == {"higher"}
