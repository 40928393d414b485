"""Central differences of functions whose slope is known; the rest is in test_check."""

import math

import pytest
import torch

from maxl_l2l.model_check import central_differences as differences

LENGTHS, EPS = differences.LENGTHS[torch.float64], torch.finfo(torch.float64).eps


def error(function, expected):
    return differences._error(function, expected, LENGTHS, EPS, bound=1e-3)


@pytest.mark.parametrize(("slope", "found"), [(1.0, 0.0), (1.1, 1 / 11), (-1.0, 2.0), (0.0, 1.0)])
def test_error_is_relative_to_the_larger(slope, found):
    assert error(lambda length: 3 + math.sin(length), slope) == pytest.approx(found, abs=1e-4)


def test_flat_function_refutes_a_slope():
    assert error(lambda length: 0.0, 1.0) == 1.0


def test_slope_beside_a_kink_is_found_by_a_short_length():
    assert error(lambda length: 2 * length + max(0.0, length - 3e-9), 2.0) < 1e-4


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (lambda length: 1.0, 0.0),
        (lambda length: 1 + 1e-14 * length, 1e-14),
        (lambda length: 1 + math.sin(1e15 * length), 1.0),
    ],
    ids=["zero", "rounding", "jumps"],
)
def test_what_differences_cannot_settle_is_none(function, slope):
    assert error(function, slope) is None
