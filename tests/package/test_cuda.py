"""On a GPU: the same answers as on the CPU, random state left alone, flat memory.

Run: pytest tests/package/test_cuda.py
"""

import copy

import pytest
import torch
from recurrent import Recurrent
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from examples.cifar100.arithmetic import PRECISIONS, matrix_rate
from examples.cifar100.data import Batches, Images
from examples.cifar100.networks import network
from maxl_l2l import MAXL, HumanLabels, Metrics, NonFiniteError, fit, report
from maxl_l2l.passes.buffers import clones, write_buffers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def cnn(dropout=0.3):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(512, 2),
    )


def batch(device, dtype=torch.float64):
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(12, 1, 8, 8, generator=numbers, dtype=dtype)
    return x.to(device), torch.randint(0, 2, (12,), generator=numbers).to(device)


def grads(maxl, x, y, **options):
    maxl.generator.zero_grad()
    torch.manual_seed(7)
    maxl.hypergradient(x, y, **options)
    return torch.cat([parameter.grad.flatten() for parameter in maxl.generator.parameters()]).cpu()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_forward_equals_unrolled_on_the_gpu(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    maxl = MAXL(cnn().to("cuda", dtype), [3, 4])
    optimizer = torch.optim.Adam(maxl.network.parameters(), lr=0.01)
    x, y = batch("cuda", dtype)
    forward = grads(maxl, x, y, optimizer=optimizer)
    unrolled = grads(maxl, x, y, optimizer=optimizer, method="unrolled")
    assert (forward - unrolled).norm() <= tolerance * unrolled.norm()


def test_gpu_equals_cpu():
    maxl = MAXL(cnn(dropout=0.0).double(), [3, 4])
    expected = grads(maxl, *batch("cpu"))
    found = grads(copy.deepcopy(maxl).to("cuda"), *batch("cuda"))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_random_state_of_the_gpu_is_left_alone():
    maxl = MAXL(cnn().double().cuda(), [3, 4])
    before = torch.cuda.get_rng_state()
    maxl.hypergradient(*batch("cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("options", [{}, {"method": "finite-difference"}, {"method": "unrolled"}, {"micro_batches": 2}])
def test_memory_is_flat_over_a_thousand_steps(options):
    maxl = MAXL(cnn().double().cuda(), [3, 4])
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.01, momentum=0.9)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.001)
    x, y = batch("cuda")
    used = []
    for index in range(1000):
        maxl.step(x, y, optimizer, generator_optimizer, **options)
        if not options:
            learner = maxl.clone()
            learner.adapt(learner.loss(x, y))
            del learner
        if index % 100 == 99:
            used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[0]


def test_lstm_of_cudnn_is_differentiated_with_the_same_dropout_mask():
    maxl = MAXL(Recurrent().double().cuda(), [3, 4], entropy_weight=0.0)
    x, y = torch.randn(6, 5, 4).double().cuda(), torch.randint(0, 2, (6,)).cuda()
    forward = grads(maxl, x, y)
    assert torch.backends.cudnn.enabled
    unrolled = grads(maxl, x, y, method="unrolled")
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()


def test_finite_differences_are_near_on_the_gpu():
    maxl = MAXL(cnn().double().cuda(), [3, 4], entropy_weight=0.0)
    exact = grads(maxl, *batch("cuda"))
    assert (grads(maxl, *batch("cuda"), method="finite-difference") - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_trains_on_the_gpu(dtype):
    maxl = MAXL(cnn().cuda(), [3, 4])
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.01, momentum=0.9)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.001)
    scaler = torch.amp.GradScaler("cuda") if dtype == torch.float16 else None
    x, y = batch("cuda", torch.float32)
    before = [parameter.detach().clone() for parameter in maxl.parameters()]
    for _ in range(20):
        with torch.autocast("cuda", dtype):
            result = maxl.step(x, y, optimizer, generator_optimizer, scaler=scaler)
    assert result.primary_loss.isfinite()
    assert not result.skipped
    assert any(not torch.equal(one, other) for one, other in zip(before, maxl.parameters()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_learner_trains_as_the_plain_one_on_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.manual_seed(0)
    plain = MAXL(cnn().double().cuda(), [3, 4])
    compiled = copy.deepcopy(plain)
    compiled.compile()
    states = []
    for maxl in (plain, compiled):
        optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9)
        generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
        torch.manual_seed(1)
        for _ in range(3):
            maxl.step(*batch("cuda"), optimizer, generator_optimizer)
        states.append(maxl.state_dict())
    torch.testing.assert_close(*states, rtol=1e-7, atol=1e-9)


def test_fit_moves_batches_to_the_learners_device(tmp_path):
    x, y = batch("cpu", torch.float32)
    source = HumanLabels(3 * y)
    maxl = MAXL(cnn().cuda(), [3, 4])
    loader = DataLoader(source.label(TensorDataset(x, y), [3, 4]), batch_size=4)
    fit(maxl, loader, 1, source=source, seed=0, progress=False, checkpoint=tmp_path / "run.pt")
    history = fit(maxl, loader, 2, seed=0, progress=False, checkpoint=tmp_path / "run.pt", resume=True)
    assert len(history) == 2


def test_metrics_on_the_gpu_are_those_on_the_cpu(tmp_path):
    torch.manual_seed(0)
    twins = [MAXL(cnn(dropout=0.0), [3, 4]).double()]
    twins.append(copy.deepcopy(twins[0]).cuda())
    x, y = batch("cpu")
    loader = DataLoader(TensorDataset(x, y, torch.arange(12) % 5 - 1), batch_size=4)
    wanted = Metrics(gradient_cosine=2)
    expected, found = (fit(maxl, loader, 2, seed=0, progress=False, metrics=wanted).epochs[-1] for maxl in twins)
    for name in expected.keys() - {"seconds", "steps_per_second"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    page = report(tmp_path, None, twins[1], loader)
    assert "Images of each invented class" in page.read_text(encoding="utf-8")


def test_buffers_are_copied_as_one_by_one():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(5)).cuda()
    for number, buffer in enumerate(module.buffers()):
        buffer.fill_(number)
    copies = clones(dict(module.named_buffers()))
    assert [float(copy.flatten()[0]) for copy in copies.values()] == [0, 1, 2, 3, 4, 5]
    for value in copies.values():
        value.add_(1)
    assert float(module[0].running_mean[0]) == 0
    write_buffers([(module, copies)])
    assert [float(buffer.flatten()[0]) for buffer in module.buffers()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("what", ["parameter", "state", "error"])
@pytest.mark.parametrize("foreach", [False, True])
def test_step_that_an_optimizer_spoils_is_undone_on_the_gpu(what, foreach):
    maxl = MAXL(cnn().cuda(), [3, 4])
    optimizer = torch.optim.Adam(maxl.network.parameters(), lr=0.01, foreach=foreach)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.01, foreach=foreach)
    x, y = batch("cuda", torch.float32)
    maxl.step(x, y, optimizer, generator_optimizer)

    def spoil(one, *_):
        parameter = one.param_groups[0]["params"][0]
        if what == "error":
            raise RuntimeError("the optimizer fails")
        (parameter.data if what == "parameter" else one.state[parameter]["exp_avg"])[0] = float("inf")

    def everything():
        parts = [maxl.state_dict(), optimizer.state_dict(), generator_optimizer.state_dict()]
        return copy.deepcopy([*parts, torch.cuda.get_rng_state()])

    before = everything()
    handle = generator_optimizer.register_step_post_hook(spoil)
    with pytest.raises(RuntimeError if what == "error" else NonFiniteError):
        maxl.step(x, y, optimizer, generator_optimizer)
    torch.testing.assert_close(everything(), before, rtol=0, atol=0)
    handle.remove()
    assert maxl.step(x, y, optimizer, generator_optimizer).primary_loss.isfinite()


def images(number=400):
    numbers = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (number, 32, 32, 3), generator=numbers, dtype=torch.uint8)
    return Images(pixels, torch.arange(number) % 100)


def test_images_are_normalised_on_the_gpu_as_on_the_cpu():
    found = [next(iter(Batches(images(), [torch.arange(400)], 64, torch.device(device)))) for device in ("cpu", "cuda")]
    assert found[1][0].is_cuda
    torch.testing.assert_close(found[1][0].cpu(), found[0][0])
    assert torch.equal(found[1][1].cpu(), found[0][1])


def test_run_stopped_inside_an_epoch_goes_on_to_the_same_result_on_the_gpu(tmp_path, monkeypatch):
    """With images cut on the device by a generator there, as in the CIFAR-100 experiment."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def trained(path, **options):
        torch.manual_seed(0)
        maxl = MAXL(network("vgg16", 20, 0.1), [5] * 20, head="classifier").cuda()
        loader = Batches(images(), [torch.arange(400) % 20], 100, torch.device("cuda"), seed=1)
        history = fit(maxl, loader, 2, schedule="epoch", seed=0, progress=False, checkpoint=path, **options)
        return maxl.state_dict(), [{**record, "seconds": 0} for record in history.epochs]

    whole = trained(tmp_path / "whole.pt")
    for _ in range(20):  # a batch at a time, as the limit is over at once; there are 16
        found = trained(tmp_path / "parts.pt", resume=True, time_limit=1e-9)
    torch.testing.assert_close(found[0], whole[0], rtol=1e-5, atol=1e-7)
    assert len(found[1]) == 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_operations_and_rate_are_measured(precision):
    rate = matrix_rate("cuda", precision, repeats=3)
    assert rate > 1e12
