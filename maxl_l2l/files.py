"""Files that are whole or not there: written beside their place and moved into it."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def replace_file(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file so that its name never holds half of it; what stood there before stays until the new one is safe.

    It gets the permissions of any new file.

    Args:
        path: The file; its folder is made if missing.
        write: Called with a binary file to write to.

    Raises:
        OSError: The file can't be written; the old one is intact. This is the system's own error, whatever a library
            that writes has made of it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    disk = _Disk(handle, "wb")
    try:
        with io.BufferedWriter(disk) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp lets nobody else read
        os.replace(name, target)
    except BaseException as error:
        os.unlink(name)
        failure = disk.error or error
        if isinstance(failure, OSError) and failure.errno is not None:
            raise OSError(failure.errno, failure.strerror, str(target)) from error
        raise


def try_folder(folder: Path) -> None:
    """Makes a folder if it is missing; raises OSError if no file can be made in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _umask() -> int:
    """What a new file does not allow; it can't be read but by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Disk(io.FileIO):
    """A file that keeps the error of a write that failed: torch.save raises a RuntimeError in its place."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise
