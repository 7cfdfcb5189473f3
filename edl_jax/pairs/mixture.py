"""How much of each regime the synthetic pairs hold."""

import dataclasses

from edl_jax.errors import ConfigError
from edl_jax.pairs.regimes import REGIMES
from edl_jax.validation import check_range, check_types


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Weights of the regimes, relative to one another; a weight of 0 leaves a regime out.

    Raises:
      ConfigError: if a weight is negative or not finite, or all are zero.
    """

    uniform: float = 1.0
    """Weight of predictions uniform on the simplex."""
    sparse: float = 1.0
    """Weight of predictions with their mass on few classes."""
    tempered: float = 1.0
    """Weight of Gaussian logits over a random temperature."""
    confident_correct: float = 1.0
    """Weight of predictions sure of the true class."""
    confident_wrong: float = 1.0
    """Weight of predictions sure of a wrong class."""
    ambiguous: float = 1.0
    """Weight of predictions where two classes tie."""
    untrained: float = 1.0
    """Weight of near-uniform predictions, as at initialisation."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in dataclasses.asdict(self):
            check_range(self, name, 0)
        if sum(dataclasses.asdict(self).values()) == 0:
            raise ConfigError(
                "Mixture has only zero weights; give at least one regime a positive weight "
                f"({', '.join(REGIMES)})."
            )

    def shares(self) -> tuple[float, ...]:
        """The weights in the order of `REGIMES`, scaled to sum to 1."""
        weights = [getattr(self, name) for name in REGIMES]
        parts = [weight / max(weights) for weight in weights]  # the weights' sum may overflow
        return tuple(part / sum(parts) for part in parts)
