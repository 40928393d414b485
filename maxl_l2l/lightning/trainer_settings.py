"""The settings of a Trainer that do not reach a learner, and what to write in their place."""

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy


def check_trainer(trainer: L.Trainer) -> None:
    """Raises ValueError for settings of the Trainer that do not reach the learner."""
    for setting, found, argument in (
        ("gradient_clip_val", trainer.gradient_clip_val or 0, "max_grad_norm"),
        ("accumulate_grad_batches", trainer.accumulate_grad_batches - 1, "accumulate"),
    ):
        if found:
            value = getattr(trainer, setting)
            raise ValueError(
                f"`{setting}` must be left out of the Trainer, found {value}: the generator learns through whole "
                f"steps, clipping included. Write LightningMAXL(maxl, {argument}={value})."
            )
    strategy = trainer.strategy
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            "`strategy` must leave the parameters whole, on one device or on each with 'ddp', found "
            f"{type(strategy).__name__}. Write Trainer(strategy='ddp')."
        )
