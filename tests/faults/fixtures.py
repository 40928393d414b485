"""Files as each version of this package wrote them, so that later ones can show that they read them.

``PYTHONPATH=tests python -m faults.fixtures`` writes those of the version at hand, once it is to be released.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import MAXL, GeneratedLabels, RandomLabels, SingleTask, __version__, fit

from . import program

FOLDER = Path(__file__).parents[1] / "fixtures"
FINISHED, INSIDE = "run.pt", "inside.pt"


def train(maxl: MAXL, epochs: int, path: Path | None = None, **options: Any) -> Any:
    """The run that the checkpoints are of, without random numbers in its data."""
    x = program.Noisy().x
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), program.BATCH, shuffle=True)
    return fit(maxl, loader, epochs, **program.parts(maxl), seed=1, progress=False, checkpoint=path, **options)


def outputs(maxl: MAXL) -> dict[str, torch.Tensor]:
    """What a learner says of some samples."""
    maxl.eval()
    x = torch.linspace(-1, 1, 20).view(5, 4)
    with torch.no_grad():
        return {"primary": maxl(x), "labels": maxl.generator(x, torch.tensor([0, 1, 1, 0, 1]))}


def whole() -> dict[str, Any]:
    """Objects as pickle saves them, which names their classes and the modules that have them."""
    maxl = program.learner()
    history = train(maxl, 1)
    maxl.hypergradient(*batch(), method="finite-difference")
    maxl.zero_grad()
    return {"maxl": maxl, "history": history, "sources": [SingleTask(), RandomLabels(1), GeneratedLabels()]}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of eight samples."""
    x = program.Noisy().x[: program.BATCH]
    return x, (x[:, 0] > 0).long()


def write(folder: Path) -> None:
    """Writes the state of a trained learner, what it says, and checkpoints after an epoch and inside one."""
    folder.mkdir(parents=True, exist_ok=True)
    maxl = program.learner()
    train(maxl, 1, folder / FINISHED)
    torch.save({"state": maxl.state_dict(), "outputs": outputs(maxl)}, folder / "learner.pt")
    train(program.learner(), 2, folder / INSIDE, time_limit=1e-9)
    torch.save(whole(), folder / "whole.pt")
    for left in (*folder.glob(".*.lock"), *folder.glob("*.previous")):
        left.unlink()


if __name__ == "__main__":
    write(FOLDER / __version__)
    print(f"written: {FOLDER / __version__}")
