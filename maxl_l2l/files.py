"""Files that are whole or not there: written beside their place and moved into it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def replace_file(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file so that its name never holds half of it; what stood there before stays until the new one is safe.

    Args:
        path: The file; its folder is made if missing.
        write: Called with a binary file to write to.

    Raises:
        OSError: The file can't be written; the old one is intact.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
