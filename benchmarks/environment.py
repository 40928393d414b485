"""Environment: when, where and with what something is measured, and the JSON that it goes into."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from examples.cifar100.environment import environment as found_environment
from maxl_l2l.checkpoints import replace_file

PACKAGES = ("torchvision", "maxl_l2l", "higher", "learn2learn", "torchopt", "numpy")


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """When, where and with what this is measured, and how it was asked for."""
    about = found_environment(arguments.device, PACKAGES)
    return {**about, "settings": {**vars(arguments), "out": str(arguments.out)}}


def write(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
