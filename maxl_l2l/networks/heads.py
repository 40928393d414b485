"""Heads: the layer of a model that gives its logits, and new layers of its kind with another number of outputs."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from ..checks import some

# Layers that keep the order of classes; after a convolution, with classes in dimension 1, also layers over positions.
KEEPS_CLASSES = (nn.Identity, nn.Flatten, _DropoutNd)
KEEPS_CHANNELS = (*KEEPS_CLASSES, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd, nn.Upsample)


def resolve_head(
    model: nn.Module, head: str | None, num_outputs: int | None, num_features: int | None = None
) -> str | None:
    """Returns the name of the model's head, given or found by :func:`find_head`; None for a headless backbone.

    Raises:
        TypeError: model is not a module, or it is wrapped in DataParallel or DistributedDataParallel.
        ValueError: There is no such head, or the arguments contradict each other.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module, found {type(model).__name__}. Pass the model itself, not its class."
        )
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        raise TypeError(
            f"`model` must be the model itself, found {type(model).__name__} around it, which does not reduce the "
            "hypergradient. Pass its .module, and call maxl.distribute() in each process."
        )
    lazy = [name for name, parameter in model.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"`model` must have all of its parameters, found lazy ones that have no shape yet: {', '.join(lazy[:5])}. "
            "Call the model once on a batch first."
        )
    if num_features is None:
        return find_head(model, num_outputs) if head is None else _checked_head(model, head, num_outputs)
    if head is not None or num_outputs is None or not isinstance(num_features, int) or num_features < 1:
        raise ValueError(
            f"`num_features` must be the width (>= 1) of a headless backbone's output, with the number of primary "
            f"outputs and without `head`, found {num_features!r}, {num_outputs!r} and {head!r}. "
            "Give `head` alone if the model has one."
        )
    return None


def find_head(model: nn.Module, num_outputs: int | None) -> str:
    """Finds the layer that produces a model's logits, by its number of outputs.

    With num_outputs: the only linear layer or convolution of that width; of several in one ``nn.Sequential``, the last.
    Convolutions before a linear layer of that width do not count, nor do layers in a part whose name begins with "aux",
    such as the extra classifiers of torchvision's GoogLeNet, Inception and segmentation models. Without num_outputs:
    the last of all linear layers and convolutions in the order of definition.

    Args:
        model: Any module.
        num_outputs: Outputs of the head wanted, or None.

    Returns:
        Its name in ``model.named_modules()``.

    Raises:
        ValueError: There is none, or there are several; they are listed by name.
    """
    widths = {name: _num_outputs(module) for name, module in model.named_modules()}
    layers: list[str] = [name for name, width in widths.items() if width is not None]
    layers = [name for name in layers if not _is_extra(name)] or layers
    if num_outputs is None and layers:
        return layers[-1]
    candidates = [name for name in layers if widths[name] == num_outputs]
    if not candidates:
        last = (
            ", ".join(f"{name!r} ({widths[name]} outputs)" for name in layers[-3:]) or "no linear layer or convolution"
        )
        rule = "the model must have a head" if num_outputs is None else "`psi` must have an entry per model output"
        raise ValueError(
            f"{rule}: no linear layer or convolution with {num_outputs or 'any'} outputs was found, "
            f"the last are {last}. "
            "Make len(psi) the model's number of outputs, or pass num_features= for a backbone without a head."
        )
    *others, last_name = candidates
    if isinstance(model.get_submodule(last_name), nn.Linear):
        # Convolutions before a linear layer are not the head, however many outputs they have.
        others = [name for name in others if isinstance(model.get_submodule(name), nn.Linear)]
    if not all(_feeds_in_sequence(model, other, last_name) for other in others):
        raise ValueError(
            f"`head` must be named, as {len(candidates)} layers have {num_outputs} outputs: "
            f"{some([repr(name) for name in candidates], 20)}. "
            f"Pass the one that gives the logits, for example head={last_name!r}."
        )
    return last_name


def logits_layer(model: nn.Module, head: str = "") -> str | None:
    """Returns the name of the layer of a head that gives its logits: the head itself, or the last of a sequence.

    In a ``nn.Sequential``, however nested, dropout and flattening may follow it, and after a convolution pooling and
    resizing, as these keep the order of classes. None if anything else follows, or if there is no such layer.

    Args:
        model: Any module.
        head: Name of its head; the model itself if empty.
    """
    after: list[nn.Module] = []
    for name, layer in reversed(_in_order(head, model.get_submodule(head))):
        if _num_outputs(layer) is not None:
            keeping = KEEPS_CLASSES if isinstance(layer, nn.Linear) else KEEPS_CHANNELS
            return name if all(isinstance(later, keeping) for later in after) else None
        after.append(layer)
    return None


def alters_features(head: nn.Module) -> bool:
    """Whether a head may overwrite the features that enter it: if it works in place before its first parameter."""
    for _, layer in _in_order("", head):
        if any(getattr(module, "inplace", False) for module in layer.modules()):
            return True
        if any(True for _ in layer.parameters()):
            return False
    return False


def resized_head(head: nn.Module, num_outputs: int) -> nn.Linear | _ConvNd:
    """Returns a new layer of the head's kind with another number of outputs; device, dtype, memory format are kept."""
    assert isinstance(head, (nn.Linear, _ConvNd))
    options: dict[str, Any] = {
        "bias": head.bias is not None,
        "device": head.weight.device,
        "dtype": head.weight.dtype,
    }
    if isinstance(head, nn.Linear):
        return nn.Linear(head.in_features, num_outputs, **options)
    options |= {name: getattr(head, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    if head.transposed:
        options["output_padding"] = head.output_padding
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kind = next(kind for kind in kinds if isinstance(head, kind))
    layer = kind(head.in_channels, num_outputs, **options)
    for memory_format in (torch.channels_last, torch.channels_last_3d):
        if head.weight.is_contiguous(memory_format=memory_format) and not head.weight.is_contiguous():
            layer.to(memory_format=memory_format)
    return layer


def _checked_head(model: nn.Module, head: str, num_outputs: int | None) -> str:
    modules = dict(model.named_modules())
    layer = logits_layer(model, head) if head in modules else None
    if layer is None:
        heads = [repr(name) for name, module in modules.items() if _num_outputs(module) is not None]
        found = f"a {type(modules[head]).__name__}" if head in modules else "no such layer"
        remedy = ""
        if head in modules and isinstance(modules[head], nn.Sequential):
            last = [type(module).__name__ for _, module in _in_order(head, modules[head])[-3:]]
            found = f"one that ends with {', '.join(last) or 'nothing'}"
            remedy = "Name what gives the logits: the losses take their softmax themselves. "
        raise ValueError(
            "`head` must name a linear layer or convolution of the model, or a nn.Sequential that ends with one, "
            f"found {found} at {head!r}. {remedy}The model has: {', '.join(heads[-20:]) or 'none'}."
        )
    width = _num_outputs(model.get_submodule(layer))
    if num_outputs is not None and width != num_outputs:
        raise ValueError(
            f"`psi` must have an entry per model output: it has {num_outputs}, the head {head!r} has {width} outputs. "
            f"Give psi {width} entries, or name another head."
        )
    part = model.get_submodule(head)
    if isinstance(part, nn.Sequential) and set(model.parameters()) <= set(part.parameters()):
        raise ValueError(
            f"`head` must leave parameters of the model for both tasks to share, found all of them in {head!r}. "
            f"Name a later part of it, for example the layer {layer!r}."
        )
    return head


def _num_outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, _ConvNd) else None


def _in_order(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a sequence, however nested, by name, as often as they run; or a module alone."""
    if not isinstance(module, nn.Sequential):
        return [(name, module)]
    # Not named_children(), which lists a layer that runs twice, such as a ReLU, once.
    children = [(f"{name}.{key}".lstrip("."), child) for key, child in module._modules.items() if child is not None]
    return [layer for child in children for layer in _in_order(*child)]


def _is_extra(name: str) -> bool:
    """Whether a layer belongs to an auxiliary classifier of the model's own, by its name."""
    return any(part.startswith("aux") for part in name.split("."))


def _feeds_in_sequence(model: nn.Module, earlier: str, later: str) -> bool:
    """Whether the innermost module that holds both layers is a ``nn.Sequential``."""
    shared: list[str] = []
    for one, other in zip(earlier.split("."), later.split(".")):
        if one != other:
            break
        shared.append(one)
    return isinstance(model.get_submodule(".".join(shared)), nn.Sequential)
