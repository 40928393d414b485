"""The mutation check: the core is changed in many small ways, one at a time, and the suite must notice each.

A mutant is one change of one file. Each is made in a copy of the repository, where the tests that are expected to
notice it run; if they pass, the whole core suite runs before the mutant counts as a survivor::

    python tests/faults/mutants.py [--only PART_OF_A_NAME] [--jobs 2]

It prints a line for each mutant and the figures, and fails if one survives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = (".*", "__pycache__", "*.egg-info", "build", "dist", "out")
NOT_CORE = (
    *("benchmarks", "examples", "lightning", "reporting"),
    *("docs/test_docs.py", "docs/test_page.py", "docs/test_site.py", "docs/test_tutorial.py"),
    *("faults/test_faults.py", "faults/test_flat_memory.py", "faults/test_mutants.py"),
    *("integrations/test_higher.py", "integrations/test_learn2learn.py"),
    *("package/test_cuda.py", "package/test_deployment.py", "package/test_extras.py", "package/test_package.py"),
)
"""Folders and files of tests that are not the core's, or are of this script: these read what is broken here."""
PATIENCE, LEAST_SECONDS = 3, 120.0
"""How many times longer than sound code a mutant may take, and what it may take in any case; then it hangs."""
CRASHES = ("NameError", "SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError")
"""Errors of a mutant that is no program: they say nothing of the tests."""


@dataclass(frozen=True)
class Mutant:
    """One small way to break the core.

    Attributes:
        name: What is wrong then, a sentence.
        file: In ``maxl_l2l``.
        text: What is replaced; it occurs once in the file.
        becomes: What stands there then.
        tests: The files in ``tests`` that are expected to notice, or tests in them, as pytest names them.
    """

    name: str
    file: str
    text: str
    becomes: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        mutant: Which.
        killer: The test that failed, or that it hung; None for a survivor.
        seconds: What it took.
    """

    mutant: Mutant
    killer: str | None
    seconds: float


def _mutants(file: str, tests: str, *changes: tuple[str, str, str] | tuple[str, str, str, str]) -> list[Mutant]:
    """Mutants of one file: name, text, what it becomes, and the tests if they are not those of the file."""
    return [
        Mutant(name, file, text, becomes, tuple((own[0] if own else tests).split()))
        for name, text, becomes, *own in changes
    ]


MUTANTS = [
    *_mutants(
        "labels/hierarchy.py",
        "labels/test_hierarchy.py",
        (
            "a block begins where the next one does",
            "start = sum(self.psi[:primary])",
            "start = sum(self.psi[: primary + 1])",
        ),
        (
            "the mask marks the sub-classes of all other classes",
            "return owners == y.unsqueeze(1)",
            "return owners != y.unsqueeze(1)",
        ),
        ("a label may equal the number of classes", "high >= num_classes", "high > num_classes"),
        (
            "an auxiliary label may lie in another class's block",
            "stray = (self.primary_of_auxiliary(y.device)[labels] != y)",
            "stray = (self.primary_of_auxiliary(y.device)[labels] < 0)",
        ),
    ),
    *_mutants(
        "labels/losses.py",
        "labels/test_losses.py",
        ("the softmax has no mask", ".masked_fill(outside, -torch.inf)", ""),
        ("logits outside the block are 0, as the paper prints it", "(outside, -torch.inf)", "(outside, 0.0)"),
        ("the masked softmax runs over the batch", "-torch.inf).softmax(dim=1)", "-torch.inf).softmax(dim=0)"),
        ("the focal exponent has the wrong sign", ".pow(gamma)", ".pow(-gamma)"),
        ("the focal exponent is always 2", ".pow(gamma)", ".pow(2)"),
        ("the focal weight is dropped", "    if gamma == 0:", "    if gamma >= 0:"),
        (
            "the focal loss of soft targets has the wrong sign",
            "return -(target * _focus(",
            "return (target * _focus(",
        ),
        (
            "the focal weight has no floor at certainty",
            ".clamp_min(torch.finfo(log_probs.dtype).eps).pow(gamma)",
            ".pow(gamma)",
        ),
        (
            "the entropy term has the wrong sign",
            "return (q * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum()",
            "return -(q * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum()",
        ),
        (
            "the entropy of a class without mass is NaN",
            "q.clamp_min(torch.finfo(q.dtype).tiny).log()",
            "q.log()",
        ),
        (
            "the mean label is a sum",
            "at_least_float32(probs).transpose(0, 1).flatten(1).mean(dim=1)",
            "at_least_float32(probs).transpose(0, 1).flatten(1).sum(dim=1)",
        ),
    ),
    *_mutants(
        "passes/numerics.py",
        "labels/test_losses.py",
        (
            "logarithms are taken in half precision",
            "return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values",
            "return values",
        ),
    ),
    *_mutants(
        "networks/heads.py",
        "networks/test_heads.py",
        (
            "the first of several layers in a sequence is the head",
            "    return last_name\n",
            "    return candidates[0]\n",
        ),
        (
            "layers that are named aux count as heads",
            'return any(part.startswith("aux") for part in name.split("."))',
            "return False",
            "integrations/test_backbones.py::test_forward_equals_unrolled[googlenet]",
        ),
        (
            "an auxiliary convolution has no padding",
            '"stride", "padding", "dilation"',
            '"stride", "dilation"',
            "networks/test_multi_task.py",
        ),
        (
            "features that a head changes in place are not kept",
            '        if any(getattr(module, "inplace", False) for module in layer.modules()):\n',
            "        if False:\n",
            "networks/test_multi_task.py",
        ),
    ),
    *_mutants(
        "networks/multi_task.py",
        "networks/test_multi_task.py",
        (
            "the features are detached from the auxiliary head",
            "self._match_positions(self.auxiliary_head(features), own, primary)",
            "self._match_positions(self.auxiliary_head(features.detach()), own, primary)",
            "learners/test_auxiliary_learning.py hypergradient/test_methods.py",
        ),
        (
            "the hooks stay after a forward pass",
            "            for hook in hooks:\n                hook.remove()\n            self._passed_on.clear()",
            "            self._passed_on.clear()",
        ),
        (
            "the auxiliary logits of a picked position are the mean's",
            "    if not same.any(dim=1).all():\n",
            "    if True:\n",
        ),
    ),
    *_mutants(
        "networks/label_generator.py",
        "networks/test_multi_task.py",
        (
            "a sample's weight is left out of its label",
            "return labels * weight.view(-1, *[1] * (labels.dim() - 1))",
            "return labels",
            "hypergradient/test_methods.py",
        ),
        (
            "a sample's weight is detached",
            "weight = 4 ** score.tanh()",
            "weight = (4 ** score.tanh()).detach()",
            "hypergradient/test_methods.py",
        ),
    ),
    *_mutants(
        "networks/fresh_copies.py",
        "networks/test_multi_task.py networks/test_fresh_copies.py",
        (
            "the generator shares its layers with the model",
            "        body = copy.deepcopy(model)\n",
            "        body = copy.copy(model)\n",
        ),
        (
            "the generator begins with the model's values",
            "        _reset(module)\n",
            "        pass\n",
            "networks/test_fresh_copies.py",
        ),
        (
            "the generator of a frozen model is frozen",
            "parameter.requires_grad_(parameter.is_floating_point())",
            "parameter.requires_grad_(parameter.requires_grad)",
            "networks/test_label_generator.py::test_default_generator_of_a_frozen_model_is_trainable",
        ),
    ),
    *_mutants(
        "passes/cloning.py",
        "passes/test_cloning.py",
        (
            "a clone is detached from its original",
            "tensor.clone() for tensor in _tensors(module)",
            "tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in _tensors(module)",
        ),
        (
            "a clone shares its buffers with the original",
            "for tensor in _tensors(module)}\n    for thing",
            "for tensor in _tensors(module)} | {id(b): b for b in module.buffers()}\n    for thing",
        ),
        ("a clone copies what it is to share", "        memo[id(thing)] = thing\n", ""),
    ),
    *_mutants(
        "learners/maml_interface.py",
        "learners/test_maml_interface.py",
        ("first_order is ignored", "create_graph=not first_order", "create_graph=True"),
        ("second derivatives are always dropped", "create_graph=not first_order", "create_graph=False"),
        ("adapt moves up the gradient", "parameters[n] - self.lr * grad", "parameters[n] + self.lr * grad"),
        ("adapt takes a step that is NaN", "        _check_finite(loss, grads)\n", "", "faults/test_not_finite.py"),
        (
            "a clone's own first_order is ignored",
            "learner.first_order = self.first_order if first_order is None else first_order",
            "learner.first_order = self.first_order",
        ),
    ),
    *_mutants(
        "inner_step/rules.py",
        "inner_step/test_look_ahead.py",
        (
            "momentum is forgotten",
            "momentum * previous + (1 - group",
            "previous + (1 - group",
        ),
        ("dampening is ignored", '(1 - group["dampening"]) * update', "update"),
        (
            "Nesterov's momentum is plain momentum",
            'update + momentum * velocity if group["nesterov"] else velocity',
            "velocity",
        ),
        (
            "the slope of SGD forgets Nesterov",
            'return slope * (1 + group["momentum"] * fresh if group["nesterov"] else fresh)',
            "return slope * fresh",
        ),
        (
            "the slope of SGD ignores maximize",
            'slope = -group["lr"] if not group["maximize"] else group["lr"]',
            'slope = -group["lr"]',
        ),
        (
            "weight decay has the wrong sign",
            'descent + group["weight_decay"] * theta',
            'descent - group["weight_decay"] * theta',
        ),
        ("maximize is ignored", 'return -grad if group["maximize"] else grad', "return grad"),
        (
            "Adam's second moment has no bias correction",
            "_root(square) / (1 - beta2**step) ** 0.5",
            "_root(square)",
        ),
        ("Adam's first moment has no bias correction", 'group["lr"] / (1 - beta1**step), mean', 'group["lr"], mean'),
        ("Adam counts its steps from 2", 'state.get("step", 0) + 1, mean', 'state.get("step", 0) + 2, mean'),
        (
            "AdamW does not decay",
            'return theta * (1 - group["lr"] * group["weight_decay"]), _descent',
            "return theta, _descent",
        ),
        ("AMSGrad is plain Adam", 'if group["amsgrad"] and', "if False and"),
        (
            "the root of an average that is 0 has an infinite slope",
            "return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)",
            "return values.sqrt()",
        ),
        ("centred RMSprop is not centred", "average = average - mean * mean", "average = average"),
        (
            "RAdam never rectifies",
            "    if length > 5:\n",
            "    if False:\n",
            "faults/test_survivors.py",
        ),
    ),
    *_mutants(
        "inner_step/optimizer_copy.py",
        "inner_step/test_look_ahead.py",
        ("the state of an optimizer of the general route is aliased", "copy.deepcopy(dict(state))", "dict(state)"),
        (
            "the parameters of the general route are aliased",
            "p.detach().clone() for p, grad",
            "p.detach() for p, grad",
        ),
    ),
    *_mutants(
        "inner_step/look_ahead.py",
        "inner_step/test_look_ahead.py",
        (
            "the learning rate is that of construction",
            "        self.optimizer = optimizer\n",
            "        self.optimizer = object.__new__(type(optimizer))\n"
            "        groups = [dict(group) for group in optimizer.param_groups]\n"
            '        self.optimizer.__dict__ = {**vars(optimizer), "param_groups": groups}\n',
        ),
        (
            "all parameters are in the first group",
            "self.optimizer.param_groups[key[0]],",
            "self.optimizer.param_groups[0],",
        ),
        (
            "parameters of another step count are counted together",
            "parameter.device, counts, filled)",
            "parameter.device, filled)",
        ),
        (
            "the inner step is not clipped",
            "return self._update(parameters, clip_by_norm(grads, self.max_grad_norm))",
            "return self._update(parameters, list(grads))",
        ),
        (
            "the derivative leaves out the clipping",
            "return _pull_back(lambda leaves: clip_by_norm(leaves, self.max_grad_norm), grads, pulled)",
            "return pulled",
        ),
    ),
    *_mutants(
        "inner_step/look_ahead.py",
        "inner_step/test_look_ahead.py",
        ("clipping stretches short gradients", ".clamp(max=1.0)", ""),
    ),
    *_mutants(
        "passes/virtual_pass.py",
        "hypergradient/test_methods.py",
        (
            "a buffer that a pass puts in another's place is lost",
            '    take_over(buffers, places, {place: state[f"module.{place}"] for place in places})\n',
            "",
        ),
    ),
    *_mutants(
        "passes/buffers.py",
        "hypergradient/test_methods.py",
        (
            "copies of buffers are the buffers",
            "return {name: tensor.clone() for name, tensor in tensors.items()}",
            "return dict(tensors)",
            "passes/test_buffers.py",
        ),
    ),
    *_mutants(
        "passes/random_numbers.py",
        "hypergradient/test_methods.py",
        (
            "the random state stays where an error left it",
            "            self.restore()\n            raise\n",
            "            raise\n",
        ),
        (
            "a pass that is repeated draws another dropout mask",
            "        now = RandomState(self.devices)\n        self.restore()\n",
            "        now = RandomState(self.devices)\n",
        ),
        (
            "a pass that is repeated moves the random numbers after it",
            "            now.restore()\n",
            "            pass\n",
        ),
    ),
    *_mutants(
        "passes/numerics.py",
        "hypergradient/test_methods.py",
        (
            "infinity is finite",
            'if not abs(value) < float("inf")}',
            "if value != value}",
            "faults/test_survivors.py",
        ),
    ),
    *_mutants(
        "hypergradient/forward_mode.py",
        "hypergradient/test_forward_mode.py",
        (
            "a product's tangent leaves out that of its input",
            "tangent = along_input if tangent is None else tangent.add_(along_input)",
            "tangent = along_input if tangent is None else tangent",
        ),
        (
            "BatchNorm's tangent leaves out that of its weight",
            "            tangent.addcmul_(x, slope.view(shape))\n",
            "",
        ),
        (
            "BatchNorm's tangent leaves out the mean",
            "shift = -slope * mean if db is None else db - slope * mean",
            "shift = db",
        ),
        ("LayerNorm's tangent leaves out its weight", "        tangent.mul_(w)\n", ""),
        (
            "what is constant for backward has a tangent",
            "        if not torch.is_grad_enabled():\n            # PyTorch's",
            "        if False:\n            # PyTorch's",
            "hypergradient/test_methods.py",
        ),
        (
            "the forward-mode pass draws its own dropout mask",
            "torch.enable_grad(), rng.again(), forward_ad",
            "torch.enable_grad(), forward_ad",
            "hypergradient/test_methods.py",
        ),
        (
            "the forward-mode pass moves the buffers",
            "virtual_pass(network, duals, clones(buffers), x)",
            "virtual_pass(network, duals, dict(network.named_buffers()), x)",
        ),
        (
            "a tangent under float16 keeps its scale",
            "tangent.float() / scale",
            "tangent.float()",
            "steps/test_updates.py",
        ),
    ),
    *_mutants(
        "hypergradient/finite_difference.py",
        "hypergradient/test_finite_difference.py",
        (
            "a central difference is divided by half of its distance",
            "(ahead - behind) / (2 * self.step(relative))",
            "(ahead - behind) / (self.step(relative))",
        ),
        (
            "a one-sided difference is divided by twice its distance",
            "/ line.step(chosen.relative).to(middle), chosen.error",
            "/ line.step(2 * chosen.relative).to(middle), chosen.error",
            "faults/test_survivors.py",
        ),
        (
            "a difference is of two dropout masks",
            "torch.no_grad(), self.rng.again(), torch.autocast",
            "torch.no_grad(), torch.autocast",
        ),
        (
            "finite differences are taken under autocast",
            "torch.autocast(step.device.type, enabled=False)",
            "torch.autocast(step.device.type, enabled=torch.is_autocast_enabled(step.device.type))",
            "steps/test_updates.py",
        ),
    ),
    *_mutants(
        "hypergradient/tape.py",
        "hypergradient/test_forward_mode.py",
        (
            "a result that has been written over is used",
            "return call.kept if call.kept and call.kept[0]._version == call.version else None",
            "return call.kept or None",
            "faults/test_survivors.py",
        ),
        (
            "the tape gives a call the result of another one",
            " or not self.calls[0].is_of(name, shape, weight)",
            "",
            "hypergradient/test_tape.py",
        ),
        (
            "the tape has no record of calls of which it keeps nothing",
            "            self._record(func.__name__, input, parameter, (result,) if is_kept else ())\n",
            "            if is_kept:\n                self._record(func.__name__, input, parameter, (result,))\n",
            "hypergradient/test_tape.py",
        ),
    ),
    *_mutants(
        "hypergradient/batch_passes.py",
        "hypergradient/test_methods.py hypergradient/test_micro_batches.py",
        (
            "the labels are detached in the product that is differentiated",
            "loss = self.objective.auxiliary(auxiliary, labels) * self.share",
            "loss = self.objective.auxiliary(auxiliary, labels.detach() + 0 * labels) * self.share",
        ),
        (
            "the gradient by the labels has no micro-batch weight",
            "loss = self.objective.auxiliary(auxiliary, labels) * self.share",
            "loss = self.objective.auxiliary(auxiliary, labels)",
        ),
        (
            "the primary loss has no micro-batch weight",
            "objective.primary(self.outputs, batch[1]) * share",
            "objective.primary(self.outputs, batch[1])",
        ),
        (
            "the auxiliary loss has no micro-batch weight",
            "objective.auxiliary(self.auxiliary, targets) * share",
            "objective.auxiliary(self.auxiliary, targets)",
        ),
        (
            "the network is not trained on the auxiliary task",
            "self.primary_loss if self.auxiliary_loss is None else self.primary_loss + self.auxiliary_loss",
            "self.primary_loss",
        ),
        (
            "the buffers that a pass began with are not cloned",
            "self.rng, self.start = RandomState(devices), clones(buffers)",
            "self.rng, self.start = RandomState(devices), buffers",
        ),
        (
            "labels that are computed again have another dropout mask",
            "            with self.rng.again():\n                labels = self._attached",
            "            if True:\n                labels = self._attached",
            "faults/test_survivors.py",
        ),
        (
            "sparse gradients stay sparse",
            "[grad.to_dense() if grad is not None and grad.is_sparse else grad for grad in found]",
            "list(found)",
        ),
    ),
    *_mutants(
        "hypergradient/bilevel.py",
        "hypergradient/test_methods.py",
        (
            "a checkpoint does not bring back the distance of finite differences",
            "        vars(self).update(state_dict",
            "        dict(vars(self)).update(state_dict",
            "training/test_fitting.py::test_resumed_run_keeps_the_distance_of_finite_differences",
        ),
    ),
    *_mutants(
        "hypergradient/gradients.py",
        "hypergradient/test_methods.py hypergradient/test_micro_batches.py",
        (
            "the meta batch is ignored",
            "self.meta_batches = split(meta_batch, options.micro_batches)",
            "self.meta_batches = split(batch, options.micro_batches)",
        ),
        (
            "the meta loss is computed before the inner step",
            "leaves = [value.detach().requires_grad_() for value in stepped]",
            "leaves = [value.detach().requires_grad_() for value in self.parameters]",
        ),
        (
            "the optimizer's rule is not differentiated",
            "pulled = self.inner.pull_back(self.parameters, grads, v)",
            "pulled = v",
        ),
        (
            "the entropy term is dropped from the hypergradient",
            "return value.detach(), torch.autograd.grad(value, labels)",
            "return value.detach(), [None] * len(labels)",
        ),
        (
            "the entropy term is that of the first micro-batch",
            "torch.cat(labels))",
            "labels[0])",
        ),
        (
            "BatchNorm moves in the meta pass",
            "dict(zip(self.names, leaves)), clones(self.buffers)",
            "dict(zip(self.names, leaves)), self.buffers",
        ),
        (
            "the loss scale stays in the gradients",
            "return [None if grad is None else grad / scale for grad in grads]",
            "return list(grads)",
            "steps/test_updates.py",
        ),
        (
            "the network's own step is not clipped",
            "        clipped = clip_by_norm(grads, self.inner.max_grad_norm)\n",
            "        clipped = list(grads)\n",
            "steps/test_updates.py",
        ),
    ),
    *_mutants(
        "hypergradient/fallbacks.py",
        "hypergradient/test_fallbacks.py",
        (
            "a method that falls back draws other random numbers",
            "        state.restore()\n\n\ndef _has",
            "        pass\n\n\ndef _has",
        ),
    ),
    *_mutants(
        "hypergradient/methods.py",
        "hypergradient/test_methods.py",
        (
            "a function without a second derivative is not noticed",
            "    _check_twice_differentiable(grads)\n",
            "",
        ),
    ),
    *_mutants(
        "distributed/reduction.py",
        "hypergradient/test_methods.py",
        (
            "the last micro-batch's gradient is that of all",
            "one if other is None else other if one is None else one + other",
            "one if other is None else other",
        ),
    ),
    *_mutants(
        "hypergradient/micro_batches.py",
        "hypergradient/test_methods.py",
        (
            "the parts of an input in a mapping are in another order than their labels",
            "return list(value.split(sizes))\n",
            "return list(value.split(sizes))[::-1]\n",
            "faults/test_survivors.py",
        ),
    ),
    *_mutants(
        "steps/iteration.py",
        "hypergradient/test_methods.py",
        (
            "hypergradient() replaces a gradient that was there",
            "parameter.grad = grad if parameter.grad is None else parameter.grad + grad",
            "parameter.grad = grad",
        ),
        (
            "hypergradient() leaves a gradient on theta_1",
            "in derivatives.generator_grads.items():\n",
            "in {**derivatives.generator_grads, **derivatives.network_grads}.items():\n",
        ),
        (
            "the generator's step moves the network's statistics",
            "_moved_buffers(bilevel, replace(derivatives, network_buffers={}))",
            "_moved_buffers(bilevel, derivatives)",
            "learners/test_auxiliary_learning.py",
        ),
    ),
    *_mutants(
        "steps/updates.py",
        "steps/test_updates.py",
        ("the scaler is not updated", "            self.scaler.update()\n", "            pass\n"),
        (
            "gradients of earlier steps are not cleared",
            "            optimizer.zero_grad()\n",
            "",
            "learners/test_auxiliary_learning.py",
        ),
        (
            "the generator's gradient is not clipped",
            "clipped = clip_by_norm(list(grads.values()), self.max_grad_norm)",
            "clipped = list(grads.values())",
        ),
    ),
    *_mutants(
        "learners/maxl.py",
        "hypergradient/test_methods.py",
        (
            "the entropy term has no weight",
            "return self.weight * negative_entropy(mean)",
            "return negative_entropy(mean)",
        ),
        (
            "the entropy term is dropped",
            "return self.weight * negative_entropy(mean)",
            "return 0 * negative_entropy(mean)",
        ),
        (
            "the entropy of weighted labels is that of their weights too",
            "targets / targets.sum(dim=1, keepdim=True) if self.normalize else targets",
            "targets",
            "hypergradient/test_methods.py",
        ),
        (
            "gamma is ignored",
            "loss = partial(focal_loss_per_sample, gamma=gamma)",
            "loss = partial(focal_loss_per_sample)",
            "learners/test_auxiliary_learning.py",
        ),
    ),
    *_mutants(
        "learners/auxiliary_learning.py",
        "learners/test_auxiliary_learning.py",
        (
            "the labels are detached in the multi-task loss",
            "            targets = self.generator(x, y)\n",
            "            targets = self.generator(x, y).detach()\n",
        ),
        (
            "the regulariser has the wrong sign in the meta loss",
            "return loss + self.objective.regularizer(targets)",
            "return loss - self.objective.regularizer(targets)",
        ),
        (
            "the generator's statistics move in the meta loss",
            "targets = virtual_pass(self.generator, {}, buffer_copies(self.generator), x, y)",
            "targets = self.generator(x, y)",
            "faults/test_survivors.py",
        ),
        (
            "the gradient cosine moves the random state",
            "        with torch.random.fork_rng(cuda_devices(self.network)), "
            "in_step(self.network, self.generator, self.ranks):\n"
            "            return gradient_cosine(",
            "        with in_step(self.network, self.generator, self.ranks):\n            return gradient_cosine(",
            "steps/test_cosine.py::TestGradientCosine",
        ),
    ),
    *_mutants(
        "learners/step_arguments.py",
        "learners/test_auxiliary_learning.py",
        (
            "the learner's learning rate is ignored",
            "InnerStep.sgd(parameters, learner.lr, max_grad_norm)",
            "InnerStep.sgd(parameters, 0.01, max_grad_norm)",
            "hypergradient/test_methods.py",
        ),
    ),
    *_mutants(
        "sources/fixed.py",
        "sources/test_fixed.py",
        (
            "random labels differ between runs",
            "generator=torch.Generator().manual_seed(self.seed), ",
            "",
        ),
        ("random labels are all the first of their block", "starts[y] + (draws * sizes[y]).long()", "starts[y]"),
    ),
    *_mutants(
        "sources/generated.py",
        "sources/test_fixed.py",
        (
            "the control learns from the meta gradient",
            'super().__init__(method="regularizer")',
            "super().__init__()",
        ),
    ),
    *_mutants(
        "sources/label_source.py",
        "sources/test_fixed.py",
        ("the single task has an auxiliary one", "auxiliary=False, **options", "**options"),
    ),
    *_mutants(
        "training/run.py",
        "training/test_fitting.py::test_generator_learns_on_every_nth_batch "
        "training/test_fitting.py::test_generator_stage_of_the_epoch_schedule_takes_every_nth_batch",
        ("meta_every is ignored in the batch schedule", " if turn else train_network(batch)\n", "\n"),
        ("meta_every is ignored in the epoch schedule", " if turn else None\n", "\n"),
        (
            "the meta loader is ignored",
            "return source.step(maxl, batch, *optimizers, meta_batch, **self.options)",
            "return source.step(maxl, batch, *optimizers, None, **self.options)",
            "training/test_fitting.py::test_meta_batch_can_be_the_next_one",
        ),
    ),
    *_mutants(
        "metrics/running_means.py",
        "training/test_fitting.py::test_evaluate_matches_plain_pytorch_and_restores_modes",
        (
            "the history's means are not weighted by samples",
            "value.detach() * count\n            self.counts[name] = self.counts.get(name, 0) + count",
            "value.detach()\n            self.counts[name] = self.counts.get(name, 0) + 1",
        ),
        (
            "a run's means are over batches",
            "        count = len(y)\n",
            "        count = 1\n",
            "faults/test_survivors.py",
        ),
        (
            "sub_classes is the highest sub-class",
            'return {"sub_classes": len(self.used)}',
            'return {"sub_classes": max(self.used)}',
            "faults/test_survivors.py",
        ),
        (
            "sub_classes counts the least probable labels",
            "labels = targets.argmax(dim=1) if targets.is_floating_point()",
            "labels = targets.argmin(dim=1) if targets.is_floating_point()",
            "faults/test_survivors.py",
        ),
    ),
    *_mutants(
        "metrics/label_statistics.py",
        "metrics/test_label_statistics.py::TestLabelMeter",
        (
            "a sub-class of one sample is not in use",
            'int((sums["use"] > 0).sum())',
            'int((sums["use"] > 1).sum())',
            "faults/test_survivors.py",
        ),
        (
            "the weight of a label enters its entropy",
            "labels = labels / mass.clamp_min(torch.finfo(labels.dtype).tiny)",
            "labels = labels.clone()",
        ),
    ),
    *_mutants(
        "metrics/collapse.py",
        "metrics/test_collapse.py::TestWatch",
        ("each class is judged by the first one's sub-classes", "        start += size\n", ""),
        ("a class of a few samples has collapsed", " and sum(counts) >= FEW", ""),
    ),
    *_mutants(
        "training/batches.py",
        "distributed/test_ranks.py::test_fit_tells_the_sampler_its_epoch",
        ("a sampler shuffles each epoch like the first", "        tell(epoch)\n", "        tell(0)\n"),
    ),
    *_mutants(
        "training/run_file.py",
        "training/test_fitting.py::test_resumed_run_equals_an_uninterrupted_one "
        "training/test_fitting.py::test_checkpoint_of_a_run_without_these_schedulers_is_refused",
        (
            "a checkpoint has no generator optimizer",
            '                "generator_optimizer": self.run.generator_optimizer,\n',
            "",
        ),
        (
            "a checkpoint has no schedulers",
            '{f"scheduler {number}": scheduler for number, scheduler in enumerate(self.run.schedulers)}',
            "{}",
        ),
        (
            "the random state is not restored from a checkpoint",
            '            self.run.numbers.restore(own["random"])\n',
            "            pass\n",
        ),
    ),
    *_mutants(
        "checkpoints/atomic_files.py",
        "checkpoints/test_atomic_files.py",
        (
            "a file is written in its place",
            "handle, name = tempfile.mkstemp(",
            "handle, name = (lambda **_: (os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC), str(target)))(",
        ),
        ("nobody else may read a file", "        os.chmod(name, 0o666 & ~_umask())", "        pass"),
    ),
    *_mutants(
        "training/fitting.py",
        "faults/test_survivors.py",
        (
            "a run with a seed moves the random state",
            "isolated = nullcontext() if seed is None else torch.random.fork_rng(cuda_devices(run.maxl))",
            "isolated = nullcontext()",
            "training/test_fitting.py::test_seed_decides_the_run_and_leaves_the_random_state",
        ),
    ),
    *_mutants(
        "training/arguments.py",
        "faults/test_survivors.py",
        (
            "the generator's default optimizer has no weight decay",
            "lr=1e-3, weight_decay=5e-4",
            "lr=1e-3",
            "faults/test_survivors.py",
        ),
    ),
    *_mutants(
        "training/run_file.py",
        "training/test_interrupts.py",
        (
            "a run that is stopped while it evaluates is saved without its place",
            "place = self.run.place if self.run.pairs is None else self.run.pairs.place",
            "place = self.run.place",
        ),
    ),
    *_mutants(
        "training/epoch_loop.py",
        "training/test_interrupts.py",
        (
            "evaluation is not stopped by a signal",
            "self.run.interrupts.watched(self.run.test_loader)",
            "self.run.test_loader",
        ),
        (
            "an error while a run is being saved gets no note",
            "                self.file.note(later)\n",
            "                pass\n",
            "faults/test_under_load.py::test_worker_that_is_found_dead_while_its_run_is_being_saved_is_reported_too",
        ),
    ),
    *_mutants(
        "training/interrupts.py",
        "training/test_interrupts.py",
        ("a signal is forgotten", "        self.received = number\n", "        pass\n"),
        (
            "a second signal is held back too",
            "        self.__exit__()\n        self.received",
            "        self.received",
        ),
        ("a forked process holds signals back", "        one.__exit__()\n", "        pass\n"),
    ),
    *_mutants(
        "learners/collective_calls.py",
        "faults/test_under_load.py",
        (
            "threads compute at the same time",
            "with COMPUTING, self.ranks.call(method.__name__):",
            "with self.ranks.call(method.__name__):",
        ),
    ),
    *_mutants(
        "passes/random_numbers.py",
        "training/test_run_file.py::test_run_with_generators_or_workers_stopped_and_resumed_equals_an_uninterrupted_one",
        ("Python's random state is not restored", '        random.setstate(state["python"])\n', ""),
        ("NumPy's random state is not restored", '        np.random.set_state(_arrays(state["numpy"]))\n', ""),
        (
            "the random state of a dataset is not restored",
            '                _restore(generator, state["generators"][path])\n',
            "                pass\n",
        ),
    ),
    *_mutants(
        "checkpoints/file_format.py",
        "faults/test_faults.py::test_every_file_that_is_no_checkpoint_is_refused_with_its_reason_and_runs_nothing",
        ("check sums are not compared", "damaged = archive.testzip()", "damaged = None"),
        ("a checkpoint may run a program", "weights_only=True", "weights_only=False"),
        ("a place inside an epoch is not checked", 'elif not _is_place(inside["place"]):', "elif False:"),
    ),
    *_mutants(
        "checkpoints/checkpoint.py",
        "faults/test_faults.py::test_every_file_that_is_no_checkpoint_is_refused_with_its_reason_and_runs_nothing",
        (
            "a checkpoint that is refused is loaded in part",
            "                part.load_state_dict(state)\n",
            "                pass\n",
        ),
        ("the state of an optimizer is not tried", "    trial.step()\n", ""),
    ),
    *_mutants(
        "steps/updates.py",
        "faults/test_not_finite.py",
        ("a step that fails is not undone", "            undo.restore()\n", ""),
        ("the numbers after a step are not checked", "            undo.check_finite(steps, moved)\n", ""),
    ),
    *_mutants(
        "steps/updates.py",
        "faults/test_not_finite.py",
        ("undoing forgets the states of optimizers", "for tensor in (*held, *state) if", "for tensor in held if"),
        ("undoing forgets gradients", "            parameter.grad = grad\n", "            pass\n"),
    ),
    *_mutants(
        "steps/nan_origin.py",
        "faults/test_not_finite.py",
        (
            "the input is not checked",
            "if not _is_finite(tensor, may_be_infinite=not isinstance(data, Tensor)):",
            "if False:",
        ),
    ),
    *_mutants(
        "checkpoints/atomic_files.py",
        "faults/test_under_load.py::test_second_run_on_the_same_file_is_refused_while_the_first_one_lasts "
        "faults/test_under_load.py::test_file_system_without_links_keeps_the_previous_checkpoint_too",
        ("two runs write one file", "        lock.acquire(timeout=PATIENCE)\n", "        pass\n"),
        ("the previous checkpoint is not kept", "            _keep(target, Path(keep))\n", "            pass\n"),
    ),
    *_mutants(
        "training/evaluation.py",
        "training/test_fitting.py::test_evaluate_matches_plain_pytorch_and_restores_modes",
        ("evaluation is in training mode", "    module.eval()\n", ""),
        ("evaluation mode stays", "            part.training = training\n", "            pass\n"),
    ),
    *_mutants(
        "model_check/snapshot.py",
        "model_check/test_snapshot.py",
        ("a snapshot does not put gradients back", "            parameter.grad = grad\n", "            pass\n"),
        ("a snapshot does not put torch's random state back", "        self.restore_random_numbers()\n", ""),
    ),
]


class Copy:
    """A copy of the repository in a temporary folder, to break and to test; a context manager that removes it."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True)
        self.root = Path(self.folder.name).resolve() / "repository"
        # Neither of pytest nor of coverage: what calls this may run under both.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))}
        self.environment = kept | {
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same second and size would pass for what was compiled
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def __enter__(self) -> Copy:
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*NOT_COPIED))
        ask = "import importlib.util; print(importlib.util.find_spec('maxl_l2l').origin)"
        found = subprocess.run(
            [sys.executable, "-c", ask], cwd="/", env=self.environment, capture_output=True, text=True, check=True
        )
        assert Path(found.stdout.strip()) == self.root / "maxl_l2l" / "__init__.py", found.stdout
        return self

    def __exit__(self, *error: object) -> None:
        self.folder.cleanup()

    @contextlib.contextmanager
    def broken(self, mutant: Mutant) -> Iterator[None]:
        """Breaks the copy inside, and mends it after."""
        path = self.root / "maxl_l2l" / mutant.file
        sound = path.read_text()
        path.write_text(mutated(sound, mutant))
        try:
            yield
        finally:
            path.write_text(sound)

    def test(self, tests: Sequence[str], limit: float | None = None) -> tuple[int | None, str]:
        """Runs tests until the first one fails; returns pytest's exit status and output, None for one that hung."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{one}" for one in tests)],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that the tests have started
            process.communicate()
            return None, ""
        return process.returncode, output


def mutated(text: str, mutant: Mutant) -> str:
    """Returns a file's text with the mutant's change; raises ValueError unless there is one place for it."""
    if text.count(mutant.text) != 1:
        raise ValueError(
            f"`text` of the mutant {mutant.name!r} must occur once in {mutant.file}, found {text.count(mutant.text)}. "
            "The file has changed: change the mutant too."
        )
    return text.replace(mutant.text, mutant.becomes)


def killer(status: int | None, output: str) -> str | None:
    """Returns the test that failed, or that it hung; None if no test did.

    A crash while tests are collected is none, nor is the error of a mutant that is no program.

    Args:
        status: pytest's exit status; None if it was stopped after its time.
        output: What it printed.
    """
    if status is None:
        return "it hangs"
    last = output.strip().splitlines()[-1] if output.strip() else ""
    failed = re.search(r"^FAILED tests/([^\s[]+(?:\[.*?\](?= - |$))?)(?: - (\w*).*)?$", output, re.MULTILINE)
    if status != 1 or failed is None or not re.search(r"\b\d+ failed\b", last):
        return None
    return None if failed[2] in CRASHES else failed[1]


def core_tests(root: Path = ROOT) -> tuple[str, ...]:
    """Returns the names of the core's test files."""
    tests = root / "tests"
    found = [path.relative_to(tests) for path in tests.rglob("test_*.py")]
    return tuple(sorted(str(path) for path in found if not {str(path), path.parts[0]} & set(NOT_CORE)))


def verdicts(
    mutants: Sequence[Mutant],
    jobs: int = 1,
    core: Callable[[], Sequence[str]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Verdict]:
    """Judges mutants.

    Args:
        mutants: Which.
        jobs: How many at a time, each in a copy of its own.
        core: Gives the tests that a mutant must survive to count as a survivor; the core's if None.
        report: Called with a line about each.

    Raises:
        RuntimeError: Tests fail already without a mutant.
    """
    with contextlib.ExitStack() as stack:
        copies: Queue[Copy] = Queue()
        for _ in range(jobs):
            copies.put(stack.enter_context(Copy()))

        def sound(tests: Sequence[str]) -> float:
            """Sees that tests pass without a mutant; returns how many seconds a mutant may take for them."""
            begun = time.monotonic()
            with _taken(copies) as copy:
                status, output = copy.test(tests)
            if status != 0:
                raise RuntimeError(f"{' '.join(tests)} must pass without a mutant, but pytest says\n{output[-3000:]}")
            seconds = time.monotonic() - begun
            report(f"{'sound':8}  {seconds:5.1f} s  {len(tests)} files or tests")
            return max(LEAST_SECONDS, PATIENCE * seconds)

        def judge(mutant: Mutant, tests: tuple[str, ...], limit: float) -> Verdict:
            begun = time.monotonic()
            with _taken(copies) as copy, copy.broken(mutant):
                found = killer(*copy.test(tests, limit))
            verdict = Verdict(mutant, found, time.monotonic() - begun)
            report(
                f"{'survived' if found is None else 'killed':8}  {verdict.seconds:5.1f} s  {mutant.file}: {mutant.name}"
                f"  [{found or ' '.join(tests) if len(tests) < 9 else 'the core suite'}]"
            )
            return verdict

        with ThreadPoolExecutor(jobs) as threads:
            limit = sound(sorted({test for mutant in mutants for test in mutant.tests}))
            found = list(threads.map(lambda mutant: judge(mutant, mutant.tests, limit), mutants))
            left = [verdict.mutant for verdict in found if verdict.killer is None]
            if left:
                whole = tuple((core or core_tests)())
                limit = sound(whole)
                again = {verdict.mutant: verdict for verdict in threads.map(lambda one: judge(one, whole, limit), left)}
                found = [again.get(verdict.mutant, verdict) for verdict in found]
    return found


@contextlib.contextmanager
def _taken(copies: Queue[Copy]) -> Iterator[Copy]:
    """A copy that nobody else uses meanwhile."""
    copy = copies.get()
    try:
        yield copy
    finally:
        copies.put(copy)


def figures(only: str = "", jobs: int = 1, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Judges the mutants whose names have ``only`` in them; returns how many there were and were killed.

    Returns:
        ``mutants`` and ``killed``, numbers; ``survivors``, names; ``seconds``.
    """
    begun = time.monotonic()
    chosen = [mutant for mutant in MUTANTS if only in mutant.name]
    if not chosen:
        raise ValueError(f"`only` must be a part of a mutant's name, found {only!r}. See MUTANTS.")
    found = verdicts(chosen, jobs, report=report)
    survivors = [verdict.mutant.name for verdict in found if verdict.killer is None]
    return {
        "mutants": len(found),
        "killed": len(found) - len(survivors),
        "survivors": survivors,
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Breaks the core in small ways and shows that the suite notices.")
    parser.add_argument("--only", default="", metavar="PART", help="judge the mutants with this in their names")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: 1)")
    options = parser.parse_args()
    found = figures(options.only, options.jobs, lambda line: print(line, flush=True))
    print(json.dumps(found))
    return 1 if found["survivors"] else 0


if __name__ == "__main__":
    sys.exit(main())
