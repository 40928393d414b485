"""Bad calls: every one is answered in full, and leaves everything as it was."""

import inspect
import re
from collections import Counter

import pytest

import maxl_l2l
from faults.calls import CALLS, missing_parts, outcome
from maxl_l2l import MAXL, fit, report

OUT_OF_STYLE = {
    "psi has 3 entries.": {"advice"},
    "it has 3, the head '0' has 16 outputs": {"what was found"},
    "must be named, as 2 layers": {"what was found"},
    "the model returned [6, 3]": {"what was found"},
    " times. Name the layer": {"what was found"},
    "the primary loss is nan": {"an argument in backticks", "a rule", "what was found"},
    "`folder` can't be written to": {"a rule", "what was found", "advice"},
}
"""Words of messages that lack parts, and which."""
FREE = {
    "the history has no",
    "has no generator to train",
    "object has no attribute",
    "[Errno 2] No such file",
    "[Errno 21] Is a directory",
}
"""Words of messages that are a KeyError's, the system's, or the model's own."""
RESULTS = {"StepResult", "ModelCheck", "NonFiniteError"}
"""Public names that nobody calls: they are passed where they do not belong, or raised."""
NEVER_REFUSED = {
    fit: {"progress"},
    MAXL.step: set(),
    report: set(),
    MAXL: set(),
}
"""Arguments of which no value is refused before something has changed."""


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_bad_call_is_answered_in_full_and_changes_nothing(call):
    for package in call.needs:
        pytest.importorskip(package)
    assert outcome(call) == (call.error, call.words, True)


def test_messages_name_the_argument_the_rule_what_was_found_and_what_to_do():
    lacking = {}
    for call in CALLS:
        known = [parts for words, parts in OUT_OF_STYLE.items() if words in call.words]
        if not any(words in call.words for words in FREE) and set(missing_parts(call.words)) != set().union(*known):
            lacking[str(call)] = missing_parts(call.words)
    assert lacking == {}


def test_every_public_name_is_called_badly():
    targets = {call.target.split(".")[0] for call in CALLS}
    names = {name for name in maxl_l2l.__all__ if not name.startswith("__")}
    assert targets == names - RESULTS | {"LightningMAXL", "KMeansLabels"}


def test_every_public_method_of_a_learner_is_called_badly():
    methods = {"step", "network_step", "generator_step", "hypergradient", "gradient_cosine", "clone", "adapt", "loss"}
    methods |= {"primary_loss", "meta_loss", "distribute"}
    assert {f"MAXL.{method}" for method in methods} <= {call.target for call in CALLS}


@pytest.mark.parametrize("function", NEVER_REFUSED, ids=lambda function: function.__qualname__)
def test_every_argument_is_named_by_some_message(function):
    arguments = set(inspect.signature(function).parameters) - {"self"}
    target = function.__qualname__.replace("AuxiliaryLabelGenerator", "MAXL")
    messages = " ".join(call.words for call in CALLS if call.target == target)
    assert arguments - set(re.findall(r"`(\w+)", messages)) == NEVER_REFUSED[function]


def test_no_call_is_made_twice():
    assert [name for name, count in Counter(map(str, CALLS)).items() if count > 1] == []
