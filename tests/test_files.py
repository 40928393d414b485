"""Files that are whole or not there."""

import pytest

from maxl_l2l.files import replace_file


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
