"""Replicas: parameters and buffers that are kept the same on all ranks."""

from __future__ import annotations

from torch import nn


def batch_norm_statistics(module: nn.Module) -> set[str]:
    """The names of BatchNorm's running means and variances."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        for name in ("running_mean", "running_var")
    }
