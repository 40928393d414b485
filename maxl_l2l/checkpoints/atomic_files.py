"""Atomic files: each is written under a temporary name and then renamed; a lock lets one process at a time write it."""

import contextlib
import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
PATIENCE = 15.0
"""Seconds to wait for a lock: the data loader workers of a killed process hold it a few seconds longer."""


def replace_file(path: str | Path, write: Callable[[IO[bytes]], Any], keep: str | Path | None = None) -> None:
    """Writes a file completely or not at all: an old file of that name stays until the new one is on the disk.

    Args:
        path: The file; its folder is made if missing. It gets the default permissions of new files.
        write: Called with a binary file to write to.
        keep: A path under which the old file is kept, if there is one.

    Raises:
        OSError: The file can't be written; the old one is intact. It is the system's error even if ``write`` hides it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    disk = _Disk(handle, "wb")
    try:
        with io.BufferedWriter(disk) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp lets nobody else read
        if keep is not None and target.exists():
            _keep(target, Path(keep))
        os.replace(name, target)
        _settle(target.parent)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):  # it is in its place already
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


@contextlib.contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Locks a file for writing; the lock ends with its process. Unfinished files that a killed one left are removed.

    Raises:
        BlockingIOError: Another run holds the lock.
        OSError: The folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise BlockingIOError(
            f"`checkpoint` must be a file that no other run writes, found that one which still runs writes {path}. "
            f"Name another file, or wait for it to end. If none runs, remove {lock.lock_file}."
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        yield  # the file system has no locks
        return
    try:
        parts = re.compile(rf"\.{re.escape(path.name)}\.(former|\w{{8}})\.part")  # not those of files with longer names
        for left in path.parent.iterdir():
            if parts.fullmatch(left.name):
                left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _keep(target: Path, kept: Path) -> None:
    """Links a file to a second name, so that it always has one; copies it where the file system has no links."""
    part = target.with_name(f".{target.name}.former.part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(target, part)
        except OSError:
            shutil.copy2(target, part)
        os.replace(part, kept)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _settle(folder: Path) -> None:
    """Writes a folder's entries to the disk, where the system can: a new file is lost without its entry."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems can't
            os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The permissions that new files do not get; it can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Disk(io.FileIO):
    """A file that keeps the OSError of a failed write, which torch.save replaces by a RuntimeError."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise
