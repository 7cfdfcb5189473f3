"""The regimes of the pair mixture: what a classifier's output can look like.

A regime turns noise into logits and labels; the softmax of the logits is the prediction. Noise and
the uniform `Chances` are drawn once for all regimes together, which keeps compilation short, and
logits keep tiny probabilities exact. That pairs are synthetic and semantics-free is the paper's
idea; which regimes there are, and their ranges, is ours.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edl_jax.checked import Checked, NotNegative
from edl_jax.errors import ConfigError


class Chances(NamedTuple):
    """Independent uniform draws in [0, 1), `[num_pairs]` each."""

    magnitude: jax.Array
    first: jax.Array
    second: jax.Array
    coin: jax.Array


class Regime(NamedTuple):
    """How one regime shapes its pairs.

    Attributes:
      shape: `(noise, chances) -> (logits, labels)`, with noise and logits `[num_pairs,
        num_classes]` float32 and labels `[num_pairs]` int32.
      concentration: where the noise is to be the logarithm of Gamma draws (a Dirichlet once
        normalised), their concentrations `[num_pairs]`; None for standard Gaussian noise.
    """

    shape: Callable[[jax.Array, Chances], tuple[jax.Array, jax.Array]]
    concentration: Callable[[Chances], jax.Array] | None = None


def _uniform(noise: jax.Array, chances: Chances) -> tuple[jax.Array, jax.Array]:
    """Uniform on the simplex: exponential draws, normalised."""
    # -log(Phi(z)) is an Exp(1) draw for Gaussian z.
    return _with_plausible_labels(jnp.log(-jax.scipy.special.log_ndtr(noise)), chances)


def _tempered(noise: jax.Array, chances: Chances) -> tuple[jax.Array, jax.Array]:
    """Gaussian logits over a temperature in [0.1, 10]."""
    temperature = _log_uniform(chances.magnitude, 0.1, 10.0)
    return _with_plausible_labels(noise / temperature[:, None], chances)


def _confident_correct(noise: jax.Array, chances: Chances) -> tuple[jax.Array, jax.Array]:
    """The true class holds all but a share in [1e-5, 0.3] of the mass."""
    label, _ = _two_classes(chances, noise.shape[-1])
    return _dominated_by(label, noise, chances), label


def _confident_wrong(noise: jax.Array, chances: Chances) -> tuple[jax.Array, jax.Array]:
    """A class other than the true one holds all but a share in [1e-5, 0.3] of the mass."""
    winner, label = _two_classes(chances, noise.shape[-1])
    return _dominated_by(winner, noise, chances), label


def _ambiguous(noise: jax.Array, chances: Chances) -> tuple[jax.Array, jax.Array]:
    """Two classes tie, up to 6 nats above the largest drawn; half the labels are one of them."""
    first, second = _two_classes(chances, noise.shape[-1])
    top = noise.max(axis=-1) + 6.0 * chances.magnitude
    rows = jnp.arange(noise.shape[0])
    logits = noise.at[rows, first].set(top).at[rows, second].set(top)
    # The coin's second half, stretched over [0, 1), picks a class at random.
    anywhere = _pick(2 * chances.coin - 1, noise.shape[-1])
    return logits, jnp.where(chances.coin < 0.5, first, anywhere)


def _untrained(noise: jax.Array, chances: Chances) -> tuple[jax.Array, jax.Array]:
    """Logits of deviation 0.01 to 0.5, any label."""
    logits = _log_uniform(chances.magnitude, 0.01, 0.5)[:, None] * noise
    return logits, _pick(chances.first, noise.shape[-1])


def _with_plausible_labels(logits: jax.Array, chances: Chances) -> tuple[jax.Array, jax.Array]:
    """Half of the labels follow the prediction (calibrated), half are uniform (uninformed)."""
    cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    target = chances.first * cumulative[:, -1]
    calibrated = jnp.sum(cumulative <= target[:, None], axis=-1)
    calibrated = jnp.minimum(calibrated, logits.shape[-1] - 1).astype(jnp.int32)
    uninformed = _pick(chances.second, logits.shape[-1])
    return logits, jnp.where(chances.coin < 0.5, calibrated, uninformed)


def _dominated_by(winner: jax.Array, noise: jax.Array, chances: Chances) -> jax.Array:
    """Logits whose softmax leaves a log-uniform share to the classes other than `winner`."""
    rest = _log_uniform(chances.magnitude, 1e-5, 0.3)
    is_winner = jax.nn.one_hot(winner, noise.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_winner, -jnp.inf, noise), axis=-1)
    lead = others + jnp.log1p(-rest) - jnp.log(rest)
    return jnp.where(is_winner, lead[:, None], noise)


def _log_uniform(chance: jax.Array, low: float, high: float) -> jax.Array:
    return low * (high / low) ** chance


def _pick(chance: jax.Array, num_classes: int) -> jax.Array:
    """A class for each uniform draw; draws outside [0, 1) are clipped into it."""
    return jnp.clip(chance * num_classes, 0, num_classes - 1).astype(jnp.int32)


def _two_classes(chances: Chances, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Two different classes for each pair, uniform over all ordered choices."""
    first = _pick(chances.first, num_classes)
    step = 1 + _pick(chances.second, num_classes - 1)
    return first, (first + step) % num_classes


REGIMES: dict[str, Regime] = {
    "uniform": Regime(_uniform),
    # Dirichlet with a concentration in [0.03, 1]: mass on few classes.
    "sparse": Regime(
        _with_plausible_labels, lambda chances: _log_uniform(chances.magnitude, 0.03, 1.0)
    ),
    "tempered": Regime(_tempered),
    "confident_correct": Regime(_confident_correct),
    "confident_wrong": Regime(_confident_wrong),
    "ambiguous": Regime(_ambiguous),
    "untrained": Regime(_untrained),
}


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
        if not any(dataclasses.astuple(self)):
            raise ConfigError("Mixture has only zero weights; give a regime a positive weight.")

    def shares(self) -> tuple[float, ...]:
        """The weights in the order of `REGIMES`, scaled to sum to 1."""
        weights = [getattr(self, name) for name in REGIMES]
        parts = [weight / max(weights) for weight in weights]  # the weights' sum may overflow
        return tuple(part / sum(parts) for part in parts)
