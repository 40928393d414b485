"""Learning-rate schedulers that Lightning has configured, stepped where a step of two networks is optimized by hand."""

from collections.abc import Mapping

import lightning as L
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def step_schedulers(
    module: L.LightningModule,
    interval: str,
    count: int,
    monitor: str,
    former: Mapping[str, Tensor],
    plateau: bool = False,
) -> None:
    """Steps the schedulers whose turn it is.

    Args:
        module: Whose trainer has them.
        interval: ``"step"`` or ``"epoch"``, of which one has just ended.
        count: How many of these have ended.
        monitor: The metric of a ReduceLROnPlateau that names none itself.
        former: Metrics of the run that this one goes on from.
        plateau: Whether, after an epoch, those that need a metric have their turn, rather than the others.
    """
    for config in module.trainer.lr_scheduler_configs:
        needs_metric = isinstance(config.scheduler, ReduceLROnPlateau)
        later = interval == "epoch" and needs_metric != plateau
        if config.interval == interval and count % config.frequency == 0 and not later:
            metrics = {**former, **module.trainer.callback_metrics}
            module.lr_scheduler_step(
                config.scheduler, _metric(config.scheduler, monitor, metrics) if needs_metric else None
            )


def _metric(scheduler: LRScheduler, monitor: str, metrics: Mapping[str, Tensor]) -> Tensor:
    name = getattr(scheduler, "monitor", monitor)
    if name not in metrics:
        raise ValueError(
            f"`monitor` must be a metric that is logged before ReduceLROnPlateau is stepped, found {name!r}; "
            f"logged are {', '.join(metrics) or 'none'}. Name one of these, or validate in every epoch."
        )
    return metrics[name]
