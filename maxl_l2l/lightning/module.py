"""Lightning: a learner as a LightningModule, which Lightning's Trainer trains, evaluates, logs and saves."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..checks import check_choice, check_count, check_kind, some
from ..distributed import Ranks
from ..extras import missing
from ..hypergradient import StepResult, joined
from ..learners import AuxiliaryLabelGenerator
from ..metrics import LabelMeter, Metrics, accuracy, hierarchy_of, warn_of_collapse
from ..networks import logits_of
from ..passes import cuda_devices
from ..sources import GeneratedLabels, LabelSource
from ..training import SHOWN, given_labels, moved, scalars

try:
    import lightning as L
except ImportError as error:
    raise missing("lightning", "LightningMAXL") from error

from .scaler import PluginScaler
from .schedulers import step_schedulers
from .trainer_settings import check_trainer

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
LOGGED = ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "hypergradient_norm")
SAVED = "maxl_l2l"
"""The key of a checkpoint that holds what Lightning would not save."""


class LightningMAXL(L.LightningModule):
    """Trains a learner by Lightning's Trainer: ``Trainer(max_epochs=30).fit(LightningMAXL(MAXL(model, psi)), loader)``.

    Batches are ``(x, y)``, or ``(x, y, label)`` from ``source.label(dataset, psi)``. Pass loaders to the Trainer as
    ``{"train": loader, "meta": meta_loader}`` to compute the meta loss on other data; Lightning repeats the shorter one
    until the longer one ends.

    Means over an epoch are logged under the names of :func:`~maxl_l2l.training.fit`: ``primary_loss``,
    ``auxiliary_loss``, ``meta_loss``, ``regularizer``, ``hypergradient_norm``, ``accuracy``, ``val_loss``,
    ``val_accuracy``, ``test_loss``, ``test_accuracy``, and what metrics ask for, per primary class as
    ``sub_classes_per_class/3``. Also logged are ``loss``, the multi-task loss of each step, and, with a gradient
    scaler, ``skipped``, the number of steps that it skipped. ``training_step`` returns the fields of
    :class:`~maxl_l2l.hypergradient.StepResult`, for callbacks.

    Lightning counts the steps of each optimizer: ``trainer.global_step``, ``max_steps`` and ``every_n_train_steps``
    advance by 2 with a step of both networks.

    Checkpoints also hold torch's random state: a run resumed from the end of an epoch equals an uninterrupted one, if
    its data order depends on that state alone. A subclass that overrides a hook must call ``super()``'s.

    Args:
        maxl: The learner. It is trained in place, and so is the user's model in it, ``maxl.module``.
        optimizer: Makes the network's optimizer from its parameters; the paper's if None, SGD with ``maxl.lr``.
        generator_optimizer: Makes the generator's, if it is to be trained; the paper's if None, SGD 1e-3 with weight
            decay 5e-4.
        scheduler: Makes a learning-rate scheduler from the network's optimizer; None for none.
        generator_scheduler: Likewise from the generator's.
        interval: Whether these are stepped after each ``"epoch"`` or each ``"step"``. Schedulers that an overridden
            ``configure_optimizers`` returns may each have an ``interval`` and a ``frequency``.
        monitor: Name of the logged metric for a ReduceLROnPlateau that has no ``monitor`` itself.
        source: Where the auxiliary labels come from; :class:`~maxl_l2l.sources.GeneratedLabels` if None.
        method: As in :meth:`AuxiliaryLabelGenerator.step`, for source None; so are epsilon and max_grad_norm.
        meta_every: Train the generator only at every n-th step, beginning with the first of each epoch.
        accumulate: Batches for each step, with the result of one large batch, BatchNorm excepted; those that remain at
            the end of an epoch make a step too.
        metrics: As in :func:`~maxl_l2l.training.fit`, without the speed: use Lightning's ThroughputMonitor.

    Raises:
        TypeError, ValueError: An argument does not fit; or, when training starts, a setting of the Trainer.

    Example:
        >>> maxl = MAXL(nn.Linear(8, 2), psi=[3, 3])
        >>> module = LightningMAXL(maxl, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
        >>> module(torch.randn(4, 8)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        maxl: AuxiliaryLabelGenerator,
        optimizer: OptimizerFactory | None = None,
        generator_optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        generator_scheduler: SchedulerFactory | None = None,
        *,
        interval: str = "epoch",
        monitor: str = "val_loss",
        source: LabelSource | None = None,
        method: str = "forward",
        epsilon: float | None = None,
        meta_every: int = 1,
        accumulate: int = 1,
        max_grad_norm: float | None = None,
        metrics: bool | Metrics = False,
    ) -> None:
        super().__init__()
        check_kind(maxl, AuxiliaryLabelGenerator, "maxl", "Wrap the model first: MAXL(model, psi).")
        check_choice(interval, ("epoch", "step"), "interval", "It says when schedulers are stepped")
        check_count(meta_every, "meta_every", "Use 1 to train the generator at every step.")
        check_count(accumulate, "accumulate", "Use 1 for a step with each batch.")
        for name, factory in {"optimizer": optimizer, "generator_optimizer": generator_optimizer}.items():
            if factory is not None and not callable(factory):
                raise TypeError(
                    f"`{name}` must be a function that makes one from parameters, found {type(factory).__name__}. "
                    f"Write {name}=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)."
                )
        if source is not None:
            check_kind(source, LabelSource, "source", "Pass one such as GeneratedLabels().")
            if method != "forward":
                raise ValueError(
                    f"`method` must be left out if there is a `source`, found {method!r}. "
                    "Write source=GeneratedLabels(method=...)."
                )
        self.automatic_optimization = False
        self.save_hyperparameters(
            "interval", "monitor", "method", "epsilon", "meta_every", "accumulate", "max_grad_norm"
        )
        self.maxl = maxl
        self.source = source or GeneratedLabels(method)
        self.interval, self.monitor = interval, monitor
        self.meta_every, self.accumulate = meta_every, accumulate
        self.max_grad_norm, self.epsilon = max_grad_norm, epsilon
        self._factories = (
            (optimizer or partial(SGD, lr=maxl.lr), scheduler),
            (generator_optimizer or partial(SGD, lr=1e-3, weight_decay=5e-4), generator_scheduler),
        )
        self.metrics = Metrics.of(metrics)
        self._labels: LabelMeter | None = None
        self._records: list[dict[str, Any]] = []
        self._waiting: list[Any] = []
        self._resumed: dict[str, Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output."""
        return self.maxl(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        """Makes the network's optimizer, then the generator's if it is to be trained, with their schedulers."""
        configured = []
        for network, (make_optimizer, make_scheduler) in zip(self._trained(), self._factories):
            found: dict[str, Any] = {"optimizer": make_optimizer(network.parameters())}
            if make_scheduler is not None:
                scheduler = make_scheduler(found["optimizer"])
                found["lr_scheduler"] = {"scheduler": scheduler, "interval": self.interval}
            configured.append(found)
        return configured

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any] | None:
        """Takes a step of both networks, once there are as many batches as it needs."""
        last = self.trainer.is_last_batch
        self._waiting.append(batch)
        if len(self._waiting) < self.accumulate and not last:
            return None
        batches, self._waiting, self._resumed = self._waiting, [], None
        number = batch_idx // self.accumulate
        result = self._step(batches, number)
        self._schedule("step", number + 1)
        if last:  # not in a later hook: validation comes before it, and may write a checkpoint
            self._schedule("epoch", self.trainer.current_epoch + 1)
        return result

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs loss and accuracy of the model."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logs loss and accuracy of the model."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, *indices: int) -> Any:
        """Returns the model's own output for x, which the batch is or begins with."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch)

    def configure_callbacks(self) -> Any:
        """Adds none; it is the only hook before Lightning's own check of the Trainer, whose advice would mislead."""
        if self.trainer.state.fn == "fit":
            check_trainer(self.trainer)
        return super().configure_callbacks()

    def on_fit_start(self) -> None:
        """Checks the optimizers, connects the processes, and restores what Lightning does not restore itself."""
        found, wanted = len(self.trainer.optimizers), len(self._trained())
        if found < wanted:
            raise ValueError(
                f"`configure_optimizers` must return {wanted} optimizers, of maxl.network and of maxl.generator, "
                f"found {found}. Return them in a list, in this order."
            )
        self._waiting, self._records, self._labels = [], [], None
        if self.trainer.world_size > 1:
            self.maxl.distribute()
        else:
            self.maxl.ranks = Ranks()  # of an earlier run
        if self.trainer.ckpt_path is None:
            self._resumed = None
        if self._resumed is not None:
            self.maxl.experience.load_state_dict(self._resumed["experience"])
            self._records = list(self._resumed.get("records", []))
        self._restore_random()

    def on_train_epoch_end(self) -> None:
        """Logs statistics of the labels, and steps the schedulers that need a metric of the validation."""
        self._log_labels()
        self._restore_random()  # for a run resumed from a checkpoint that validation wrote, after the last batch
        self._waiting = []
        self.maxl.end_epoch()
        self._schedule("epoch", self.trainer.current_epoch + 1, plateau=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds every process's random states, what the first steps found out, and the metrics that schedulers need."""
        states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda_devices(self.maxl))]
        gather = self.trainer.strategy.all_gather
        checkpoint[SAVED] = {
            "random": [gather(state.to(self.device)).view(-1, len(state)).cpu() for state in states],
            "experience": self.maxl.experience.state_dict(),
            "metrics": dict(self.trainer.callback_metrics),
            "records": self._records,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps these until the resumed run starts."""
        self._resumed = checkpoint.get(SAVED)

    def _restore_random(self) -> None:
        if self._resumed is not None:
            # Clones: set_rng_state (torch 2.15) does not see where in its storage a tensor begins, and crashes.
            first, *others = (states[self.global_rank % len(states)].clone() for states in self._resumed["random"])
            torch.set_rng_state(first)
            for device, state in zip(cuda_devices(self.maxl), others):
                torch.cuda.set_rng_state(state, device)

    def _measure_labels(self, batch: Any, result: StepResult) -> None:
        """Adds the labels of a step to the statistics, if there are metrics."""
        hierarchy = None if self.metrics is None else hierarchy_of(self.maxl)
        if hierarchy is None:
            return
        if self._labels is None:  # here, as no hook runs at the start of an epoch that is resumed inside
            self._labels = LabelMeter(hierarchy, self.device)
        given = given_labels(batch, self.source.num_elements)
        self._labels.add(result.targets, batch[1], result.auxiliary_outputs, given)

    def _log_labels(self) -> None:
        """Logs the epoch's statistics of labels, and warns if labels have collapsed or stayed uniform."""
        if self._labels is None or self.metrics is None:
            return
        self._labels.join(self.maxl.ranks)
        found, hierarchy, self._labels = self._labels.values(), self._labels.hierarchy, None
        for name, value in scalars(found).items():
            self.log(name, value, prog_bar=name in SHOWN and name != "sub_classes", sync_dist=True)
        self._records.append(found)
        if self.source.learns_from_meta_gradient and self.global_rank == 0:
            warn_of_collapse(self._records, hierarchy, self.metrics.patience)

    def _trained(self) -> tuple[nn.Module, ...]:
        return (self.maxl.network, self.maxl.generator)[: 1 + self.source.trains_generator]

    def _step(self, batches: list[Any], number: int) -> dict[str, Any]:
        """Takes the step of this number in an epoch, with one of the generator at every ``meta_every``-th."""
        turn = self.source.trains_generator and number % self.meta_every == 0
        batch = self._joined(batches, "train", 3 if self.metrics is None else 4)
        meta_batch = self._joined(batches, "meta", 2)
        found: Any = self.optimizers()
        optimizers: list[Any] = found if isinstance(found, list) else [found]
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        options = {
            "micro_batches": len(batches) if len(batches) > 1 else None,
            "max_grad_norm": self.max_grad_norm,
            "scaler": None if scaler is None else PluginScaler(scaler),
            "epsilon": self.epsilon if turn else None,
        }
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        every = None if self.metrics is None else self.metrics.gradient_cosine
        if every is not None and number % every == 0:
            cosine = self.source.gradient_cosine(self.maxl, batch, len(batches))
            self._log(batch[1], {"gradient_cosine": cosine}, prog_bar=True)
        if turn:
            result = self.source.step(self.maxl, batch, optimizers[0], optimizers[1], meta_batch, **given)
        else:
            result = self.source.network_step(self.maxl, batch, optimizers[0], **given)
        y, loss = batch[1], result.primary_loss + (0 if result.auxiliary_loss is None else result.auxiliary_loss)
        self.log("loss", loss, prog_bar=True, batch_size=len(y))
        skipped = ("meta_loss", "hypergradient_norm") if result.skipped else ()  # where these are not finite
        self._log(y, {name: getattr(result, name) for name in LOGGED if name not in skipped})
        self._log(y, {"accuracy": None if result.outputs is None else accuracy(result.outputs, y)}, prog_bar=True)
        self._measure_labels(batch, result)
        if scaler is not None:
            share = result.skipped / self.trainer.world_size  # all processes skip together
            self.log("skipped", share, on_step=False, on_epoch=True, reduce_fx="sum", sync_dist=True)
        return {name: value for name, value in result._asdict().items() if value is not None}

    def _joined(self, batches: list[Any], name: str, most: int) -> Any:
        """Joins the training or the meta batches, each cut to so many elements; None if there are none."""
        found = [_part(batch, name) for batch in batches]
        return None if found[0] is None else joined([moved(batch, self.device)[:most] for batch in found])

    def _evaluate(self, batch: Any, stage: str) -> None:
        x, y = moved(batch, self.device)[:2]
        self.maxl.check_batch(x, y)
        outputs = logits_of(self(x))
        found = {"loss": self.maxl.objective.primary(outputs, y), "accuracy": accuracy(outputs, y)}
        self._log(y, {f"{stage}_{name}": value for name, value in found.items()}, prog_bar=True)

    def _log(self, y: Tensor, values: Mapping[str, Tensor | None], prog_bar: bool = False) -> None:
        """Logs means over the samples of an epoch, of all processes."""
        found = {name: value for name, value in values.items() if value is not None}
        self.log_dict(found, prog_bar=prog_bar, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))

    def _schedule(self, interval: str, count: int, plateau: bool = False) -> None:
        """Steps the schedulers that are due, see :func:`step_schedulers`."""
        step_schedulers(self, interval, count, self.monitor, (self._resumed or {}).get("metrics", {}), plateau)


def _part(batch: Any, name: str) -> Any:
    if not isinstance(batch, Mapping):
        return batch if name == "train" else None
    if "train" not in batch:
        raise TypeError(
            "`train_dataloaders` must yield batches (x, y), or dictionaries of these under 'train' and 'meta', found a "
            f"dictionary with {some([repr(key) for key in batch])}. Let collate_fn return (x, y); x may be a mapping."
        )
    return batch.get(name)
