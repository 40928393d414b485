"""Progress: a bar that counts batches and shows what the epoch has measured so far."""

import time
from typing import Any

from ..extras import missing
from ..metrics import Measured

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


SHOWN = (
    "test_accuracy",
    "accuracy",
    "sub_classes",
    "primary_loss",
    "auxiliary_loss",
    "meta_loss",
    "label_entropy",
    "nmi_within",
    "gradient_cosine",
    "test_loss",
)
"""What the progress bar shows, the most important first: a narrow terminal cuts the rest off."""


def progress_wanted(progress: bool | None) -> bool:
    """Returns whether to show a bar: as asked, or if tqdm is installed; raises ImportError if asked without tqdm."""
    if progress and tqdm is None:
        raise missing("tqdm", "progress=True", extra="progress")
    return tqdm is not None if progress is None else progress


class Bar:
    """A progress bar that counts batches and shows the means of the epoch so far; silent if not wanted."""

    def __init__(self, wanted: bool, total: int | None, initial: int) -> None:
        self.bar = tqdm(total=total, initial=initial, unit="batch", dynamic_ncols=True) if wanted else None
        self.shown = 0.0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, measured: Measured) -> None:
        """Counts a batch, and now and then shows the means so far."""
        if self.bar is not None:
            self.bar.update()
            # Reading the means waits for the device, so not at every batch.
            if time.perf_counter() > self.shown + 1:
                self.show(measured.values())

    def show(self, record: dict[str, Any]) -> None:
        """Shows a record."""
        if self.bar is not None:
            values = {name: record[name] for name in SHOWN if name in record}
            self.bar.set_postfix({name: f"{v:.3f}" if isinstance(v, float) else v for name, v in values.items()})
            self.shown = time.perf_counter()
