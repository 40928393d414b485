"""After training there is the user's model and nothing else: the same class and keys, and outputs without maxl_l2l."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import deployed
import lightning as L
import pytest
import torch
from deployed import MODELS, inputs, output
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from maxl_l2l import MAXL, fit
from maxl_l2l.lightning import LightningMAXL

PSI = [2, 3, 2]
Y = torch.tensor([0, 1, 2, 0])
MORE = {
    "resnet18": "pickle",
    "bert": "save_pretrained",
    "backbone": "checkpoint",
    "fit": "checkpoint",
    "lightning": "checkpoint",
}
FILES = [(name, kind) for name in MODELS for kind in ("state_dict", "safetensors", "export")] + list(MORE.items())


def step(maxl, name):
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.05, momentum=0.9)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.01)
    for _ in range(2):
        maxl.step(inputs(name, 4), Y, optimizer, generator_optimizer)


def loader(name):
    return DataLoader(TensorDataset(inputs(name, 4), Y), batch_size=2)


def trained(name, folder):
    """What is to be deployed, after training in its own way."""
    if name == "backbone":
        maxl = MAXL(deployed.backbone(), PSI, num_features=512)
        fit(maxl, loader(name), epochs=2, seed=0, checkpoint=folder / f"{name}.run", progress=False)
        return nn.Sequential(maxl.module, maxl.network.primary_head)
    maxl = MAXL(MODELS[name](), PSI)
    if name == "fit":
        fit(maxl, loader(name), epochs=2, seed=0, checkpoint=folder / f"{name}.run", progress=False)
    elif name == "lightning":
        module = LightningMAXL(maxl)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on workers and validation
            trainer.fit(module, loader(name))
        trainer.save_checkpoint(folder / "lightning.ckpt")
    else:
        if name == "compiled":
            maxl.compile(backend="eager")  # traced as by the default, but not built for a quarter of a minute
        step(maxl, name)
    return maxl.module


def export(model, name, path):
    x, batch = inputs(name, 4), torch.export.Dim("batch")
    if isinstance(x, dict):
        program = torch.export.export(model, (), x, dynamic_shapes={key: {0: batch} for key in x})
    else:
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The trained models, and the folder with all that was saved of them."""
    folder = tmp_path_factory.mktemp("deployed")
    torch.manual_seed(0)
    found = {name: trained(name, folder) for name in MODELS}
    for name, model in found.items():
        model.eval()
        torch.save(model.state_dict(), folder / f"{name}.pt")
        save_file(model.state_dict(), folder / f"{name}.safetensors")
        export(model, name, folder / f"{name}.pt2")
    torch.save(found["resnet18"], folder / "pickled.pt")
    copy.deepcopy(found["bert"]).save_pretrained(folder / "pretrained")  # which notes things in the model's config
    return found, folder


@pytest.fixture(scope="module")
def outputs(models):
    """What the saved models give in a fresh process that has no maxl_l2l."""
    _, folder = models
    command = [sys.executable, "-I", Path(deployed.__file__), folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "outputs.pt")


def structure(model):
    """All that a model holds but for the values of its tensors."""
    return {
        name: {
            key: list(value) if key in ("_parameters", "_buffers", "_modules") else value for key, value in own.items()
        }
        for name, own in ((name, vars(module)) for name, module in model.named_modules())
    }


@pytest.mark.parametrize("name", MODELS)
def test_class_and_keys_are_those_of_an_untrained_model(models, name):
    model, fresh = models[0][name], MODELS[name]()
    assert type(model) is type(fresh)
    state, expected = model.state_dict(), fresh.state_dict()
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()
    }
    assert list(state) == list(expected)
    assert [key for key, value in state.items() if vars(value)] == []


@pytest.mark.parametrize("name", MODELS)
def test_no_hook_attribute_or_buffer_is_left_on_the_model(models, name):
    model, fresh = models[0][name], MODELS[name]().eval()
    assert structure(model) == structure(fresh)
    for module in model.modules():
        assert [key for key, value in vars(module).items() if "_hooks" in key and value] == []
    tensors, expected = ([*one.parameters(), *one.buffers()] for one in (model, fresh))
    for tensor, other in zip(tensors, expected):
        # torch.compile marks the parameters of every model; no state_dict has the mark.
        assert [key for key in vars(tensor) if not key.startswith("_dynamo_")] == list(vars(other))
        assert not tensor._backward_hooks
        assert not getattr(tensor, "_post_accumulate_grad_hooks", None)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_hook_or_attribute_would_leave_is_seen(name):
    for spoil in (
        lambda layer: layer.register_forward_hook(print),
        lambda layer: layer.register_buffer("seen", torch.zeros(1)),
        lambda layer: setattr(layer, "seen", True),
    ):
        model = MODELS[name]()
        spoil(list(model.modules())[-1])
        assert structure(model) != structure(MODELS[name]())


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_loaded_model_gives_the_trained_ones_outputs_bit_for_bit(models, outputs, name, kind):
    found, expected = outputs[name][kind], output(models[0][name], inputs(name, 6))
    assert torch.equal(found, expected)
    assert not torch.equal(found, output(MODELS[name]().eval(), inputs(name, 6)))  # an untrained one's are others


def test_every_file_that_was_loaded_is_compared(outputs):
    assert sorted(FILES) == sorted((name, kind) for name, found in outputs.items() for kind in found)


def test_model_that_is_pickled_whole_does_not_name_the_package(models):
    assert b"maxl_l2l" not in (models[1] / "pickled.pt").read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_inference_takes_what_the_model_takes_by_itself(models, name):
    model, fresh = models[0][name], MODELS[name]().eval()
    sizes, operations = [], []
    for one in (model, fresh):
        sizes.append(sum(parameter.numel() for parameter in one.parameters()))
        with FlopCounterMode(display=False) as counter:
            output(one, inputs(name, 4))
        operations.append(counter.get_total_flops())
    assert sizes[0] == sizes[1]
    assert operations[0] == operations[1] > 0
