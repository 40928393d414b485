"""How a model takes a batch, and where its logits are."""

import re
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

from maxl_l2l.networks.calls import call, logits_of

LOGITS = torch.zeros(2, 4)


def module(function):
    """A module with a function as its forward."""
    made = nn.Module()
    made.forward = function
    return made


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, b: (a, b), (1, 2)),
        (lambda b, a=0, c=3: (a, b, c), (1, 2, 3)),
        (lambda **named: sorted(named), ["a", "b"]),
        (lambda *args, **named: (args, sorted(named)), ((), ["a", "b"])),
        (lambda batch: batch, {"a": 1, "b": 2}),
        (lambda batch, /: batch, {"a": 1, "b": 2}),
        (lambda a: a, {"a": 1, "b": 2}),
        (lambda batch, flag=False: (batch, flag), ({"a": 1, "b": 2}, False)),
        (lambda batch, **rest: (batch, rest), ({"a": 1, "b": 2}, {})),
    ],
    ids=["both", "defaults", "any", "wrapper", "whole", "positional", "one-of-two", "option", "rest"],
)
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mapping_is_taken_by_keyword_where_the_signature_has_its_keys(function, expected, kind):
    assert call(module(function), kind(a=1, b=2)) == expected


def test_single_key_that_is_the_parameter_is_a_keyword():
    assert call(module(lambda x: x), {"x": 1}) == 1


def test_key_that_forward_does_not_know_is_named_by_python():
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        call(module(lambda a, b: (a, b)), {"a": 1, "b": 2, "c": 3})


@pytest.mark.parametrize(
    "x", [LOGITS, (1, 2), [1], None, {1: 2}], ids=["tensor", "tuple", "list", "none", "integer key"]
)
def test_anything_else_is_one_argument(x):
    assert call(module(lambda *args, **named: (args, named)), x) == ((x,), {})


def test_module_without_a_signature_takes_a_mapping_whole():
    assert call(module(dict), {"a": 1}) == {"a": 1}
    assert call(module(type("Odd", (), {"__call__": lambda self, x: x, "__signature__": 3})()), {"a": 1}) == {"a": 1}


def test_named_logits_go_before_out():
    assert logits_of({"out": torch.ones(1), "logits": LOGITS}) is LOGITS


Pair = namedtuple("Pair", ["scores", "features"])


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ((LOGITS, None), "a tuple of a tensor [2, 4], NoneType. Wrap it .* alone, `return self.model(x)[0]` for"),
        (
            [1] * 5,
            "a list of int, int, int, int and 1 more. Wrap it in a module whose forward returns the logits alone.",
        ),
        ((), "an empty tuple. Wrap"),
        ({"scores": LOGITS}, "a dict with 'scores'. Wrap it in a module whose forward returns the logits alone."),
        ({"logits": None}, "a dict with 'logits'."),
        ({}, "an empty dict."),
        (Pair(LOGITS, LOGITS), "a Pair with 'scores', 'features'. Wrap"),
        (3, "an object of class int. Wrap"),
    ],
    ids=["tuple", "list", "empty", "dict", "none", "empty dict", "named tuple", "other"],
)
def test_output_without_logits_is_described(output, found):
    message = "`model` must return its logits, as one tensor or under the name 'logits' (or 'out', in a dict), found "
    with pytest.raises(TypeError, match=re.escape(message) + ".*".join(map(re.escape, found.split(".*")))):
        logits_of(output)
