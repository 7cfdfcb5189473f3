"""The regimes of the pair mixture: what a classifier's output can look like.

A regime shapes what was drawn for its pairs into logits `[num_pairs, num_classes]`, whose softmax
is the prediction, and labels `[num_pairs]` int32.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from edl_jax.checked import Checked, NotNegative
from edl_jax.errors import ConfigError

Outputs = tuple[jax.Array, jax.Array]


class Draws(NamedTuple):
    """What is random of a regime's pairs, drawn for all regimes together: compiling is shorter."""

    noise: jax.Array  # standard Gaussian, `[num_pairs, num_classes]`; without rows for `sparse`
    magnitude: jax.Array  # uniform in [0, 1) and `[num_pairs]`, as are the next three
    first: jax.Array
    second: jax.Array
    coin: jax.Array
    key: jax.Array  # for noise of another kind; one regime may use it


def uniform(draws: Draws) -> Outputs:
    """Uniform on the simplex: exponential draws, normalised."""
    # -log(Phi(z)) is an Exp(1) draw for Gaussian z.
    return _with_plausible_labels(jnp.log(-jax.scipy.special.log_ndtr(draws.noise)), draws)


def sparse(draws: Draws) -> Outputs:
    """Dirichlet, which is Gamma draws normalised: mass on few classes."""
    concentration = _log_uniform(draws.magnitude, 0.03, 1.0)[:, None]
    shape = (len(concentration), draws.noise.shape[-1])
    logits = jax.random.loggamma(draws.key, concentration, shape, jnp.float32)
    return _with_plausible_labels(logits, draws)


def tempered(draws: Draws) -> Outputs:
    """Gaussian logits over a temperature."""
    temperature = _log_uniform(draws.magnitude, 0.1, 10.0)
    return _with_plausible_labels(draws.noise / temperature[:, None], draws)


def confident_correct(draws: Draws) -> Outputs:
    """The true class holds all but a log-uniform share of the mass."""
    winner, _ = _two_classes(draws)
    rest = _log_uniform(draws.magnitude, 1e-5, 0.3)
    is_winner = jax.nn.one_hot(winner, draws.noise.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(is_winner, -jnp.inf, draws.noise), axis=-1)
    lead = others + jnp.log1p(-rest) - jnp.log(rest)
    return jnp.where(is_winner, lead[:, None], draws.noise), winner


def confident_wrong(draws: Draws) -> Outputs:
    """As sure, of another class than the true one."""
    return confident_correct(draws)[0], _two_classes(draws)[1]


def ambiguous(draws: Draws) -> Outputs:
    """Two classes tie, up to 6 nats above the largest drawn; half the labels are one of them."""
    first, second = _two_classes(draws)
    top = draws.noise.max(axis=-1) + 6.0 * draws.magnitude
    rows = jnp.arange(len(top))
    logits = draws.noise.at[rows, first].set(top).at[rows, second].set(top)
    # The coin's second half, stretched over [0, 1), picks a class at random.
    anywhere = _pick(2 * draws.coin - 1, logits.shape[-1])
    return logits, jnp.where(draws.coin < 0.5, first, anywhere)


def untrained(draws: Draws) -> Outputs:
    """Logits of a small deviation, any label."""
    logits = _log_uniform(draws.magnitude, 0.01, 0.5)[:, None] * draws.noise
    return logits, _pick(draws.first, logits.shape[-1])


_EVERY = uniform, sparse, tempered, confident_correct, confident_wrong, ambiguous, untrained
REGIMES = {regime.__name__: regime for regime in _EVERY}


def _with_plausible_labels(logits: jax.Array, draws: Draws) -> Outputs:
    """Half of the labels follow the prediction (calibrated), half are uniform (uninformed)."""
    cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    below = jnp.sum(cumulative <= draws.first[:, None] * cumulative[:, -1:], axis=-1)
    calibrated = jnp.minimum(below, logits.shape[-1] - 1).astype(jnp.int32)
    uninformed = _pick(draws.second, logits.shape[-1])
    return logits, jnp.where(draws.coin < 0.5, calibrated, uninformed)


def _log_uniform(chance: jax.Array, low: float, high: float) -> jax.Array:
    return low * (high / low) ** chance


def _pick(chance: jax.Array, num_classes: int) -> jax.Array:
    """A class for each uniform draw; draws outside [0, 1) are clipped into it."""
    return jnp.clip(chance * num_classes, 0, num_classes - 1).astype(jnp.int32)


def _two_classes(draws: Draws) -> tuple[jax.Array, jax.Array]:
    """Two different classes for each pair, uniform over all ordered choices."""
    num_classes = draws.noise.shape[-1]
    first = _pick(draws.first, num_classes)
    return first, (first + 1 + _pick(draws.second, num_classes - 1)) % num_classes


@dataclasses.dataclass(frozen=True)
class Mixture(Checked):
    """Relative weights of the regimes; a weight of 0 leaves a regime out.

    Raises:
      ConfigError: if a weight is negative or not finite, or all are zero.
    """

    uniform: NotNegative = 1.0
    """Weight of predictions drawn uniformly from the simplex."""
    sparse: NotNegative = 1.0
    """Weight of predictions with most of their mass on a few classes."""
    tempered: NotNegative = 1.0
    """Weight of predictions from Gaussian logits divided by a random temperature."""
    confident_correct: NotNegative = 1.0
    """Weight of predictions that are confident in the true class."""
    confident_wrong: NotNegative = 1.0
    """Weight of predictions that are confident in a wrong class."""
    ambiguous: NotNegative = 1.0
    """Weight of predictions in which two classes tie."""
    untrained: NotNegative = 1.0
    """Weight of near-uniform predictions, like those of an untrained classifier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(dataclasses.astuple(self)):
            raise ConfigError("Mixture has only zero weights; give a regime a positive weight.")

    def shares(self) -> tuple[float, ...]:
        """The weights in the order of `REGIMES`, scaled to sum to 1."""
        weights = [getattr(self, name) for name in REGIMES]
        parts = [weight / max(weights) for weight in weights]  # the weights' sum may overflow
        return tuple(part / sum(parts) for part in parts)
