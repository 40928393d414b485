"""Files in the place of a checkpoint: cut short, damaged, foreign, of another run, or made to run a program."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import re
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from maxl_l2l import fit

from . import program

FILE = "`checkpoint` must be a file that fit() wrote, found that "
OBJECTS = "`checkpoint` must hold tensors and plain data alone, found other objects in "
CONTENT = "`checkpoint` must hold what fit() writes, found in "
FIT = "`checkpoint` must be of a run with the same "
PLAIN = "found .* of another program in"


class Bad(NamedTuple):
    """A file that is no checkpoint of this run.

    Attributes:
        name: What is wrong with it.
        content: The bytes.
        message: What the error says, a regular expression.
    """

    name: str
    content: bytes
    message: str


class Runs:
    """Pickled, it calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def start(folder: Path, resume: bool, maxl: Any = None, epochs: int = 2, **options: Any) -> Any:
    """Trains the small learner with the checkpoint ``run.pt`` in a folder; the second of its epochs may be begun."""
    maxl = maxl or program.learner()
    data = torch.utils.data.TensorDataset(program.Noisy().x, (program.Noisy().x[:, 0] > 0).long())
    given = {**program.parts(maxl), **options}
    loader = DataLoader(data, program.BATCH, shuffle=True)
    return fit(maxl, loader, epochs, **given, seed=1, progress=False, checkpoint=folder / "run.pt", resume=resume)


def whole(epochs: int = 2, **options: Any) -> bytes:
    """The bytes of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        start(Path(folder), False, epochs=epochs, **options)
        return (Path(folder) / "run.pt").read_bytes()


def saved(content: Any, **options: Any) -> bytes:
    """What torch.save makes of a thing."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def loaded(content: bytes) -> dict[str, Any]:
    """What a checkpoint's bytes hold."""
    found: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return found


def cut_short(good: bytes, numbers: random.Random) -> Iterator[Bad]:
    yield Bad("empty", b"", re.escape(FILE) + ".*run.pt is empty")
    lengths = [1, 2, 3, 4, 30, len(good) - 1, len(good) - 22, *(numbers.randrange(4, len(good)) for _ in range(40))]
    for length in lengths:
        kind = "is cut short or damaged" if length >= 2 else "is a file of another program"
        yield Bad(f"the first {length} bytes", good[:length], re.escape(FILE) + f".*run.pt {kind}")


def payloads(good: bytes) -> list[tuple[int, int]]:
    """Where the bytes of each entry of an archive begin and how many there are."""
    found = []
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        for entry in archive.infolist():
            name, extra = struct.unpack("<HH", good[entry.header_offset + 26 : entry.header_offset + 30])
            found.append((entry.header_offset + 30 + name + extra, entry.file_size))
    return found


def damaged(good: bytes, numbers: random.Random) -> Iterator[Bad]:
    places = payloads(good)
    sizes = [size for _, size in places]
    for _ in range(50):
        begin, size = numbers.choices(places, sizes)[0]
        position, bit = begin + numbers.randrange(size), numbers.randrange(8)
        content = bytearray(good)
        content[position] ^= 1 << bit
        yield Bad(f"bit {bit} of byte {position} flipped", bytes(content), re.escape(FILE) + ".*run.pt is damaged: ")
    for _ in range(10):
        begin, size = numbers.choices(places, sizes)[0]
        length = min(size, 16)
        content = bytearray(good)
        content[begin : begin + length] = bytes(byte ^ 0x55 for byte in good[begin : begin + length])
        yield Bad(f"{length} bytes from {begin} on changed", bytes(content), re.escape(FILE) + ".*run.pt is damaged: ")
    half = len(good) // 2
    yield Bad("the middle left out", good[: half - 500] + good[half + 500 :], re.escape(FILE) + ".*run.pt is ")
    yield Bad("zeros in the middle", good[:half] + bytes(512) + good[half + 512 :], re.escape(FILE) + ".*run.pt is ")


def foreign(good: bytes) -> Iterator[Bad]:
    other = re.escape(FILE) + ".*run.pt is a file of another program"
    raw = {
        "text": b"epoch,loss\n1,0.5\n",
        "JSON": json.dumps({"format": 4}).encode(),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "zeros": bytes(4096),
        "random bytes": random.Random(3).randbytes(4096),
        "a pickle": pickle.dumps({"format": 4}),
        "an executable": b"\x7fELF" + bytes(200),
        "torch's file format before 1.6": saved({"format": 4}, _use_new_zipfile_serialization=False),
    }
    for name, content in raw.items():
        yield Bad(name, content, other)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("run.pt"))
    yield Bad("a tar archive", file.getvalue(), other)
    for name, compression in (("an archive of texts", zipfile.ZIP_STORED), ("compressed texts", zipfile.ZIP_DEFLATED)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as made:
            made.writestr("notes.txt", "a" * 1000)
        message = "found compressed data in" if compression else re.escape(FILE) + ".*run.pt is damaged"
        yield Bad(name, file.getvalue(), message)
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in source.infolist():
            made.writestr(entry.filename, bytes(10**7) if "/data/" in entry.filename else source.read(entry))
    yield Bad("an archive that unpacks to a thousand times its size", bomb.getvalue(), "found compressed data in")
    things = {
        "a model's state_dict": program.learner().module.state_dict(),
        "a tensor": torch.zeros(3),
        "a list": [1, 2],
        "nothing": None,
        "a number": 4,
        "a checkpoint of another library": {"state_dict": {}, "epoch": 3, "pytorch-lightning_version": "2"},
        "an empty dictionary": {},
    }
    for name, thing in things.items():
        yield Bad(name, saved(thing), PLAIN)


def programs(good: bytes, marker: Path) -> Iterator[Bad]:
    """Files that run a program if they are loaded carelessly; each would make the marker."""
    import builtins
    import os
    import shutil
    import subprocess

    touch = f"open({str(marker)!r}, 'w').close()"
    calls: dict[str, tuple[Any, ...]] = {
        "os.system": (os.system, f"touch {marker}"),
        "exec": (builtins.exec, touch),
        "eval": (builtins.eval, touch),
        "open": (builtins.open, str(marker), "w"),
        "subprocess.Popen": (subprocess.Popen, ["touch", str(marker)]),
        "os.mkdir": (os.mkdir, str(marker)),
        "shutil.copy": (shutil.copy, __file__, str(marker)),
        "Path.touch": (Path.touch, marker),
        "torch.save": (torch.save, 1, str(marker)),
    }
    for name, call in calls.items():
        for place in ("alone", "in parts", "in ranks", "in settings", "as a key"):
            content: Any = loaded(good)
            trap = Runs(*call)
            if place == "alone":
                content = trap
            elif place == "in parts":
                content["parts"]["maxl"]["trap"] = trap
            elif place == "in ranks":
                content["ranks"].append(trap)
            elif place == "in settings":
                content["progress"]["history"]["settings"]["trap"] = trap
            else:
                content[_Key(trap)] = 1
            yield Bad(f"{name} {place}", saved(content), re.escape(OBJECTS))
        yield Bad(f"{name} in a plain pickle", pickle.dumps(Runs(*call)), re.escape(FILE))


class _Key:
    """A key of a dictionary that pickles as a trap."""

    def __init__(self, trap: Runs) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return self.trap.__reduce__()


def other_formats(good: bytes) -> Iterator[Bad]:
    for found, words in ((5, "upgrade"), (99, "upgrade"), (3, "before the first release"), (0, "first release")):
        content = loaded(good) | {"format": found}
        message = rf"must be of format 4, found one of format {found} by maxl_l2l .* in .*run\.pt.*{words}"
        yield Bad(f"format {found}", saved(content), message)
    for found in ("4", 4.0, None, True, [4], -1):
        yield Bad(f"format {found!r}", saved(loaded(good) | {"format": found}), "must be of format 4, found one of")
    yield Bad("of version 9.0", saved({"format": 7, "version": "9.0"}), r"format 7 by maxl_l2l 9\.0")


def other_runs() -> Iterator[Bad]:
    """Real checkpoints of runs that differ from this one."""
    same = re.escape("`checkpoint` must be of a run with the same settings, found ")
    yield Bad("other psi", whole(maxl=program.learner([3, 2])), same + r"psi \[3, 2\] where this run has \[2, 3\]")
    yield Bad("more classes", whole(maxl=program.learner([2, 2, 3])), same + ".*psi")
    yield Bad("a wider model", whole(maxl=program.learner(width=9)), same + "parameters ")
    yield Bad("a deeper model", whole(maxl=program.learner(depth=2)), same + "parameters ")
    yield Bad("another schedule", whole(schedule="epoch"), same + "schedule epoch where this run has batch")
    yield Bad("meta_every", whole(meta_every=2), same + "meta_every 2 where this run has 1")
    yield Bad("settings", whole(settings={"fold": 3}), same + "fold 3 where this run has none")
    yield Bad("no schedulers", whole(schedulers=[]), "must hold .*scheduler 0, found .*generator_optimizer in ")
    for name, kind in (("Adam", torch.optim.Adam), ("RMSprop", torch.optim.RMSprop)):
        maxl = program.learner()
        optimizer = kind(maxl.network.parameters(), lr=0.1)
        schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]
        content = whole(maxl=maxl, optimizer=optimizer, schedulers=schedulers)
        yield Bad(f"optimizer {name}", content, same + f"optimizer {name} where this run has SGD")
    maxl = program.learner()
    groups = [{"params": [p]} for p in maxl.network.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]
    content = whole(maxl=maxl, optimizer=optimizer, schedulers=schedulers)
    yield Bad("more parameter groups", content, re.escape(FIT) + "optimizer, found in .* different number of parameter")


def altered(good: bytes, inside: bytes) -> Iterator[Bad]:
    """Checkpoints of this run in which one thing is not as it was saved."""
    nan, shape = float("nan"), torch.zeros(2, 2)
    weight = "network.module.0.weight"
    changes: list[tuple[str, tuple[Any, ...], Any, str]] = [
        ("NaN in a weight", ("parts", "maxl", weight), torch.full((8, 4), nan), FIT + "maxl, found in .* NaN"),
        ("infinity in a weight", ("parts", "maxl", weight), torch.full((8, 4), -1 / 1e-320), FIT + "maxl, .*NaN"),
        ("a weight of another shape", ("parts", "maxl", weight), shape, FIT + r"maxl, .*is \[2, 2\] .* has \[8, 4\]"),
        ("a weight of another dtype", ("parts", "maxl", weight), torch.zeros(8, 4).double(), FIT + "maxl, .*float64"),
        ("a weight that is a text", ("parts", "maxl", weight), "w", FIT + "maxl, .* a str where this run has"),
        ("a tensor more", ("parts", "maxl", "more"), shape, FIT + "maxl, .*it has more"),
        ("a learner that is a list", ("parts", "maxl"), [], FIT + "maxl, .*its state is a list"),
        ("a generator of another shape", ("parts", "maxl", "generator.body.0.weight"), shape, FIT + "maxl"),
        ("momentum of another shape", ("parts", "optimizer", "state", 0, "momentum_buffer"), shape, FIT + "optimizer"),
        ("NaN in momentum", ("parts", "optimizer", "state", 0, "momentum_buffer"), torch.full((8, 4), nan), "NaN"),
        ("momentum that is a text", ("parts", "optimizer", "state", 0, "momentum_buffer"), "m", FIT + "optimizer"),
        ("Adam without its mean", ("parts", "generator_optimizer", "state", 0), {"step": 1}, FIT + "generator_opt"),
        ("a rate that is NaN", ("parts", "optimizer", "param_groups", 0, "lr"), nan, FIT + "optimizer.*NaN"),
        ("a rate that is a text", ("parts", "optimizer", "param_groups", 0, "lr"), "0.1", FIT + "optimizer"),
        ("no groups", ("parts", "optimizer", "param_groups"), [], FIT + "optimizer"),
        ("an optimizer that is empty", ("parts", "optimizer"), {}, FIT + "optimizer, .*it lacks"),
        ("a scheduler's method replaced", ("parts", "scheduler 0", "get_lr"), "x", FIT + "scheduler 0, .*has get_lr"),
        ("a scheduler that is empty", ("parts", "scheduler 0"), {}, FIT + "scheduler 0, .*it lacks"),
        ("experience that is empty", ("parts", "experience"), {}, FIT + "experience, .*it lacks"),
        ("a distance that is a text", ("parts", "experience", "distance"), "far", FIT + "experience"),
        ("parts that are a list", ("parts",), [], CONTENT + ".*parts is a list in the place of a dict"),
        ("a part more", ("parts", "more"), {}, "must hold maxl, .*found .*more in"),
        ("progress that is a text", ("progress",), "far", CONTENT + ".*progress is a str"),
        ("steps that are a text", ("progress", "steps"), "9", CONTENT + ".*progress.steps is a str"),
        ("steps below 0", ("progress", "steps"), -1, CONTENT + ".*progress.steps is -1"),
        ("a history that is a list", ("progress", "history"), [], CONTENT + ".*progress.history is a list"),
        ("settings that are a text", ("progress", "history", "settings"), "", CONTENT + ".*settings is a str"),
        (
            "settings that hold a tensor",
            ("progress", "history", "settings", "a"),
            nan * shape,
            CONTENT + ".*settings that",
        ),
        ("settings with a pair as key", ("progress", "history", "settings", (1, 2)), 1, CONTENT + ".*settings that"),
        ("epochs that are a text", ("progress", "history", "epochs"), "2", CONTENT + ".*epochs is a str"),
        ("a record that is a number", ("progress", "history", "epochs"), [1], CONTENT + ".*record of epoch 1"),
        ("a record of epoch 5", ("progress", "history", "epochs", 0, "epoch"), 5, CONTENT + ".*record of epoch 1"),
        ("no ranks", ("ranks",), [], CONTENT + ".*ranks is empty"),
        ("ranks that are a text", ("ranks",), "0", CONTENT + ".*ranks is a str"),
        ("a rank that is a number", ("ranks", 0), 0, CONTENT + ".*ranks holds something else"),
        ("no random states", ("ranks", 0), {"inside": None}, CONTENT + ".*random states are missing"),
        ("a random state that is short", ("ranks", 0, "random", "cpu"), torch.zeros(3).byte(), CONTENT + ".*random"),
        ("a random state of zeros", ("ranks", 0, "random", "cpu"), torch.zeros(5056).byte(), CONTENT + ".*random"),
        ("a random state of Python's that is none", ("ranks", 0, "random", "python"), (3, (1,), None), CONTENT),
        ("a random state of NumPy's that is none", ("ranks", 0, "random", "numpy"), {"a": 1}, CONTENT),
        ("a version that is a number", ("version",), 1, CONTENT + ".*version is a int"),
    ]
    for name, path, value, message in changes:
        yield Bad(name, saved(_with(loaded(good), path, value)), message.replace("()", r"\(\)"))
    for name in ("version", "parts", "progress", "ranks"):
        content = loaded(good)
        del content[name]
        yield Bad(f"without {name}", saved(content), re.escape(CONTENT) + f".*{name} is missing")
    for name in ("maxl", "optimizer", "generator_optimizer", "experience"):
        content = loaded(good)
        del content["parts"][name]
        yield Bad(f"without {name}", saved(content), "must hold maxl, .*, found .* in .*run.pt")
    place = ("ranks", 0, "inside")
    inner: list[tuple[str, tuple[Any, ...], Any, str]] = [
        ("a place that is a number", place, 3, ".*place inside an epoch"),
        ("a stage that is a text", (*place, "stage"), "0", ".*place inside an epoch"),
        ("a stage that there is not", (*place, "stage"), 7, ".*stage 7 after"),
        ("a stage below 0", (*place, "stage"), -1, ".*stage -1 after"),
        (
            "a place in a meta_loader",
            (*place, "place", "meta"),
            {"start": None, "last": [], "count": 0},
            ".*meta_loader",
        ),
        ("steps that are a text", (*place, "measured", "steps"), "3", ".*stage 0 after 3 steps"),
        ("sums that are texts", (*place, "measured", "sums", "primary_loss"), "far", ".*ValueError"),
        ("a place in the data that is a text", (*place, "place"), "", ".*place inside an epoch"),
        ("batches below 0", (*place, "place", "done"), -1, ".*place in the data"),
        ("a count that is a text", (*place, "place", "main", "count"), "3", ".*place in the data"),
        ("last states that are a number", (*place, "place", "main", "last"), 1, ".*place in the data"),
        ("a beginning without random states", (*place, "place", "main", "start"), {}, ".*KeyError"),
        ("measures that are a text", (*place, "measured"), "", ".*place inside an epoch"),
        ("measures that are empty", (*place, "measured"), {}, ".*KeyError"),
    ]
    content = _with(loaded(inside), (*place, "place", "main", "count"), 10**12)
    message = "`loader` must yield the batches of the run that `checkpoint` is of, found 6 in an epoch of which 1000000"
    yield Bad("more batches than there are", saved(content), message)
    for name, path, value, message in inner:
        yield Bad(name, saved(_with(loaded(inside), path, value)), re.escape(CONTENT) + message)


def _with(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Content with another value at a place."""
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return content


def cases(marker: Path, seed: int = 0) -> Iterator[Bad]:
    """All of them."""
    numbers, good = random.Random(seed), whole()
    yield from cut_short(good, numbers)
    yield from damaged(good, numbers)
    yield from foreign(good)
    yield from programs(good, marker)
    yield from other_formats(good)
    yield from other_runs()
    yield from altered(good, whole(3, time_limit=1e-9))


def outcome(bad: Bad, folder: Path, marker: Path, earlier: bytes | None = None) -> str | None:
    """Resumes from a bad file; returns what is wrong with the answer, None if it is the right one."""
    folder.mkdir(exist_ok=True)
    (folder / "run.pt").write_bytes(bad.content)
    previous = folder / "run.pt.previous"
    previous.unlink(missing_ok=True)
    if earlier is not None:
        previous.write_bytes(earlier)
    maxl = program.learner()
    before, state = copy.deepcopy(maxl.state_dict()), torch.get_rng_state()
    try:
        start(folder, True, maxl)
    except ValueError as error:
        message = str(error)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "it was loaded"
    if not re.search(bad.message, message, re.DOTALL):
        return f"another message: {message}"
    if marker.exists():
        return "it ran a program"
    if (folder / "run.pt").read_bytes() != bad.content:
        return "it was written over"
    if not program.same(dict(maxl.state_dict()), dict(before)) or not torch.equal(torch.get_rng_state(), state):
        return "it was loaded in part"
    offers = earlier is not None and bad.name.startswith(("empty", "the first", "bit", "zeros in"))
    if offers and "rename" not in message:
        return f"no earlier checkpoint is offered: {message}"
    return None


def figures(seed: int = 0) -> dict[str, Any]:
    """Tries all files; returns ``files``, ``refused`` (with the right message), and ``wrong``, what was not by name."""
    with tempfile.TemporaryDirectory() as name:
        folder, marker = Path(name), Path(name) / "marker"
        earlier, found = whole(1), {}
        for bad in cases(marker, seed):
            found[bad.name] = outcome(bad, folder / "run", marker, earlier)
    wrong = {name: answer for name, answer in found.items() if answer is not None}
    return {"files": len(found), "refused": len(found) - len(wrong), "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(figures(), indent=1))
