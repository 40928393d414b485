"""Lightning's own Trainer trains, evaluates, saves and resumes a learner, and computes what `step` and `fit` do."""

import csv
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from benchmarks import lightning_overhead, overhead
from maxl_l2l import (
    MAXL,
    EntropyLabels,
    GeneratedLabels,
    HumanLabels,
    Metrics,
    NonFiniteError,
    RandomLabels,
    SingleTask,
    evaluate,
    fit,
)
from maxl_l2l.hypergradient.micro_batches import joined, split
from maxl_l2l.lightning import LightningMAXL
from maxl_l2l.training.loggers import scalars

ROOT = Path(__file__).parents[2]
PSI = [2, 3, 2]
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)
QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
pytestmark = [
    # Lightning's advice on loaders, and its use of what torch has renamed.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def classifier(*layers):
    return nn.Sequential(nn.Linear(8, 16), *layers, nn.Tanh(), nn.Linear(16, 3))


def learner(*layers, psi=PSI):
    torch.manual_seed(1)
    return MAXL(classifier(*layers), psi)


def dataset(size=50, seed=2):
    numbers = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (size,), generator=numbers)
    return TensorDataset(torch.randn(size, 8, generator=numbers) + y[:, None], y)


def doubled(data):
    x, y = data.tensors
    return TensorDataset(x.double(), y)


def loader(batch_size=10, data=None, **options):
    return DataLoader(dataset() if data is None else data, batch_size=batch_size, **options)


def trainer(**options):
    return L.Trainer(**QUIET | options)


def fitted(maxl, *loaders, epochs=1, trainer_options=None, **options):
    module = LightningMAXL(maxl, SGD, ADAM, **options)
    trainer(max_epochs=epochs, **trainer_options or {}).fit(module, *loaders or [loader()])
    return module


def optimizers(maxl):
    return SGD(maxl.network.parameters()), ADAM(maxl.generator.parameters())


def stepped(maxl, batches, **options):
    """A plain loop of steps over batches, each of one epoch."""
    pair = optimizers(maxl)
    return maxl, [maxl.step(*batch, *pair, **options) for batch in batches]


def same(found, expected, atol=0.0):
    for one, other in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def test_trainer_does_what_a_loop_of_steps_does():
    module = fitted(learner(nn.BatchNorm1d(16)))
    expected, _ = stepped(learner(nn.BatchNorm1d(16)), loader())
    same(module.maxl, expected)


def test_metrics_are_the_history_of_fit():
    maxl = learner()
    history = fit(
        maxl,
        loader(16),
        2,
        optimizer=SGD(maxl.network.parameters()),
        generator_optimizer=ADAM(maxl.generator.parameters()),
        test_loader=loader(30),
        progress=False,
    )
    module = fitted(learner(), loader(16), loader(30), epochs=2)
    found, last = module.trainer.callback_metrics, history.epochs[-1]
    names = ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "hypergradient_norm", "accuracy")
    assert set(found) == {*names, "loss", "val_loss", "val_accuracy"}
    assert [float(found[name]) for name in names] == pytest.approx([last[name] for name in names], rel=1e-5)
    evaluated = [float(found[f"val_{name}"]) for name in ("loss", "accuracy")]
    assert evaluated == pytest.approx([last["test_loss"], last["test_accuracy"]], rel=1e-5)


def with_given_labels(data):
    return TensorDataset(*data.tensors, torch.randint(0, 5, (len(data),), generator=torch.Generator().manual_seed(3)))


def test_metrics_of_labels_are_those_of_fit_too():
    wanted, maxl = Metrics(gradient_cosine=2), learner()
    data = loader(16, with_given_labels(dataset()))
    pair = dict(zip(("optimizer", "generator_optimizer"), optimizers(maxl)))
    history = fit(maxl, data, 2, **pair, progress=False, metrics=wanted)
    module = fitted(learner(), data, epochs=2, metrics=wanted)
    expected = scalars(history.epochs[-1])
    for name in ("epoch", "lr", "seconds", "steps_per_second"):
        expected.pop(name)
    found = {name: float(value) for name, value in module.trainer.callback_metrics.items() if name != "loss"}
    assert found == pytest.approx(expected, rel=1e-5)
    assert {"gradient_cosine", "nmi_within", "purity", "sub_classes_per_class/2"} < set(found)


def test_labels_given_with_fixed_ones_are_compared_with_these():
    data = HumanLabels(dataset().tensors[1] * 2).label(with_given_labels(dataset()), [2, 2, 2])
    maxl = learner(psi=[2, 2, 2])
    module = fitted(maxl, loader(data=data), source=RandomLabels(0), metrics=Metrics(patience=1))
    assert 0 < module.trainer.callback_metrics["nmi"] < 1


def test_labels_that_stay_uniform_are_warned_of():
    maxl = learner()
    torch.nn.init.zeros_(maxl.generator.body[-1].weight)
    torch.nn.init.zeros_(maxl.generator.body[-1].bias)
    module = LightningMAXL(maxl, SGD, partial(torch.optim.SGD, lr=0.0), metrics=Metrics(patience=2))
    with pytest.warns(RuntimeWarning, match="labels have stayed uniform for 2 epochs") as found:
        trainer(max_epochs=3).fit(module, loader())
    assert sum("uniform" in str(one.message) for one in found) == 1


def test_several_batches_make_one_step_and_so_does_the_rest_of_an_epoch():
    data = doubled(dataset())
    module = fitted(learner().double(), loader(6, data=data), accumulate=3, epochs=2)
    expected, results = stepped(learner().double(), [*loader(18, data=data)] * 2)
    same(module.maxl, expected, atol=1e-12)
    assert module.trainer.global_step == 2 * len(results) == 12
    means = [sum(len(r.outputs) * float(r.primary_loss) for r in results[3:]) / 50]
    assert [float(module.trainer.callback_metrics["primary_loss"])] == pytest.approx(means, rel=1e-6)


def test_batches_left_over_by_an_interrupted_epoch_are_not_used_later():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            trainer.should_stop = batch_idx == 1

    module = fitted(learner(), accumulate=4, trainer_options={"callbacks": [Stop()]})
    same(module.maxl, learner())
    trainer(limit_train_batches=1).fit(module, loader())
    same(module.maxl, stepped(learner(), [next(iter(loader()))])[0])


def test_mappings_are_joined_as_they_were_split():
    x = {"ids": torch.arange(12).view(6, 2), "scale": torch.tensor(2.0), "task": "text"}
    y = torch.arange(6)
    parts = split((x, y), 3)
    found, labels = joined(parts)
    assert torch.equal(labels, y)
    assert torch.equal(found["ids"], x["ids"])
    assert (found["scale"], found["task"]) == (x["scale"], "text")
    assert joined(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    ("x", "other", "error", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), ValueError, r"samples have one shape, found \[3\] and \[4\]. Pad them"),
        (["a", "b"], ["c", "d"], TypeError, r"`accumulate` needs batches that can be joined, .* found list"),
        ({"task": "one"}, {"task": "another"}, TypeError, "found str. Use accumulate=1"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, TypeError, "found dict"),
        (torch.ones(2, 3), torch.ones(3, 3), TypeError, "a row for each sample"),
    ],
)
def test_what_cannot_be_joined_raises(x, other, error, message):
    with pytest.raises(error, match=message):
        joined([(x, torch.zeros(2)), (other, torch.zeros(2))])


def test_options_reach_the_step():
    batches = list(loader())
    options = {"max_grad_norm": 0.1, "method": "finite-difference", "epsilon": 1e-2}
    module = fitted(learner(), **options)
    same(module.maxl, stepped(learner(), batches, **options)[0])
    with pytest.raises(AssertionError):
        same(module.maxl, stepped(learner(), batches, **options | {"epsilon": 1.0})[0])


def test_generator_is_trained_at_every_second_step_of_each_epoch():
    module = fitted(learner(), epochs=2, meta_every=2)
    maxl = learner()
    pair = optimizers(maxl)
    for _ in range(2):
        for number, batch in enumerate(loader()):
            if number % 2:
                maxl.network_step(*batch, pair[0])
            else:
                maxl.step(*batch, *pair)
    same(module.maxl, maxl)
    assert module.trainer.global_step == 16


def test_steps_are_counted_and_not_batches():
    class Own(LightningMAXL):
        def configure_optimizers(self):
            pair = optimizers(self.maxl)
            return list(pair), [{"scheduler": StepLR(pair[0], 1, 0.5), "interval": "step", "frequency": 2}]

    found = rates(module=Own(learner(), accumulate=2, meta_every=2), loaders=[loader(5)], epochs=1)
    assert [network for network, _ in found] == [0.1] * 4 + [0.05] * 4 + [0.025] * 2
    assert fitted(learner(), loader(5), accumulate=2, meta_every=2).trainer.global_step == 5 + 3


def test_meta_batches_come_from_a_loader_of_their_own():
    meta = dataset(70, seed=3)
    module = fitted(learner(), {"train": loader(), "meta": loader(14, meta)})
    maxl = learner()
    pair = optimizers(maxl)
    for batch, meta_batch in zip(loader(), loader(14, meta)):
        maxl.step(*batch, *pair, meta_batch=meta_batch)
    same(module.maxl, maxl)


def test_meta_batches_are_joined_too():
    both = {"train": loader(5), "meta": loader(5)}
    module = fitted(learner(), both, accumulate=2)
    same(module.maxl, stepped(learner(), loader())[0], atol=1e-6)


@pytest.mark.parametrize("source", [SingleTask(), RandomLabels(seed=3), EntropyLabels(), GeneratedLabels("unrolled")])
def test_label_sources_train_as_in_fit(source):
    data = source.label(dataset(), PSI)
    maxl = learner()
    pair = optimizers(maxl)
    fit(maxl, loader(data=data), 1, optimizer=pair[0], generator_optimizer=pair[1], source=source, progress=False)
    module = fitted(learner(), loader(data=data), source=source)
    same(module.maxl, maxl)
    assert module.trainer.global_step == 5 * len(module.trainer.optimizers) == (10 if source.trains_generator else 5)


def test_default_optimizers_are_the_papers():
    found, generators = (one["optimizer"] for one in LightningMAXL(learner()).configure_optimizers())
    assert found.defaults["lr"] == 0.01
    assert (generators.defaults["lr"], generators.defaults["weight_decay"]) == (1e-3, 5e-4)


class Rates(Callback):
    """Keeps the learning rates that each batch is trained with."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(tuple(round(one.param_groups[0]["lr"], 6) for one in trainer.optimizers))


def rates(maxl=None, module=None, epochs=2, loaders=None, **options):
    seen = Rates()
    module = module or LightningMAXL(maxl or learner(), SGD, ADAM, **options)
    trainer(max_epochs=epochs, callbacks=[seen], num_sanity_val_steps=0).fit(module, *loaders or [loader(25)])
    return seen.seen


def test_schedulers_are_stepped_after_each_epoch():
    found = rates(scheduler=partial(StepLR, step_size=1, gamma=0.5), generator_scheduler=partial(StepLR, step_size=2))
    assert found == [(0.1, 0.01)] * 2 + [(0.05, 0.01)] * 2


def test_schedulers_are_stepped_after_each_step_if_asked():
    found = rates(scheduler=partial(StepLR, step_size=1, gamma=0.5), interval="step")
    assert [network for network, _ in found] == [0.1, 0.05, 0.025, 0.0125]


def test_intervals_and_frequencies_of_an_own_configure_optimizers_hold():
    class Own(LightningMAXL):
        def configure_optimizers(self):
            pair = optimizers(self.maxl)
            often = {"scheduler": StepLR(pair[0], 1, 0.5), "interval": "step", "frequency": 3}
            rare = {"scheduler": StepLR(pair[1], 1, 0.5), "frequency": 2}
            return list(pair), [often, rare]

    found = rates(module=Own(learner()), loaders=[loader(10)], epochs=3)
    networks = [0.1] * 3 + [0.05] * 2
    assert [network for network, _ in found[:5]] == networks
    assert [network for network, _ in found[5:10]] == [0.5 * rate for rate in networks]
    assert [generator for _, generator in found] == [0.01] * 10 + [0.005] * 5


@pytest.mark.parametrize("monitor", ["val_loss", "primary_loss"])
def test_plateau_scheduler_sees_the_metric_of_its_epoch(monitor):
    seen = []

    class Watched(ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(float(metrics))
            super().step(metrics, epoch)

    found = rates(
        epochs=3,
        loaders=[loader(25), loader(50)],
        scheduler=lambda optimizer: Watched(optimizer, mode="max", factor=0.5, patience=0),
        monitor=monitor,
    )
    assert [network for network, _ in found] == [0.1] * 4 + [0.05] * 2
    maxl = learner()
    pair = optimizers(maxl)
    options = {"optimizer": pair[0], "generator_optimizer": pair[1], "progress": False}
    history = fit(maxl, loader(25), 2, test_loader=loader(50), **options).epochs
    name = {"val_loss": "test_loss"}.get(monitor, monitor)
    assert seen[:2] == pytest.approx([record[name] for record in history], rel=1e-5)


def test_plateau_scheduler_without_its_metric_raises():
    with pytest.raises(ValueError, match=r"`monitor` must be a metric .* found 'val_loss'; logged are .*accuracy"):
        rates(scheduler=ReduceLROnPlateau)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 1.0}, r"`gradient_clip_val` must be left out .* found 1.0.*max_grad_norm=1.0\)"),
        ({"accumulate_grad_batches": 4}, r"`accumulate_grad_batches` must .* found 4.*accumulate=4\)"),
        ({"strategy": ModelParallelStrategy()}, r"`strategy` must leave .* ModelParallelStrategy. Write .*'ddp'"),
    ],
)
def test_settings_of_the_trainer_that_do_not_reach_the_learner_raise(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options).fit(LightningMAXL(learner()), loader())


def test_settings_that_only_training_refuses_do_not_keep_from_testing():
    trainer(gradient_clip_val=1.0).test(LightningMAXL(learner()), loader(), verbose=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"maxl": classifier()},
            TypeError,
            r"`maxl` must be an instance of AuxiliaryLabelGenerator, found Seq",
        ),
        ({"interval": "batch"}, ValueError, "`interval` must be one of 'epoch', 'step', found 'batch'"),
        ({"meta_every": 0}, ValueError, "`meta_every` must be at least 1"),
        ({"accumulate": 0}, ValueError, "`accumulate` must be at least 1"),
        ({"source": SingleTask}, TypeError, "`source` must be an instance of LabelSource"),
        ({"source": SingleTask(), "method": "unrolled"}, ValueError, "`method` must be left out .* found 'unrolled'"),
    ],
)
def test_wrong_argument_raises(arguments, error, message):
    with pytest.raises(error, match=message):
        LightningMAXL(**{"maxl": learner()} | arguments)


def test_missing_optimizer_raises():
    class Own(LightningMAXL):
        def configure_optimizers(self):
            return SGD(self.maxl.network.parameters())

    with pytest.raises(ValueError, match=r"`configure_optimizers` must return 2 optimizers, .* found 1. Return them"):
        trainer().fit(Own(learner()), loader())


def test_dictionary_of_a_model_s_inputs_is_refused_as_a_batch():
    items = [{"input_ids": torch.ones(8), "labels": 0}] * 4
    with pytest.raises(TypeError, match=r"under 'train' and 'meta', found .*'input_ids', 'labels'. Let collate_fn"):
        trainer().fit(LightningMAXL(learner()), DataLoader(items))


def test_double_precision_is_that_of_a_double_learner():
    module = fitted(learner(), trainer_options={"precision": "64-true"})
    expected, _ = stepped(learner().double(), loader(data=doubled(dataset())))
    assert next(module.maxl.parameters()).dtype == torch.float64
    same(module.maxl, expected)


def test_bfloat16_autocast_is_that_of_a_loop_within_it():
    module = fitted(learner(), trainer_options={"precision": "bf16-mixed"})
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected, _ = stepped(learner(), loader())
    same(module.maxl, expected)


def test_bfloat16_parameters_are_trained():
    module = fitted(learner(), trainer_options={"precision": "bf16-true"})
    assert next(module.maxl.parameters()).dtype == torch.bfloat16
    for part in (module.maxl.network, module.maxl.generator):
        assert all(p.isfinite().all() for p in part.parameters())
    with pytest.raises(AssertionError):
        same(module.maxl, learner().bfloat16())


def half(scaler):
    """Float16 autocast on the CPU; Trainer(precision="16-mixed") is that on a GPU."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def scaled(maxl, batches, scaler):
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        return stepped(maxl, batches, scaler=scaler)


def test_float16_steps_through_the_plugin_s_scaler():
    expected, _ = scaled(learner(), loader(), torch.amp.GradScaler("cpu", init_scale=2.0**10))
    module = fitted(learner(), trainer_options=half(torch.amp.GradScaler("cpu", init_scale=2.0**10)))
    same(module.maxl, expected)
    assert float(module.trainer.callback_metrics["skipped"]) == 0


def test_scale_that_grows_between_the_two_steps_divides_out():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**5, growth_interval=1)
    module = fitted(learner(), loader(data=dataset(10)), trainer_options=half(scaler))
    assert scaler.get_scale() == 2.0**7
    expected, _ = scaled(learner(), loader(data=dataset(10)), torch.amp.GradScaler("cpu", init_scale=2.0**5))
    same(module.maxl, expected)


def test_meta_every_steps_through_the_scaler_too():
    module = fitted(learner(), meta_every=2, trainer_options=half(torch.amp.GradScaler("cpu", init_scale=2.0**10)))
    maxl = learner()
    pair, scaler = optimizers(maxl), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        for number, batch in enumerate(loader()):
            if number % 2:
                maxl.network_step(*batch, pair[0], scaler=scaler)
            else:
                maxl.step(*batch, *pair, scaler=scaler)
    same(module.maxl, maxl)


def test_overflow_is_counted_and_its_step_skipped():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-30)
    module = fitted(learner(), trainer_options=half(scaler))
    assert float(module.trainer.callback_metrics["skipped"]) == 1
    before = learner()
    assert not torch.equal(module.maxl.module[0].weight, before.module[0].weight)
    only = fitted(
        learner(),
        loader(data=dataset(10)),
        trainer_options=half(torch.amp.GradScaler("cpu", init_scale=2.0**40)),
    )
    same(only.maxl.network, before.network)


def test_non_finite_loss_raises_ours_and_leaves_the_parameters():
    data = dataset(20)
    data.tensors[0][15] = math.nan
    module = LightningMAXL(learner(), SGD, ADAM)
    with pytest.raises(NonFiniteError, match="the primary loss is nan"):
        trainer().fit(module, loader(data=data))
    same(module.maxl, stepped(learner(), list(loader(data=data))[:1])[0])


@pytest.mark.filterwarnings("ignore:Found 1 module")
def test_modes_are_those_that_lightning_sets():
    seen = {}

    class Modes(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen["training"] = [part.training for part in module.maxl.module[:3]]

        def on_validation_batch_start(self, trainer, module, batch, batch_idx):
            seen["validation"] = [part.training for part in module.maxl.module[:3]]

    maxl = learner(nn.BatchNorm1d(16))
    maxl.module[1].eval()
    trainer(callbacks=[Modes()], max_epochs=2).fit(LightningMAXL(maxl), loader(), loader())
    assert seen == {"training": [True, False, True], "validation": [False, False, False]}
    assert int(maxl.module[1].num_batches_tracked) == 0


def test_evaluation_and_prediction_are_the_model_s_own():
    maxl = learner()
    module = LightningMAXL(maxl)
    data = loader(30)
    expected = evaluate(maxl, data)
    for stage, run in (("val", trainer().validate), ("test", trainer().test)):
        (found,) = run(module, data, verbose=False)
        assert found == {f"{stage}_{name}": pytest.approx(value) for name, value in expected.items()}
    outputs = torch.cat(trainer().predict(module, data))
    torch.testing.assert_close(outputs, maxl(dataset().tensors[0]))
    alone = trainer().predict(module, DataLoader(dataset().tensors[0], batch_size=50))
    torch.testing.assert_close(alone[0], outputs)


def test_fast_dev_run_passes_all_stages():
    module = LightningMAXL(learner(), accumulate=4)
    trainer(fast_dev_run=True).fit(module, loader(), loader())
    assert module.trainer.global_step == 2


def test_hooks_and_callbacks_see_both_optimizers_steps():
    seen = []

    class Steps(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen.append((type(optimizer), all(p.grad is not None for p in optimizer.param_groups[0]["params"])))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append(outputs["targets"].shape)

    fitted(learner(), loader(data=dataset(10)), trainer_options={"callbacks": [Steps()]})
    assert seen == [(torch.optim.SGD, True), (torch.optim.Adam, True), (10, sum(PSI))]


def test_max_steps_counts_each_optimizer_s_step():
    module = fitted(learner(), trainer_options={"max_steps": 4})
    same(module.maxl, stepped(learner(), list(loader())[:2])[0])


def test_loggers_and_monitoring_callbacks_find_the_metrics(tmp_path):
    best = ModelCheckpoint(tmp_path / "best", monitor="val_accuracy", mode="max")
    stop = EarlyStopping(monitor="val_loss", patience=0, mode="max")
    callbacks = [best, stop, LearningRateMonitor()]
    options = {"logger": CSVLogger(tmp_path), "callbacks": callbacks, "enable_checkpointing": True}
    module = fitted(
        learner(),
        loader(),
        loader(50),
        epochs=9,
        scheduler=partial(StepLR, step_size=1),
        trainer_options=options | {"log_every_n_steps": 5},
    )
    assert stop.stopped_epoch == 1
    assert best.best_model_score >= module.trainer.callback_metrics["val_accuracy"]
    with (Path(module.logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name for row in rows for name, value in row.items() if value}
    names = {"primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "accuracy", "loss"}
    assert names | {"val_loss", "val_accuracy", "lr-SGD", "lr-Adam"} <= logged


def regularized():
    """A learner whose training draws random numbers and has statistics."""
    return learner(nn.BatchNorm1d(16), nn.Dropout(0.3))


RUNS = {
    "at the end of an epoch": {},
    "after validation at its end": {"validated": True},
    "by validation": {"validated": True, "save_on_train_epoch_end": False},
    "with worker processes": {"num_workers": 1},
    "with steps of several batches": {"accumulate": 2},
    "with a distance that its first step has found": {"method": "finite-difference"},
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("case", RUNS.values(), ids=RUNS)
def test_resumed_run_ends_as_an_uninterrupted_one(case, tmp_path):
    case = dict(case)
    validated, when = case.pop("validated", False), case.pop("save_on_train_epoch_end", None)
    workers = case.pop("num_workers", 0)

    def run(name, epochs, ckpt_path=None):
        plateau = partial(ReduceLROnPlateau, factor=0.7, patience=0, mode="max")
        schedulers = {"scheduler": partial(StepLR, step_size=1, gamma=0.9), "generator_scheduler": plateau}
        module = LightningMAXL(
            regularized(), SGD, ADAM, **schedulers, monitor="val_loss" if validated else "accuracy", **case
        )
        saving = ModelCheckpoint(tmp_path / name, save_last=True, save_on_train_epoch_end=when)
        loaders = [loader(shuffle=True, num_workers=workers)] + [loader(25)] * validated
        run = trainer(max_epochs=epochs, callbacks=[saving], enable_checkpointing=True)
        torch.manual_seed(5 if ckpt_path is None else 6)
        run.fit(module, *loaders, ckpt_path=ckpt_path)
        return module, run

    whole, run_whole = run("whole", 4)
    run("first", 2)
    second, run_second = run("second", 4, tmp_path / "first" / "last.ckpt")
    same(second.maxl, whole.maxl)
    for found, expected in zip(run_second.optimizers, run_whole.optimizers, strict=True):
        states = zip(found.state_dict()["state"].values(), expected.state_dict()["state"].values(), strict=True)
        for one, other in states:
            assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in other)
        assert found.param_groups[0]["lr"] == expected.param_groups[0]["lr"]
    for found, expected in zip(run_second.lr_scheduler_configs, run_whole.lr_scheduler_configs, strict=True):
        assert found.scheduler.state_dict() == expected.scheduler.state_dict()
    assert (run_second.global_step, run_second.current_epoch) == (run_whole.global_step, 4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint and the learner that it was saved of."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "one.ckpt"
    module = fitted(regularized(), meta_every=3, monitor="val_accuracy")
    module.trainer.save_checkpoint(path)
    return path, module.maxl


def test_checkpoint_holds_the_model_under_its_own_keys(checkpoint):
    path, maxl = checkpoint
    saved = torch.load(path, weights_only=True)["state_dict"]
    prefix = "maxl.network.module."
    found = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
    model = classifier(nn.BatchNorm1d(16), nn.Dropout(0.3))
    model.load_state_dict(found)
    same(model, maxl.module)


def test_load_from_checkpoint_takes_a_learner(checkpoint):
    path, maxl = checkpoint
    module = LightningMAXL.load_from_checkpoint(path, maxl=MAXL(classifier(nn.BatchNorm1d(16), nn.Dropout(0.3)), PSI))
    same(module.maxl, maxl)
    assert (module.meta_every, module.monitor) == (3, "val_accuracy")


def test_random_state_of_a_checkpoint_is_not_put_back_for_a_new_run(checkpoint):
    path, _ = checkpoint

    def drawn(module):
        torch.manual_seed(7)
        trainer().test(module, loader(), ckpt_path=path, verbose=False)
        trainer(max_epochs=0).fit(module, loader())
        return torch.rand(3)

    loaded = LightningMAXL.load_from_checkpoint(path, maxl=regularized())
    fresh = LightningMAXL(regularized())
    fresh.on_load_checkpoint = lambda checkpoint: None
    assert torch.equal(drawn(loaded), drawn(fresh))


def trained(rank, folder, layers, epochs, ckpt_path=None):
    """What is learned and logged by one of two processes, or by one with batches twice as large if rank is None."""
    module = LightningMAXL(learner(*layers).double(), SGD, ADAM, accumulate=2, max_grad_norm=1.0)
    torch.manual_seed((ckpt_path is not None) * 10 + (rank or 0))
    data, batch_size, options, sampler = doubled(dataset(48)), 12, {}, None
    if rank is None:
        sampler = DistributedSampler(data, 1, 0)  # in the order of two processes' samplers
    else:
        os.environ |= {"LOCAL_RANK": f"{rank}", "NODE_RANK": "0", "WORLD_SIZE": "2"}
        batch_size, options = 6, {"strategy": "ddp", "devices": 2}
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    found = trainer(max_epochs=epochs, callbacks=[saving], enable_checkpointing=True, **options)
    loaders = loader(batch_size, data, sampler=sampler), loader(batch_size, doubled(dataset(30)))
    found.fit(module, *loaders, ckpt_path=ckpt_path)
    states = {name: value.numpy() for name, value in module.maxl.state_dict().items()}
    return states, {name: float(value) for name, value in found.callback_metrics.items()}, float(torch.rand(()))


def test_two_processes_are_one_with_batches_twice_as_large(pool, tmp_path):
    expected, metrics, _ = trained(None, tmp_path / "one", [], 2)
    for states, found, _ in pool.run(trained, tmp_path / "two", [], 2):
        assert found == pytest.approx(metrics, rel=1e-6)
        for name, value in states.items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-10)


def test_two_processes_resume_exactly(pool, tmp_path):
    layers = [nn.BatchNorm1d(16), nn.Dropout(0.3)]
    whole = pool.run(trained, tmp_path / "whole", layers, 4)
    resumed = pool.run(trained, tmp_path / "resumed", layers, 4, tmp_path / "whole" / "epoch=1.ckpt")
    for (states, *found), (expected, *others) in zip(resumed, whole, strict=True):
        assert found == others
        assert all(np.array_equal(value, expected[name]) for name, value in states.items())


def test_without_lightning_the_import_names_the_extra():
    program = "import sys; sys.modules['lightning'] = None; import maxl_l2l.lightning"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "ImportError: LightningMAXL needs lightning, which is not installed." in done.stderr
    assert "pip install 'maxl_l2l[lightning]'" in done.stderr


def test_example_prints_accuracy_without_and_with_labels(tmp_path):
    command = [sys.executable, ROOT / "examples" / "lightning_digits.py", "--seeds", "1", "--epochs", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--out", tmp_path], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["seed", "0", "mean"]
    assert all(re.fullmatch(r" *\w+ +\d+\.\d\d% +\d+\.\d\d%.*", line) for line in done.stdout.splitlines()[1:])
    assert len(list(tmp_path.glob("*/*.ckpt"))) == 2


def test_overhead_is_measured():
    found = lightning_overhead.measure("mlp", batch=4, iterations=2, repeats=2)
    assert [row["entrant"] for row in found["rows"]] == ["plain", "fit", "lightning", "lightning-shown"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in found["seconds"].values())
    assert found["rows"][0]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert overhead.table(found["rows"]).count("\n") == 5
