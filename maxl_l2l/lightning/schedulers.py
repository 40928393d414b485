"""Learning-rate schedulers that Lightning has configured, stepped by the module, as manual optimization requires."""

from collections.abc import Mapping

import lightning as L
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def step_schedulers(
    module: L.LightningModule,
    interval: str,
    count: int,
    monitor: str,
    previous: Mapping[str, Tensor],
    plateau: bool = False,
) -> None:
    """Steps the schedulers of a module's trainer that are due.

    Args:
        module: The module.
        interval: ``"step"`` or ``"epoch"``, of which one has just ended.
        count: How many of these have ended.
        monitor: The metric of a ReduceLROnPlateau that names none itself.
        previous: Metrics of the run that this one was resumed from.
        plateau: Whether, after an epoch, to step the schedulers that need a metric, rather than the others.
    """
    for config in module.trainer.lr_scheduler_configs:
        needs_metric = isinstance(config.scheduler, ReduceLROnPlateau)
        later = interval == "epoch" and needs_metric != plateau
        if config.interval == interval and count % config.frequency == 0 and not later:
            metrics = {**previous, **module.trainer.callback_metrics}
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
