"""The configuration of the synthetic tasks on which losses are tried; every default is ours."""

import dataclasses

from edl_jax.errors import ConfigError
from edl_jax.validation import check_range, check_types, check_whole, is_finite


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Which problems are drawn, and how a classifier learns them. Checked when made.

    Raises:
      ConfigError: naming the first field that cannot work, its value and what was expected.
    """

    num_tasks: int = 8
    """Problems drawn anew for every generation, each learned with every loss."""
    num_classes: int = 10
    """Classes of a problem."""
    num_features: int = 16
    """Features of an example."""
    train_examples: int = 1024
    """Training examples of a problem."""
    test_examples: int = 1024
    """Held-out examples of a problem, on which the error is measured."""
    max_label_noise: float = 0.2
    """Greatest share of wrong training labels; each problem's own is uniform up to it."""
    hidden: int = 32
    """Width of the classifier's hidden layer."""
    steps: int = 200
    """Steps of the training."""
    batch_size: int = 64
    """Examples in a step."""
    learning_rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Peak learning rates; a loss is scored at the one that suits it best over all problems."""

    def __post_init__(self) -> None:
        check_types(self)
        for field in ("num_tasks", "train_examples", "steps"):
            check_whole(self, field, 1)
        # Examples are normalised by one another's statistics: one alone would be all zeros.
        for field in ("test_examples", "batch_size", "num_classes", "num_features", "hidden"):
            check_whole(self, field, 2)
        check_range(self, "max_label_noise", 0, 1)
        rates = self.learning_rates
        if not rates or not all(rate > 0 and is_finite(rate) for rate in rates):
            raise ConfigError(
                f"TaskConfig.learning_rates is {rates!r}; expected one or more positive numbers."
            )
