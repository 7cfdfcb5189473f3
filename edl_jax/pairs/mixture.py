"""How much of each regime the synthetic pairs hold."""

import dataclasses

from edl_jax.checked import Checked, NotNegative
from edl_jax.errors import ConfigError
from edl_jax.pairs.regimes import REGIMES


@dataclasses.dataclass(frozen=True)
class Mixture(Checked):
    """Weights of the regimes, relative to one another; a weight of 0 leaves a regime out.

    Raises:
      ConfigError: if a weight is negative or not finite, or all are zero.
    """

    uniform: NotNegative = 1.0
    """Weight of predictions uniform on the simplex."""
    sparse: NotNegative = 1.0
    """Weight of predictions with their mass on few classes."""
    tempered: NotNegative = 1.0
    """Weight of Gaussian logits over a random temperature."""
    confident_correct: NotNegative = 1.0
    """Weight of predictions sure of the true class."""
    confident_wrong: NotNegative = 1.0
    """Weight of predictions sure of a wrong class."""
    ambiguous: NotNegative = 1.0
    """Weight of predictions where two classes tie."""
    untrained: NotNegative = 1.0
    """Weight of near-uniform predictions, as at initialisation."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
