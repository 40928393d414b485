"""The two networks: the multi-task network around the user's model, and the label generator.

The model keeps its class and its parameters; an auxiliary head is attached to the features that enter its own head.
This package finds that head, makes fresh copies of layers and models, and knows how models are called.
"""

from .calls import logits_of, two_outputs
from .heads import resolve_head
from .label_generator import LabelGenerator, default_generator
from .multi_task import MultiTaskNetwork, multi_task_network
