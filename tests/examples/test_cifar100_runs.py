"""The CIFAR-100 experiment: networks, recipes, runs that are stopped and resumed, results, and what is refused."""

import copy
import errno
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from examples.cifar100 import data, run, summarize, train
from examples.cifar100.arithmetic import arithmetic, matrix_rate, operations_a_batch
from examples.cifar100.job import Job
from examples.cifar100.levels import FINE, PAIRS
from examples.cifar100.networks import HEADS, network
from examples.cifar100.recipes import RECIPES, Recipe
from examples.cifar100.run import SOURCES
from maxl_l2l import MAXL, HumanLabels, NonFiniteError, SingleTask
from maxl_l2l.training import clock

ROOT = Path(__file__).parents[2]
SMALL = ["--width", "0.05", "--subset", "3", "--epochs", "2", "--set", "batch_size=100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CIFAR-100 of four training images of each class and a test image, as PNG files."""
    path = tmp_path_factory.mktemp("png")
    random = np.random.RandomState(0)
    for number in range(500):
        place = path / ("train" if number < 400 else "test") / FINE[number % 100]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(256, size=(32, 32, 3)).astype(np.uint8)).save(place / f"{number:03}.png")
    return path


@pytest.fixture(autouse=True)
def _counts(monkeypatch):
    monkeypatch.setitem(data.PER_CLASS, "train", 4)
    monkeypatch.setitem(data.PER_CLASS, "test", 1)


@pytest.fixture
def command(folder, tmp_path):
    """Calls train's main; returns its exit status."""

    def call(*arguments):
        common = ["--data", folder, "--cache", tmp_path / "cache", "--out", tmp_path / "runs", "--device", "cpu"]
        return train.main([str(one) for one in (*common, *SMALL, *arguments)])

    call.out = tmp_path / "runs"
    return call


def job(folder, out, source="maxl", seed=0, **changes):
    recipe = replace(RECIPES["modern"], epochs=2)
    return Job(source, seed, source, recipe, folder, out / "cache", out, width=0.05, subset=3, **changes)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("width", [1, 0.25])
def test_networks_give_logits_and_have_a_head_a_task(name, width):
    maxl = MAXL(network(name, 20, width), [5] * 20, head=HEADS[name])
    primary, auxiliary = maxl.network(torch.randn(2, 3, 32, 32))
    assert (primary.shape, auxiliary.shape) == ((2, 20), (2, 100))
    own, new = maxl.module.get_submodule(HEADS[name]), maxl.network.auxiliary_head
    assert [type(layer) for layer in own.modules()] == [type(layer) for layer in new.modules()]


def test_vgg_16_is_the_papers():
    model = network("vgg16", 20, 1)
    channels = [layer.out_channels for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert channels == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in model.features) == 13
    assert [layer.out_features for layer in model.classifier if isinstance(layer, nn.Linear)] == [512, 20]
    weight = model.features[0].weight
    assert weight.abs().max() <= math.sqrt(6 / (9 * (3 + 64)))  # Xavier's bound
    assert weight.abs().max() > 0.9 * math.sqrt(6 / (9 * (3 + 64)))


def test_generator_draws_weights_of_its_own_as_the_model_does():
    maxl = MAXL(network("vgg16", 20, 0.25), [5] * 20, head="classifier")
    own, new = maxl.module.features[0], maxl.generator.body.features[0]
    assert not torch.equal(own.weight, new.weight)
    assert new.weight.abs().max() <= math.sqrt(6 / (9 * (3 + 16)))
    assert torch.equal(new.bias, torch.zeros(16))


@pytest.mark.parametrize("width", [1, 0.5])
def test_resnet_18_and_its_generator_draw_weights_alike_at_any_width(width):
    torch.manual_seed(0)
    maxl = MAXL(network("resnet18", 20, width), [5] * 20, head="fc")
    for model in (maxl.module, maxl.generator.body):
        weight = model.layer3[1].conv2.weight
        bound = 1 / math.sqrt(weight[0].numel())  # torch's own, for the weights of a convolution
        assert 0.99 * bound < weight.abs().max() <= bound


def test_resnet_18_at_full_width_is_torchvisions_but_for_its_stem():
    model = network("resnet18", 20, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_176_512 - 9_408 + 1_728 + 512 * 20 + 20
    assert model.conv1.stride == (1, 1)
    assert network("resnet18", 20, 0.5).layer4[1].conv2.weight.shape == (256, 256, 3, 3)


def test_released_recipe_is_that_of_the_papers_code():
    maxl = MAXL(nn.Linear(4, 2), [2, 3])
    optimizer, generator_optimizer = RECIPES["released"].optimizers(maxl)
    assert {name: optimizer.param_groups[0][name] for name in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.01,
        "momentum": 0,
        "weight_decay": 0,
    }
    assert generator_optimizer.param_groups[0]["lr"] == 1e-3
    assert generator_optimizer.param_groups[0]["weight_decay"] == 5e-4
    scheduler, rates = RECIPES["released"].scheduler(optimizer), []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.01] * 50 + [0.005] * 50 + [0.0025] * 50 + [0.00125] * 50


def test_draft_recipe_takes_the_l1_term_from_the_generators_weights():
    torch.manual_seed(0)
    maxl = MAXL(nn.Linear(4, 2), [2, 3])
    _, optimizer = RECIPES["draft"].optimizers(maxl)
    before = copy.deepcopy(dict(maxl.generator.named_parameters()))
    grads = {name: torch.randn_like(parameter) for name, parameter in before.items()}
    for name, parameter in maxl.generator.named_parameters():
        parameter.grad = grads[name].clone()
    optimizer.step()
    for name, parameter in maxl.generator.named_parameters():
        # d/dw of the L1 term, by hand: 5e-4 sign(w)
        expected = before[name] - 1e-5 * (grads[name] + 5e-4 * before[name].sign())
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-9)


def test_cosine_falls_from_the_rate_to_next_to_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, rates = replace(Recipe(), decay="cosine", epochs=4).scheduler(optimizer), []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5))])


def test_recipes_are_changed_by_name_and_kind():
    found = Recipe().changed({"lr": "0.5", "schedule": "batch", "epochs": "7"})
    assert (found.lr, found.schedule, found.epochs) == (0.5, "batch", 7)
    with pytest.raises(ValueError, match=r"`--set` must change settings .*found rate=1\. They are: epochs=200, "):
        Recipe().changed({"rate": "1"})
    with pytest.raises(ValueError, match="found epochs=many"):
        Recipe().changed({"epochs": "many"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "linear"}, "`decay` must be one of halved, cosine, found linear"),
        ({"generator": "rmsprop"}, "`generator` must be one of sgd, adam, found rmsprop"),
        ({"schedule": "step"}, "`schedule` must be one of epoch, batch, found step"),
        ({"batch_size": "0"}, "`batch_size` must be at least 1, found 0"),
        ({"held_out": "1.5"}, "`held_out` must be at least 0 and below 1, found 1.5"),
        ({"lr": "-1"}, "`lr` must be a number from 0 on, found -1.0"),
        ({"lr": "nan"}, "`lr` must be a number from 0 on, found nan"),
    ],
)
def test_recipes_that_can_not_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe().changed(changes)


def test_operations_of_a_step_are_those_worked_by_hand():
    """Three linear layers: the network's, the auxiliary head and the generator's; 2 N I O for each product."""
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 2)), [2, 3])
    batch = torch.randn(10, 7), torch.randint(0, 2, (10,))
    body, head, extra = 2 * 10 * 7 * 11, 2 * 10 * 11 * 2, 2 * 10 * 11 * 5
    recipe = replace(Recipe(), schedule="batch")
    # A forward pass, the weights' gradients, and the features' gradient.
    single = operations_a_batch(maxl, recipe, SingleTask(), batch)
    assert single == 2 * (body + head + extra) + head - extra
    fixed = operations_a_batch(maxl, recipe, HumanLabels(torch.zeros(1)), (*batch, 2 * batch[1]))
    assert fixed == 2 * body + 3 * head + 3 * extra


def test_operations_in_parts_are_as_many_and_use_parts_alone(monkeypatch):
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 2)), [2, 3])
    batch = torch.randn(12, 7), torch.randint(0, 2, (12,))
    sizes, plain = [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda x, *rest: sizes.append(len(x)) or plain(x, *rest))
    whole = operations_a_batch(maxl, Recipe(), SingleTask(), batch)
    sizes.clear()
    assert operations_a_batch(maxl, Recipe(), SingleTask(), batch, micro_batches=3) == whole
    assert max(sizes) == 4


def test_matrix_rate_is_positive_and_precision_is_put_back():
    before = torch.backends.cuda.matmul.allow_tf32
    assert matrix_rate("cpu", "float32", repeats=1) > 1e6
    with arithmetic("cpu", "bf16"):
        assert (torch.randn(2, 2) @ torch.randn(2, 2)).dtype == torch.bfloat16
    with arithmetic("cpu", "tf32"):
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize("protocol", ["released", "draft", "modern"])
def test_all_sources_run_in_each_protocol(command, protocol, capsys):
    assert command("--protocol", protocol, "--seeds", 0) == 0
    capsys.readouterr()
    found = [json.loads((command.out / f"{source}-0.json").read_text()) for source in SOURCES]
    for source, result in zip(SOURCES, found):
        assert result["source"] == result["label"] == source
        assert len(result["epochs"]) == 2
        accuracies = [record["test_accuracy"] for record in result["epochs"]]
        assert result["accuracy"] == pytest.approx(sum(accuracies) / 2, abs=1e-5)
        assert result["settings"]["recipe"]["schedule"] == RECIPES[protocol].schedule
        assert result["images_per_second"] > 0
        assert result["share_of_matrix_rate"] > 0
        assert ("labels" in result) == (source in ("entropy", "maxl", "weighted"))
        meta = "meta_loss" in result["epochs"][0]
        assert meta == (source in ("maxl", "weighted"))
    assert {"weight", "weight_sd"} <= set(found[-1]["labels"])
    assert (command.out / "checkpoints" / "maxl-0.pt").exists()


@pytest.mark.parametrize(("primary", "auxiliary"), PAIRS)
def test_every_pair_of_levels_trains(command, primary, auxiliary):
    levels = ("--primary", primary, "--auxiliary", auxiliary)
    assert command(*levels, "--sources", "human", "maxl", "--seeds", 0, "--epochs", 1, "--protocol", "modern") == 0
    result = json.loads((command.out / "maxl-0.json").read_text())
    assert result["labels"]["mean_entropy"] <= math.log(auxiliary) + 1e-4
    assert result["epochs"][0]["primary_loss"] == pytest.approx(math.log(primary), rel=0.5)


def test_networks_begin_alike_for_all_sources(folder, tmp_path):
    learners = [run.learner_of(job(folder, tmp_path, source), [5] * 20) for source in ("single", "maxl", "human")]
    for other in learners[1:]:
        torch.testing.assert_close(other.state_dict(), learners[0].state_dict(), rtol=0, atol=0)


def test_label_measures_are_those_worked_by_hand(folder, tmp_path):
    class OneOfTwo(nn.Module):
        """Half of the mass on each of the first two sub-classes."""

        def forward(self, x, y):
            labels = torch.zeros(len(y), 100)
            labels[torch.arange(len(y)), 5 * y] = labels[torch.arange(len(y)), 5 * y + 1] = 0.5
            return labels

    one = job(folder, tmp_path)
    split, levels = run.images_of(one), run.task(20, 100)
    maxl = MAXL(network("vgg16", 20, 0.05), levels.psi, head="classifier", generator=OneOfTwo())
    found = run.described_labels(maxl, split.train, levels, torch.device("cpu"))
    assert found["entropy"] == pytest.approx(math.log(2), abs=1e-4)
    assert found["mean_entropy"] == pytest.approx(math.log(40), abs=1e-4)
    assert found["sub_classes"] == 20
    assert found["nmi"] == 0  # within a super-class they say nothing of its five classes


def test_labels_that_are_the_given_ones_have_a_mutual_information_of_one(folder, tmp_path):
    levels = run.task(20, 100)

    class Given(nn.Module):
        """The given label, which is the image's first pixel here."""

        def forward(self, x, y):
            fine = (x[:, 0, 0, 0] * 51 + 127.5).round().long()
            return nn.functional.one_hot(levels.auxiliary[fine], 100).float()

    split = run.images_of(job(folder, tmp_path))
    pixels = split.train.pixels.clone()
    pixels[:, 0, 0, 0] = split.train.fine.byte()
    maxl = MAXL(network("vgg16", 20, 0.05), levels.psi, head="classifier", generator=Given())
    found = run.described_labels(maxl, data.Images(pixels, split.train.fine), levels, torch.device("cpu"))
    assert found["nmi"] == 1
    assert found["entropy"] == 0
    assert found["sub_classes"] == 100


def test_processes_side_by_side_give_the_same_results(command, folder, tmp_path):
    assert command("--sources", "single", "maxl", "--seeds", 0) == 0
    # Spawned processes read all modules anew, and with them how many images there should be.
    script = tmp_path / "patched.py"
    script.write_text(
        "import sys\n"
        "from examples.cifar100 import data\n"
        "from examples.cifar100.train import main\n"
        "data.PER_CLASS.update(train=4, test=1)\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(main())\n"
    )
    arguments = ["--data", folder, "--cache", tmp_path / "cache", "--out", tmp_path / "other", "--device", "cpu"]
    arguments += [*SMALL, "--sources", "single", "maxl", "--seeds", 0, "--processes", 2]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "single-0: " in done.stdout
    for name in ("single-0.json", "maxl-0.json"):
        one, other = (json.loads((path / name).read_text()) for path in (command.out, tmp_path / "other"))
        assert curve(one) == curve(other)


def curve(result):
    """All that a run has measured but for its seconds."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in result["epochs"]]


def test_a_stopped_run_goes_on_to_the_result_of_an_uninterrupted_one(command, tmp_path, monkeypatch, capsys):
    """The time limit is over in the middle of an epoch."""
    common = ("--sources", "weighted", "--seeds", 0)
    assert command(*common, "--out", tmp_path / "whole") == 0
    steps, plain = [], MAXL.network_step

    def counted(*arguments, **options):
        steps.append(1)
        return plain(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MAXL, "network_step", counted)
        patched.setattr(clock, "monotonic", lambda: time.monotonic() + (1e6 if len(steps) >= 3 else 0))
        assert command(*common, "--out", tmp_path / "stopped", "--time-limit", 60) == 0
    printed = capsys.readouterr().out
    assert "weighted-0: not finished within the time limit" in printed
    assert "1 of 1 runs are not finished. Go on with the same command and --resume." in printed
    assert command(*common, "--out", tmp_path / "stopped", "--resume") == 0
    whole, stopped = (json.loads((tmp_path / name / "weighted-0.json").read_text()) for name in ("whole", "stopped"))
    assert curve(stopped) == curve(whole)
    assert stopped["labels"] == whole["labels"]


def test_finished_runs_are_left_alone_on_resume(command, monkeypatch, capsys):
    assert command("--sources", "single", "--seeds", 0) == 0
    monkeypatch.setattr(train, "run", None)
    assert command("--sources", "single", "--seeds", 0, "--resume") == 0


def test_results_are_not_overwritten(command, capsys):
    assert command("--sources", "single", "--seeds", 0) == 0
    before = (command.out / "single-0.json").read_text()
    assert command("--sources", "single", "--seeds", 0) == 1
    error = capsys.readouterr().err
    assert "single-0.json already. Pass --resume to go on with it, or another --out." in error
    assert (command.out / "single-0.json").read_text() == before


def test_results_of_other_settings_are_refused_with_what_differs(command, capsys):
    assert command("--sources", "single", "--seeds", 0) == 0
    assert command("--sources", "single", "--seeds", 0, "--resume", "--width", 0.06, "--set", "lr=0.5") == 1
    error = capsys.readouterr().err
    assert "of other settings: width 0.05 there, 0.06 here, lr 0.01 there, 0.5 here." in error


def test_a_checkpoint_of_other_settings_is_refused_with_what_differs(command, capsys):
    assert command("--sources", "single", "--seeds", 0) == 0
    (command.out / "single-0.json").unlink()
    assert command("--sources", "single", "--seeds", 0, "--resume", "--width", 0.06) == 1
    error = capsys.readouterr().err
    assert "`checkpoint` must be of a run with the same settings" in error
    assert "width" in error
    assert "0.05" in error
    assert "0.06" in error


def test_too_little_memory_gets_what_it_needed_and_what_lowers_it(command, monkeypatch, capsys):
    def exhausted(*arguments, **options):
        raise torch.cuda.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB of which 3 is free"
        )

    monkeypatch.setattr(MAXL, "network_step", exhausted)
    assert command("--sources", "single", "--seeds", 0) == 1
    error = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in error
    assert "--micro-batches 2 needs less" in error


def test_a_run_that_fails_leaves_the_others_alone(command, monkeypatch, capsys):
    plain = MAXL.network_step

    def failing(self, *arguments, **options):
        if options.get("auxiliary", True):
            raise NonFiniteError("network gradient", "the network gradient is nan")
        return plain(self, *arguments, **options)

    monkeypatch.setattr(MAXL, "network_step", failing)
    assert command("--sources", "human", "single", "--seeds", 0) == 1
    printed = capsys.readouterr()
    assert "human-0: error: " in printed.err
    assert "the network gradient is nan" in printed.err
    assert "1 of 2 runs are not finished" in printed.out
    assert (command.out / "single-0.json").exists()


def test_an_error_that_nobody_has_foreseen_is_shown_with_its_place(command, monkeypatch, capsys):
    monkeypatch.setattr(train, "run", lambda *arguments: {}["what"])
    assert command("--sources", "single", "--seeds", 0) == 1
    assert "KeyError: 'what'" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(command, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupted)
    assert command("--sources", "single", "--seeds", 0) == 130
    assert "The same command with --resume goes on" in capsys.readouterr().err


def test_a_process_that_is_killed_is_reported_and_nobody_waits_for_it(folder, tmp_path, capsys):
    jobs = [job(folder, tmp_path, seed=seed) for seed in (0, 1)]
    outcomes = list(train.side_by_side(jobs, Killer(), None, 2, 1))
    assert [outcome.finished for outcome in outcomes] == [False, False]
    assert "a process was killed" in outcomes[0].error


class Killer:
    """Kills the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_result_that_is_none_is_named(command, capsys):
    command.out.mkdir()
    (command.out / "single-0.json").write_text("{}")
    assert command("--sources", "single", "--seeds", 0, "--resume") == 1
    assert "single-0.json, which is no result (KeyError('settings'))" in capsys.readouterr().err


def test_a_full_disk_gets_a_message_and_keeps_the_last_checkpoint(command, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "replace_file", full)
    assert command("--sources", "single", "--seeds", 0) == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(data.PER_CLASS, "train", 4)
    monkeypatch.setitem(data.PER_CLASS, "test", 1)
    assert command("--sources", "single", "--seeds", 0, "--resume") == 0
    assert len(json.loads((command.out / "single-0.json").read_text())["epochs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label", "mine"), "`--label` needs a single source"),
        (("--subset", 0), "`--subset` must be at least 1 and at most 4, found 0"),
        (("--subset", 5), "`--subset` must be at least 1 and at most 4, found 5"),
        (("--epochs", 0), "`--epochs` must be at least 1, found 0"),
        (("--micro-batches", 0), "`--micro-batches` must be at least 1, found 0"),
        (("--width", 0), "`--width` must be a number above 0, found 0.0"),
        (("--device", "cuda:77"), "`--device` must be there, found cuda:77"),
        (("--set", "rate=3"), "`--set` must change settings of the recipe"),
        (("--primary", 100, "--auxiliary", 20), "`primary` and `auxiliary` must be two of the levels"),
        (("--data", "/nowhere/at/all"), "`--data` must hold CIFAR-100, found no such folder"),
    ],
)
def test_bad_arguments_get_a_message_and_a_status(command, arguments, message, capsys):
    assert command(*arguments) == 1
    assert message in capsys.readouterr().err


def test_kmeans_without_scikit_learn_names_it(command, monkeypatch, capsys):
    monkeypatch.setattr(train, "HAS_SCIKIT_LEARN", False)
    assert command("--sources", "kmeans") == 1
    assert "needs scikit-learn, which is missing. Run: pip install scikit-learn" in capsys.readouterr().err


def made(label, seed, accuracy, **changes):
    settings = {"label_source": label, "seed": seed, "width": 1, "recipe": {"lr": 0.1, "held_out": 0.0}}
    settings["recipe"] |= changes
    epochs = [{"test_accuracy": accuracy}] * 3
    source = label.split("-")[0]
    labels = (
        {"labels": {"entropy": 1.0, "mean_entropy": 2.0, "sub_classes": 80, "nmi": 0.5}} if source == "maxl" else {}
    )
    return {
        "label": label,
        "source": source,
        "seed": seed,
        "accuracy": accuracy,
        "seconds": 60.0,
        "settings": settings,
        "environment": {"date": f"2026-01-0{seed + 1}", "device": "one"},
        "epochs": epochs,
        **labels,
    }


@pytest.fixture
def results(tmp_path):
    runs = [made("single", seed, accuracy) for seed, accuracy in ((0, 0.5), (1, 0.6), (2, 0.7))]
    runs += [made("maxl", seed, accuracy) for seed, accuracy in ((0, 0.52), (1, 0.61), (2, 0.73))]
    runs += [made("entropy", seed, accuracy) for seed, accuracy in ((0, 0.51), (1, 0.6), (2, 0.72))]
    runs += [made("maxl-apart", 1, 0.59, held_out=0.1)]
    folder = tmp_path / "runs"
    folder.mkdir()
    for one in runs:
        (folder / f"{one['label']}-{one['seed']}.json").write_text(json.dumps(one))
    return folder


def test_summary_is_the_one_worked_by_hand(results):
    rows = {row["label"]: row for row in summarize.summary(summarize.read(results))}
    assert list(rows) == ["single", "entropy", "maxl", "maxl-apart"]
    assert rows["single"]["accuracy"] == pytest.approx([0.6, 0.1 / math.sqrt(3)], abs=1e-5)
    assert rows["maxl"]["gain"] == pytest.approx([0.02, 0.01 / math.sqrt(3)], abs=1e-5)
    assert rows["maxl"]["gain_over_control"] == pytest.approx([0.01, 0], abs=1e-5)
    assert rows["maxl-apart"]["gain"][0] == pytest.approx(-0.01)
    assert rows["maxl-apart"]["special"] == {"held_out": 0.1}
    assert rows["single"]["gain"] is None


def test_summarize_writes_table_json_and_figure(results, tmp_path, capsys):
    assert summarize.main([str(results), "--out", str(tmp_path / "found")]) == 0
    printed = capsys.readouterr().out
    assert "| MAXL | 3 | 62.00 ± 6.08 % | +2.00 ± 0.58 pp | +1.00 ± 0.00 pp | 1.00 | 80 | 0.50 | 1.0 |" in printed
    assert "| maxl-apart, held_out=0.1 | 1 | 59.00 % | -1.00 pp | -1.00 pp |" in printed
    result = json.loads((tmp_path / "found.json").read_text())
    assert summarize.table(result["summary"]) in printed
    assert result["environments"] == [{"date": "2026-01-01", "device": "one"}]
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_summarize_keeps_dots_in_names(results, tmp_path, capsys):
    assert summarize.main([str(results), "--out", str(tmp_path / "width-0.25")]) == 0
    assert {path.name for path in tmp_path.glob("width*")} == {"width-0.25.json", "width-0.25.png"}


def test_summarize_refuses_runs_of_a_label_that_differ_in_more_than_their_seed(results, capsys):
    (results / "maxl-3.json").write_text(json.dumps(made("maxl", 3, 0.7, lr=0.3)))
    assert summarize.main([str(results)]) == 1
    assert "differ in their seed alone, found lr 0.1 and 0.3 in those of seeds 0 and 3." in capsys.readouterr().err


def test_summarize_names_a_file_that_is_no_result(results, tmp_path, capsys):
    (results / "other.json").write_text("{}")
    assert summarize.main([str(results)]) == 1
    assert "other.json, which is none ('label'). Move it elsewhere." in capsys.readouterr().err
    assert summarize.main([str(tmp_path / "none")]) == 1
    assert "found none in" in capsys.readouterr().err


def test_page_shows_the_table_that_was_measured():
    page = (ROOT / "docs" / "cifar100.md").read_text()
    rows = json.loads((ROOT / "docs" / "cifar100-small.json").read_text())["summary"]
    assert f"<!-- table -->\n{summarize.table(rows)}\n<!-- /table -->" in page
    (row,) = json.loads((ROOT / "docs" / "cifar100-small-released.json").read_text())["summary"]
    assert f"single-task training reaches {summarize.in_hundredths(row['accuracy'], '.2f', '%')} in" in page


@pytest.mark.skipif(shutil.which("timeout") is None, reason="gpu.sh needs GNU timeout")
def test_gpu_script_goes_on_after_what_fails_and_does_not_repeat_what_is_done(folder, tmp_path):
    """With a stand-in for python that notes what it is called with: benchmarks fail, training leaves a result."""
    python, calls, out = tmp_path / "python", tmp_path / "calls", tmp_path / "out"
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$*" >> {calls}\n'
        'case "$*" in *benchmarks.epoch*) exit 3 ;; *cifar100.train*)\n'
        '  mkdir -p "$8" && echo {} > "$8/single-0.json" ;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    script = [ROOT / "examples" / "cifar100" / "gpu.sh", folder, out, "30.5"]
    for _ in range(2):
        done = subprocess.run(list(map(str, script)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "== status 3 of: " in done.stderr
    called = [line for line in calls.read_text().splitlines() if not line.startswith("-c ")]
    modules = [line.split()[1] for line in called]
    train_module, summary_module = "examples.cifar100.train", "examples.cifar100.summarize"
    once = ["pytest", "benchmarks.epoch", "benchmarks.epoch", *[train_module, summary_module] * 2]
    once += ["benchmarks.epoch", "benchmarks.metrics_overhead", "faults.flat", "benchmarks.run"]
    assert modules == once + once[1:]  # the tests are not run again; what failed is
    training = next(line for line in called if train_module in line)
    assert "--sources single human entropy maxl weighted random kmeans --seeds 0 1 2" in training
    assert training.endswith("--time-limit 29")


def test_gpu_script_says_how_it_is_called():
    done = subprocess.run([ROOT / "examples" / "cifar100" / "gpu.sh"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage: examples/cifar100/gpu.sh DATA OUT MINUTES" in done.stderr


def test_page_quotes_the_training_accuracy_that_was_measured():
    page = (ROOT / "docs" / "cifar100.md").read_text()
    runs = json.loads((ROOT / "docs" / "cifar100-small.json").read_text())["runs"]
    found = [100 * one["train_accuracy"] for one in runs if one["label"] == "single"]
    assert f"in the last epoch: {min(found):.1f} to {max(found):.1f} %)" in page
