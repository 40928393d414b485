"""Lightning: a learner as a LightningModule, which Lightning's Trainer trains, evaluates, logs and saves."""

from .module import LightningMAXL
