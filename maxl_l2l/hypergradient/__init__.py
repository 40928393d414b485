"""The hypergradient: the derivative of the meta loss after one inner step with respect to the generator.

This package has the methods that compute it, exactly or by finite differences, and their parts: the passes on each
micro-batch, the forward-mode pass, and the results of earlier passes that it reuses. It works on callables and named
parameters, and knows nothing of classes or images.
"""

from .batch_passes import NetworkPass, backward, summary
from .bilevel import Batch, Bilevel, Experience, Objective, Pass, plain_pass
from .compilation import CompiledPass, compile_options, passes_of
from .fallbacks import differentiate
from .gradients import Options
from .methods import METHODS
from .micro_batches import joined, num_samples, split
from .results import ADVICE, Derivatives, Origin, StepResult
