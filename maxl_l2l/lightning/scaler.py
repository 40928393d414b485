"""The Trainer's gradient scaler, as a learner's steps take one."""

from typing import Any

from torch.amp import GradScaler
from torch.optim import Optimizer


class PluginScaler(GradScaler):
    """The Trainer's gradient scaler, for a learner whose optimizers' steps go through Lightning.

    In each step Lightning's precision plugin unscales, checks and updates. This class only scales each network's
    gradients just before its step, as the first step's update may have changed the scale.
    """

    def __init__(self, scaler: GradScaler) -> None:
        self._scaler = scaler

    def is_enabled(self) -> bool:
        return self._scaler.is_enabled()

    def scale(self, outputs: Any) -> Any:
        return self._scaler.scale(outputs)

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return optimizer.step()

    def update(self, new_scale: Any = None) -> None:
        if new_scale is not None:
            self._scaler.update(new_scale)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state_dict)
