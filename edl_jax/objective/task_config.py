"""The configuration of the synthetic tasks on which losses are tried; every default is ours."""

import dataclasses
from typing import Annotated

from annotated_types import Ge, Le, MinLen

from edl_jax.checked import Checked, Count, Positive

# Examples are normalised by one another's statistics: one alone would be all zeros.
_Several = Annotated[int, Ge(2)]


@dataclasses.dataclass(frozen=True)
class TaskConfig(Checked):
    """Which problems are drawn, and how a classifier learns them.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    num_tasks: Count = 8
    """Problems drawn anew for every generation, each learned with every loss."""
    num_classes: _Several = 10
    """Classes of a problem."""
    num_features: _Several = 16
    """Features of an example."""
    train_examples: Count = 1024
    """Training examples of a problem."""
    test_examples: _Several = 1024
    """Held-out examples of a problem, on which the error is measured."""
    max_label_noise: Annotated[float, Ge(0), Le(1)] = 0.2
    """Greatest share of wrong training labels; each problem's own is uniform up to it."""
    hidden: _Several = 32
    """Width of the classifier's hidden layer."""
    steps: Count = 200
    """Steps of the training."""
    batch_size: _Several = 64
    """Examples in a step."""
    learning_rates: Annotated[tuple[Positive, ...], MinLen(1)] = (0.1, 0.3, 1.0)
    """Peak learning rates; a loss is scored at the one that suits it best over all problems."""
