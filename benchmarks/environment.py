"""Environment: when, where and with what something is measured, and the JSON that it goes into."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from maxl_l2l.files import replace_file

PACKAGES = ("torchvision", "maxl_l2l", "higher", "learn2learn", "torchopt", "numpy")


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """When, where and with what this is measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(arguments.device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: version(name) for name in PACKAGES},
        },
        "settings": {**vars(arguments), "out": str(arguments.out)},
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str | None:
    """The commit of this checkout, marked if files differ from it; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, lambda file: file.write((json.dumps(content, indent=1) + "\n").encode()))
