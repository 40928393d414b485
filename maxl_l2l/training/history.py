"""The history of a run: one record for each epoch, saved as JSON."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import replace_file


@dataclass
class History:
    """What a run measured.

    Attributes:
        settings: How the run was made: plain data.
        epochs: One record for each epoch, in order. Losses are means over the epoch's samples, accuracies fractions;
            see :func:`fit` for the keys.

    Example:
        >>> history = History(epochs=[{"epoch": 1, "primary_loss": 0.7}, {"epoch": 2, "primary_loss": 0.4}])
        >>> history["primary_loss"]
        [0.7, 0.4]
    """

    settings: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, key: str) -> list[Any]:
        """Returns one quantity over the epochs.

        Raises:
            KeyError: No epoch has recorded it.
        """
        if not any(key in record for record in self.epochs):
            known = ", ".join(self.epochs[-1]) if self.epochs else "nothing yet"
            advice = "; give fit a test_loader" if key.startswith("test_") else ""
            raise KeyError(f"the history has no {key!r}; it has recorded {known}{advice}")
        return [record.get(key) for record in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    def save(self, path: str | Path) -> None:
        """Writes the history as JSON, replacing the file at once."""
        text = json.dumps({"settings": self.settings, "epochs": self.epochs}, indent=1)
        replace_file(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> "History":
        """Reads a history written by :meth:`save`.

        Raises:
            OSError: The file can't be read.
            ValueError: It is no history.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            settings, epochs = content["settings"], content["epochs"]
        except (ValueError, TypeError, KeyError) as error:
            raise _no_history(path) from error
        if not isinstance(settings, dict) or not isinstance(epochs, list):
            raise _no_history(path)
        return cls(settings, epochs)


def _no_history(path: str | Path) -> ValueError:
    return ValueError(f"`path` must be a file that History.save wrote, found {path}, which is none. Name another file.")
