"""Atomic files: written completely or not at all."""

import errno
import os
import tempfile

import pytest
import torch

from maxl_l2l.checkpoints.atomic_files import replace_file


def test_file_and_its_folder_are_made(tmp_path):
    path = tmp_path / "new" / "file"
    replace_file(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"


def test_failure_halfway_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    inode = path.stat().st_ino
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    replace_file(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != inode  # moved into place, not written over


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write(b"little"),
        lambda file: file.write(bytes(10**6)),
        lambda file: torch.save({"tensor": torch.zeros(2)}, file),
        lambda file: torch.save({"tensor": torch.zeros(10**6)}, file),  # torch raises a RuntimeError of its own
    ],
)
def test_full_disk_is_the_systems_error_and_leaves_the_old_file_and_no_other(write, monkeypatch, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    make = tempfile.mkstemp

    def full(*args, **kwargs):
        handle, name = make(*args, **kwargs)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        replace_file(path, write)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_disk_that_fills_up_on_the_way_is_the_systems_error_too(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            replace_file(tmp_path / "file", lambda file: torch.save({"tensor": torch.zeros(10**6)}, file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert isinstance(caught.value.__cause__, RuntimeError)  # that of torch
    assert list(tmp_path.iterdir()) == []


def test_error_that_is_not_the_disks_is_left_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        replace_file(tmp_path / "file", lambda file: file.write(b"1" * (1 // 0)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_error_of_the_disk_names_the_file(monkeypatch, tmp_path):
    def full(*args, **kwargs):
        return os.open("/dev/full", os.O_WRONLY), tmp_path / "other"

    (tmp_path / "other").touch()
    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*wanted\.json'"):
        replace_file(tmp_path / "wanted.json", lambda file: file.write(b"text"))


def test_file_has_the_permissions_of_any_new_one(tmp_path):
    (tmp_path / "usual").touch()
    replace_file(tmp_path / "file", lambda file: file.write(b"text"))
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
