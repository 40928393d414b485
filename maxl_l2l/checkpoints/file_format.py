"""The file format of checkpoints: reading runs no code from a file, and files of other programs are recognised.

A checkpoint is a file of ``torch.save``: an uncompressed zip archive of a pickle and the tensors' bytes. torch does not
verify the archive's checksums, so that is done here.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

FORMAT = 4
"""Raised by one when the content of checkpoints changes; formats of released versions stay readable."""
FIELDS = {"format": int, "version": str, "parts": dict, "progress": dict, "ranks": list}
PROGRESS = {"history": dict, "steps": int}
HISTORY = {"settings": dict, "epochs": list}


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(f"{path.name}.previous")


def read_file(path: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds: tensors and plain data.

    Raises:
        OSError: The file can't be read.
        ValueError: It is no checkpoint, damaged, or of another format; the message says which, and what to do.
    """
    try:
        return _content(path)
    except ValueError as error:
        raise ValueError(f"{error} {_advice(path)}") from error


def _advice(path: Path) -> str:
    """What to do if a checkpoint can't be read."""
    earlier = previous(path)
    try:
        steps = _content(earlier)["progress"]["steps"]
    except (OSError, ValueError):
        return "There is no earlier checkpoint beside it: name another file, or begin again with resume=False."
    return (
        f"The run's earlier checkpoint, after step {steps}, is whole: rename {earlier} to {path.name} to go on from it."
    )


def _content(path: Path) -> dict[str, Any]:
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except UnpicklingError as error:
        raise ValueError(
            f"`checkpoint` must hold tensors and plain data alone, found other objects in {path}, which were not "
            "loaded, as they could run any program."
        ) from error
    except Exception as error:  # torch.load raises errors of any kind for damaged bytes
        raise ValueError(
            f"`checkpoint` must be a file that fit() wrote, found that {path} is damaged: {_first_line(error)}."
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(
            f"`checkpoint` must be a file that fit() wrote, found {_in_words(content)} of another program in {path}."
        )
    _check_format(content, path)
    wrong = _misfit(content, FIELDS) or _misfit(content["progress"], PROGRESS, "progress.")
    wrong = wrong or _misfit(content["progress"]["history"], HISTORY, "progress.history.") or _wrong_progress(content)
    if wrong:
        raise ValueError(f"`checkpoint` must hold what fit() writes, found in {path} that {wrong}.")
    return content


def _check_archive(path: Path) -> None:
    """Raises ValueError unless a file is a whole archive as torch.save writes it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(4)
    if size == 0:
        raise ValueError(f"`checkpoint` must be a file that fit() wrote, found that {path} is empty.")
    if not zipfile.is_zipfile(path):
        found = "is cut short or damaged" if beginning[:2] == b"PK" else "is a file of another program"
        raise ValueError(f"`checkpoint` must be a file that fit() wrote, found that {path} {found}.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size for entry in entries):
                raise ValueError(
                    f"`checkpoint` must be a file that fit() wrote, found compressed data in {path}: it is a file of "
                    "another program."
                )
            damaged = archive.testzip()
    except ValueError:
        raise
    except Exception as error:  # BadZipFile, and errors of struct and codecs
        raise ValueError(
            f"`checkpoint` must be a file that fit() wrote, found that {path} is damaged: {_first_line(error)}."
        ) from error
    if damaged is not None:
        raise ValueError(
            f"`checkpoint` must be a file that fit() wrote, found that {path} is damaged: {damaged} is not what "
            "was written."
        )


def _check_format(content: Mapping[str, Any], path: Path) -> None:
    found = content["format"]
    if found == FORMAT and type(found) is int:
        return
    is_newer = isinstance(found, int) and found > FORMAT
    version = content.get("version")
    by = f" by maxl_l2l {version}" if isinstance(version, str) else ""
    raise ValueError(
        f"`checkpoint` must be of format {FORMAT}, found one of format {found!r}{by} in {path}. "
        + (
            "It is newer than this version of maxl_l2l: upgrade it to read that."
            if is_newer
            else "It is of a version of maxl_l2l before the first release, or of another program."
        )
    )


def _misfit(content: Any, fields: Mapping[str, type], place: str = "") -> str | None:
    """Describes an entry that is missing or of another type; None if all are there."""
    for name, kind in fields.items():
        if name not in content:
            return f"{place}{name} is missing"
        if type(content[name]) is not kind:
            return f"{place}{name} is a {type(content[name]).__name__} in the place of a {kind.__name__}"
    return None


def _wrong_progress(content: Mapping[str, Any]) -> str | None:
    """Describes what is inconsistent in the progress of a run; None if nothing is."""
    progress, ranks = content["progress"], content["ranks"]
    epochs = progress["history"]["epochs"]
    if progress["steps"] < 0:
        return f"progress.steps is {progress['steps']}"
    for number, record in enumerate(epochs, start=1):
        if not isinstance(record, dict) or record.get("epoch") != number:
            return f"the record of epoch {number} is not one"
    if not ranks:
        return "ranks is empty"
    for own in ranks:
        if not isinstance(own, dict) or "inside" not in own:
            return "ranks holds something else than places"
        inside = own["inside"]
        if inside is None:
            if not isinstance(own.get("random"), dict):
                return "random states are missing"
        elif not isinstance(inside, dict) or _misfit(inside, {"stage": int, "place": dict, "measured": dict}):
            return "a place inside an epoch is not one"
        elif not _is_place(inside["place"]):
            return "a place in the data is not one"
    return None


def _is_place(place: Mapping[str, Any]) -> bool:
    """Whether this is the place in its data that a run has reached."""
    if _misfit(place, {"done": int, "main": dict, "random": dict}) or not isinstance(place.get("meta"), dict | None):
        return False
    readers = [reader for reader in (place["main"], place["meta"]) if reader is not None]
    return place["done"] >= 0 and all(
        not _misfit(reader, {"last": list, "count": int})
        and reader["count"] >= 0
        and isinstance(reader.get("start"), dict | None)
        for reader in readers
    )


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Names the tensors of a state that hold NaN or infinity."""
    return [
        name
        for name, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())
    ]


def _in_words(content: Any) -> str:
    """Describes the content of a file that is no checkpoint."""
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return "a state_dict"
    return f"a {type(content).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
