"""Masked softmax, focal loss and entropy regulariser: hand values, laws, derivatives and errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from maxl_l2l import Hierarchy, entropy_loss, focal_loss, masked_softmax
from maxl_l2l.labels.losses import focal_loss_per_sample

PSI = [2, 1, 3]
GAMMAS = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


def random_logits(*shape, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def random_labels(*shape, num_classes=3):
    return torch.randint(num_classes, shape, generator=torch.Generator().manual_seed(1))


def one_hot(labels, num_classes):
    return F.one_hot(labels, num_classes).movedim(-1, 1).double()


def test_masked_softmax_of_hand_worked_logits():
    logits = torch.tensor([[0.0, math.log(3.0), 9.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 0.0, 0.0, math.log(2.0)]])
    expected = torch.tensor([[0.25, 0.75, 0, 0, 0, 0], [0, 0, 0, 0.25, 0.25, 0.5]])
    torch.testing.assert_close(masked_softmax(logits, torch.tensor([0, 2]), PSI), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1.0, 30.0, 100.0, 1e4])
def test_masked_softmax_stays_in_the_block_and_sums_to_one(scale):
    logits = random_logits(300, 6, dtype=torch.float32).clamp(-1, 1) * scale
    y = random_labels(300)
    probs = masked_softmax(logits, y, PSI)
    assert (probs[~Hierarchy(PSI).mask(y)] == 0).all()
    assert (probs >= 0).all()  # NaN is not
    assert (probs.sum(dim=1) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("gap", [19.0, 25.0, 90.0, 2e4])
def test_large_logits_outside_the_block_do_not_leak(gap):
    logits = torch.tensor([[0.0, 0.0, gap, gap, gap, gap]])
    assert masked_softmax(logits, torch.tensor([0]), PSI).tolist() == [[0.5, 0.5, 0, 0, 0, 0]]


def test_masked_softmax_equals_softmax_of_the_block_alone():
    logits, y = random_logits(20, 6), random_labels(20)
    probs = masked_softmax(logits, y, PSI)
    for row, primary in enumerate(y.tolist()):
        block = list(Hierarchy(PSI).block(primary))
        # Same operation on the same numbers in double precision: only the order of the sum may differ.
        torch.testing.assert_close(probs[row, block], logits[row, block].softmax(0), rtol=1e-14, atol=0)


def test_block_of_one_class_is_certain_and_has_no_gradient():
    logits = (1e4 * random_logits(5, 6)).requires_grad_()
    probs = masked_softmax(logits, torch.ones(5, dtype=torch.long), PSI)
    assert torch.equal(probs, one_hot(torch.full((5,), 2), 6))
    (grad,) = torch.autograd.grad(-(probs * random_logits(5, 6)).sum(), logits)
    assert (grad == 0).all()


def test_masked_softmax_has_the_right_first_and_second_derivatives():
    logits, y = random_logits(4, 6).requires_grad_(), torch.tensor([0, 1, 2, 2])
    assert gradcheck(lambda z: masked_softmax(z, y, PSI), logits)
    assert gradgradcheck(lambda z: masked_softmax(z, y, PSI), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masked_softmax_of_half_precision_is_float32(dtype):
    logits = random_logits(30, 6).to(dtype)
    y = random_labels(30)
    probs = masked_softmax(logits, y, PSI)
    assert probs.dtype == torch.float32
    assert torch.equal(probs, masked_softmax(logits.float(), y, PSI))
    assert masked_softmax(logits.double(), y, PSI).dtype == torch.float64


def test_dense_masked_softmax_equals_the_softmax_of_each_pixel():
    logits, y = random_logits(2, 6, 3, 4), random_labels(2, 3, 4)
    dense = masked_softmax(logits, y, PSI)
    pixels = masked_softmax(logits.movedim(1, -1).reshape(-1, 6), y.reshape(-1), PSI)
    torch.testing.assert_close(dense.movedim(1, -1).reshape(-1, 6), pixels, rtol=1e-14, atol=0)


def test_masked_softmax_takes_sizes_or_a_hierarchy():
    logits, y = random_logits(5, 6), random_labels(5)
    assert torch.equal(masked_softmax(logits, y, PSI), masked_softmax(logits, y, Hierarchy(PSI)))


@pytest.mark.parametrize(
    ("logits", "y", "error", "message"),
    [
        (
            torch.zeros(2, 6),
            torch.tensor([0, 3]),
            ValueError,
            r"`y` must hold primary class indices in 0\.\.2, found 3",
        ),
        (torch.zeros(2, 6), torch.tensor([0.0, 1.0]), TypeError, "`y` must be an int64 tensor of primary class"),
        (torch.zeros(2, 5), torch.tensor([0, 1]), ValueError, r"`logits` must have shape \[N, 6, \.\.\.\].*\[2, 5\]"),
        (
            torch.zeros(6),
            torch.tensor([0]),
            ValueError,
            r"`logits` must have shape \[N, 6, \.\.\.\].*found \[6\]\. Give",
        ),
        (torch.zeros(2, 6), torch.tensor([0]), ValueError, r"`y` must have the shape of `logits`.*\[2\], found \[1\]"),
        (
            torch.zeros(1, 6, 2, 2),
            torch.tensor([0]),
            ValueError,
            r"`y` must have .* \[1, 2, 2\], found \[1\]\. Give one",
        ),
    ],
    ids=["range", "kind", "width", "dimensions", "batch", "dense"],
)
def test_masked_softmax_refuses_what_does_not_fit(logits, y, error, message):
    with pytest.raises(error, match=message):
        masked_softmax(logits, y, PSI)


def test_masked_softmax_refuses_bad_sizes():
    with pytest.raises(ValueError, match="`psi` must hold integers >= 1, found 0 at position 1"):
        masked_softmax(torch.zeros(1, 2), torch.tensor([0]), [2, 0])


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0, math.log(4)),
        (1, 0.75 * math.log(4)),
        (2, 0.5625 * math.log(4)),
        (0.5, math.sqrt(0.75) * math.log(4)),
    ],
)
def test_focal_loss_of_a_quarter(gamma, expected):
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)  # p = (1/4, 3/4)
    assert focal_loss(logits, torch.tensor([0]), gamma).item() == pytest.approx(expected, rel=1e-14)


def test_focal_loss_weighs_the_terms_of_a_soft_target():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    target = torch.tensor([[0.2, 0.8], [0.5, 0.5]], dtype=torch.float64)
    first = 0.2 * 0.75**2 * math.log(4) + 0.8 * 0.25**2 * math.log(4 / 3)
    second = 0.25 * math.log(2)
    assert focal_loss(logits, target).item() == pytest.approx((first + second) / 2, rel=1e-14)
    per_sample = focal_loss_per_sample(logits, target)
    assert per_sample.tolist() == pytest.approx([first, second], rel=1e-14)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)], ids=["flat", "dense"])
def test_gamma_zero_is_cross_entropy(shape):
    logits, labels = random_logits(shape[0], 5, *shape[1:]), random_labels(*shape, num_classes=5)
    probs = random_logits(shape[0], 5, *shape[1:]).flip(0).softmax(dim=1)
    torch.testing.assert_close(focal_loss(logits, labels, 0.0), F.cross_entropy(logits, labels), rtol=1e-14, atol=0)
    torch.testing.assert_close(focal_loss(logits, probs, 0.0), F.cross_entropy(logits, probs), rtol=1e-14, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4)], ids=["flat", "dense"])
def test_one_hot_target_equals_the_index(shape, gamma):
    logits, labels = random_logits(shape[0], 5, *shape[1:]), random_labels(*shape, num_classes=5)
    soft, hard = focal_loss(logits, one_hot(labels, 5), gamma), focal_loss(logits, labels, gamma)
    torch.testing.assert_close(soft, hard, rtol=1e-14, atol=0)


def test_focal_loss_near_certainty_is_as_exact_as_its_logarithm():
    gap = 5.0  # 1 - p = 0.007: float32's 1 - exp(log p) is 7e-6 off, log_softmax itself 6e-8
    rest = math.exp(-gap) / (1 + math.exp(-gap))
    loss = focal_loss(torch.tensor([[gap, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(rest**2 * math.log1p(math.exp(-gap)), rel=1e-6, abs=0)


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1), (2, 3, 4)])
def test_focal_loss_per_sample_has_the_shape_of_the_labels(shape):
    logits, labels = random_logits(shape[0], 5, *shape[1:]), random_labels(*shape, num_classes=5)
    for target in (labels, one_hot(labels, 5)):
        per_sample = focal_loss_per_sample(logits, target)
        assert per_sample.shape == shape
        assert per_sample.mean().item() == pytest.approx(focal_loss(logits, target).item(), rel=1e-14)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_loss_has_the_right_first_and_second_derivatives(gamma):
    logits = random_logits(3, 4).requires_grad_()
    target = random_logits(3, 4).flip(0).softmax(dim=1).requires_grad_()
    labels = torch.tensor([0, 3, 1])
    for check in (gradcheck, gradgradcheck):
        assert check(lambda z, t: focal_loss(z, t, gamma), (logits, target))
        assert check(lambda z: focal_loss(z, labels, gamma), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("label", [0, 1], ids=["right", "wrong"])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_saturated_logits_give_finite_derivatives(dtype, gamma, label, soft):
    logits = torch.tensor([[1e4, -1e4, -1e4]], dtype=dtype, requires_grad=True)
    target = torch.tensor([label])
    if soft:
        target = one_hot(target, 3).to(dtype).requires_grad_()
    loss = focal_loss(logits, target, gamma)
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    inputs = (logits, target) if soft else (logits,)
    second = torch.autograd.grad((grad * torch.tensor([[1.0, 2.0, -1.0]], dtype=dtype)).sum(), inputs)
    assert loss.item() == (0.0 if label == 0 else 2e4)
    assert all(derivative.isfinite().all() for derivative in (grad, *second))


def test_wrong_saturated_logits_keep_the_slope_of_cross_entropy():
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    (grad,) = torch.autograd.grad(focal_loss(logits, torch.tensor([1])), logits)
    assert grad.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_gamma_that_is_no_exponent_raises(gamma):
    with pytest.raises(ValueError, match=f"`gamma` must be a finite number >= 0, found {gamma}. Use 2"):
        focal_loss(torch.zeros(1, 2), torch.tensor([0]), gamma)


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (torch.zeros(1, 2), torch.tensor([2]), ValueError, r"`target` must hold class indices in 0\.\.1, found 2"),
        (
            torch.zeros(1, 2),
            torch.tensor([-100]),
            ValueError,
            r"`target` must hold class indices in 0\.\.1, found -100",
        ),
        (
            torch.zeros(1, 2),
            torch.tensor([0], dtype=torch.int32),
            TypeError,
            "`target` must be an int64 .* torch.int32",
        ),
        (torch.zeros(1, 2), [0], TypeError, "`target` must be .* found list"),
        (
            torch.zeros(2, 3),
            torch.tensor([0]),
            ValueError,
            r"`target` must have .* \[2\], when .* indices, found \[1\]",
        ),
        (torch.zeros(2, 3), torch.zeros(3, 2), ValueError, r"`target` must have .* \[2, 3\], when .* found \[3, 2\]"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3).long(),
            ValueError,
            r"`target` must have .* indices, found \[2, 3\]\. Give",
        ),
        (torch.zeros(3), torch.tensor(0), ValueError, "`(logits|target)` must have "),
    ],
    ids=["high", "negative", "int32", "list", "batch", "probabilities", "integer-one-hot", "one-dimension"],
)
def test_focal_loss_refuses_what_does_not_fit(logits, target, error, message):
    with pytest.raises(error, match=message):
        focal_loss(logits, target)


def test_entropy_loss_of_hand_worked_labels():
    probs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)  # q = (1/2, 1/4, 1/4)
    assert entropy_loss(probs).item() == pytest.approx(-1.5 * math.log(2), rel=1e-14)


@pytest.mark.parametrize("num_classes", [1, 2, 100])
def test_entropy_loss_lies_between_minus_log_k_and_zero(num_classes):
    uniform = torch.full((3, num_classes), 1 / num_classes, dtype=torch.float64)
    collapsed = one_hot(torch.zeros(3, dtype=torch.long), num_classes)
    assert entropy_loss(uniform).item() == pytest.approx(-math.log(num_classes), abs=1e-13)
    assert entropy_loss(collapsed).item() == 0
    between = entropy_loss(random_logits(5, num_classes, scale=3.0).softmax(dim=1)).item()
    assert -math.log(num_classes) - 1e-13 <= between <= 1e-13


def test_entropy_loss_judges_the_mean_label_not_each_sample():
    spread = one_hot(torch.arange(4), 4)
    assert entropy_loss(spread).item() == pytest.approx(-math.log(4), abs=1e-14)


def test_gradient_of_entropy_loss_equals_central_differences():
    probs = random_logits(3, 4).softmax(dim=1).requires_grad_()
    assert gradcheck(entropy_loss, probs)
    assert gradgradcheck(entropy_loss, probs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empty_class_adds_nothing_and_has_a_finite_gradient(dtype):
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.7, 0.0]], dtype=dtype, requires_grad=True)
    loss = entropy_loss(probs)
    assert loss.item() == pytest.approx(entropy_loss(probs[:, :2]).item(), rel=1e-6)
    (grad,) = torch.autograd.grad(loss, probs)
    assert grad.isfinite().all()
    # d/dq (q log q) = log q + 1, shared by two samples; towards the empty class the loss falls steepest.
    torch.testing.assert_close(grad[0, :2], (torch.tensor([0.4, 0.6], dtype=dtype).log() + 1) / 2)
    assert (grad[:, 2] < grad[:, :2].min()).all()


def test_entropy_of_dense_labels_equals_that_of_their_pixels():
    probs = random_logits(2, 5, 3, 4).softmax(dim=1)
    pixels = probs.movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(entropy_loss(probs), entropy_loss(pixels), rtol=1e-13, atol=0)


@pytest.mark.parametrize("shape", [(3,), (), (0, 3), (2, 3, 0)])
def test_entropy_loss_without_classes_or_samples_raises(shape):
    with pytest.raises(ValueError, match=r"`probs` must have shape \[N, K, \.\.\.\] .* found \["):
        entropy_loss(torch.zeros(shape))


def losses_of(logits, weight):
    """All three losses of logits that autocast computes, in bfloat16 if it is on."""
    y = random_labels(len(logits))
    logits = logits @ weight
    probs = masked_softmax(logits, y, PSI)
    hard, soft = focal_loss(logits, random_labels(len(logits), num_classes=6)), focal_loss(logits, probs)
    return logits, (probs, hard, soft, entropy_loss(probs))


def test_losses_under_autocast_are_float32():
    x, weight = random_logits(16, 6, dtype=torch.float32), torch.eye(6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, results = losses_of(x, weight)
    assert logits.dtype == torch.bfloat16
    assert {result.dtype for result in results} == {torch.float32}
    # x itself is what bfloat16 rounds; the losses of the rounded x in plain float32 must be the same numbers.
    _, expected = losses_of(x.bfloat16().float(), weight)
    for result, value in zip(results, expected):
        torch.testing.assert_close(result, value, rtol=1e-6, atol=1e-7)
    (grad,) = torch.autograd.grad(sum(result.sum() for result in results[1:]), weight)
    assert grad.isfinite().all()
    assert (grad != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_float32(dtype):
    logits, labels = random_logits(8, 6).to(dtype), random_labels(8, num_classes=6)
    probs = logits.softmax(dim=1)
    results = focal_loss(logits, labels), focal_loss(logits, probs), entropy_loss(probs)
    expected = (
        focal_loss(logits.float(), labels),
        focal_loss(logits.float(), probs.float()),
        entropy_loss(probs.float()),
    )
    for result, value in zip(results, expected):
        assert result.dtype == torch.float32
        assert torch.equal(result, value)


def test_other_things_than_tensors_are_refused():
    label = torch.tensor([0])
    with pytest.raises(TypeError, match="`logits` must be a floating-point tensor, found list"):
        masked_softmax([[0.0, 0.0]], label, [2])
    with pytest.raises(TypeError, match=r"`logits` must be a floating-point tensor, found torch\.int64"):
        focal_loss(torch.tensor([[1, 2]]), label)
    with pytest.raises(TypeError, match="`probs` must be a floating-point tensor, found list"):
        entropy_loss([[1.0]])
    with pytest.raises(ValueError, match="`logits` and `y` must be on the same device, found meta and cpu"):
        masked_softmax(torch.zeros(1, 2, device="meta"), label, [2])
    with pytest.raises(ValueError, match=r"`logits` must have shape .* at least one sample, found \[0, 2\]"):
        focal_loss(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    with pytest.raises(TypeError, match=r"`gamma` must be a number, found '2' \(str\)"):
        focal_loss(torch.zeros(1, 2), label, gamma="2")
