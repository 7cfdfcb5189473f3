"""Stage 1: synthetic prediction-label pairs (docs/method.md, section 1).

A regime, what a classifier's output can look like, shapes random draws into logits
`[num_pairs, num_classes]`, whose softmax is the prediction, and labels `[num_pairs]` int32. Every
regime shapes every row and a row takes those of its own regime: that is one short program without
loops, and what varies between regimes is cheap beside the draws, which they share.
"""

import dataclasses
import functools
import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from edl_jax.checked import Checked, Count, NotNegative, check, checked_key, config_or_default
from edl_jax.errors import ConfigError, InputError

Outputs = tuple[jax.Array, jax.Array]

CALIBRATED = -1  # a label that is to be drawn from the prediction itself


class Draws(NamedTuple):
    """What is random of pairs."""

    chances: jax.Array  # uniform in (0, 1), `[num_pairs, num_classes]`
    noise: jax.Array  # the same as standard Gaussian values
    magnitude: jax.Array  # uniform in (0, 1), `[num_pairs]`, as are the next four
    first: jax.Array
    second: jax.Array
    coin: jax.Array
    label: jax.Array


def uniform(draws: Draws) -> Outputs:
    """Uniform on the simplex: exponential draws, normalised."""
    return jnp.log(-jnp.log(draws.chances)), _plausible_labels(draws)


def sparse(draws: Draws) -> Outputs:
    """Close to Dirichlet of a log-uniform concentration: mass on few classes.

    The draws normalised are of the generalised exponential distribution, `(1 - exp(-x))^a`, whose
    quantiles have a closed form and which is close to a Gamma distribution for `a` up to 1 (Gupta
    and Kundu 2001, "Exponentiated exponential family: an alternative to Gamma and Weibull").
    """
    concentration = _log_uniform(draws.magnitude, 0.03, 1.0)[:, None]
    log_power = jnp.log(draws.chances) / concentration
    power = jnp.exp(log_power)
    log_draw = jnp.log(-jnp.log(jnp.maximum(1 - power, 2.0**-24)))
    # Of a small power, which `1 - power` would round, by the series of the logarithm.
    log_draw = jnp.where(log_power < -6, log_power + power / 2, log_draw)
    return log_draw, _plausible_labels(draws)


def tempered(draws: Draws) -> Outputs:
    """Gaussian logits over a temperature."""
    temperature = _log_uniform(draws.magnitude, 0.1, 10.0)
    return draws.noise / temperature[:, None], _plausible_labels(draws)


def confident_correct(draws: Draws) -> Outputs:
    """The true class holds all but a log-uniform share of the mass."""
    winner, _ = _two_classes(draws)
    rest = _log_uniform(draws.magnitude, 1e-5, 0.3)
    is_winner = _is_class(winner, draws.noise.shape[-1])
    others = jnp.sum(jnp.where(is_winner, 0.0, jnp.exp(draws.noise)), axis=-1)
    lead = jnp.log(others) + jnp.log1p(-rest) - jnp.log(rest)
    return jnp.where(is_winner, lead[:, None], draws.noise), winner


def confident_wrong(draws: Draws) -> Outputs:
    """As sure, of another class than the true one."""
    return confident_correct(draws)[0], _two_classes(draws)[1]


def ambiguous(draws: Draws) -> Outputs:
    """Two classes tie, up to 6 nats above the largest drawn; half the labels are one of them."""
    first, second = _two_classes(draws)
    num_classes = draws.noise.shape[-1]
    ties = _is_class(first, num_classes) | _is_class(second, num_classes)
    top = draws.noise.max(axis=-1, keepdims=True) + 6.0 * draws.magnitude[:, None]
    anywhere = _pick(draws.label, num_classes)
    return jnp.where(ties, top, draws.noise), jnp.where(draws.coin < 0.5, first, anywhere)


def untrained(draws: Draws) -> Outputs:
    """Logits of a small deviation, any label."""
    logits = _log_uniform(draws.magnitude, 0.01, 0.5)[:, None] * draws.noise
    return logits, _pick(draws.label, logits.shape[-1])


_EVERY = uniform, sparse, tempered, confident_correct, confident_wrong, ambiguous, untrained
REGIMES = {regime.__name__: regime for regime in _EVERY}
_NUM_CHANCES = len(Draws._fields)  # for each pair: 5 of these, its order and a calibrated label


def _plausible_labels(draws: Draws) -> jax.Array:
    """Half of the labels follow the prediction (calibrated), half are uniform (uninformed)."""
    uninformed = _pick(draws.label, draws.noise.shape[-1])
    return jnp.where(draws.coin < 0.5, CALIBRATED, uninformed)


def _log_uniform(chance: jax.Array, low: float, high: float) -> jax.Array:
    return low * jnp.exp(chance * math.log(high / low))  # quicker than a power


def _pick(chance: jax.Array, num_classes: int) -> jax.Array:
    """A class for each uniform draw."""
    return jnp.minimum(chance * num_classes, num_classes - 1).astype(jnp.int32)


def _is_class(classes: jax.Array, num_classes: int) -> jax.Array:
    return jax.nn.one_hot(classes, num_classes, dtype=bool)


def _two_classes(draws: Draws) -> tuple[jax.Array, jax.Array]:
    """Two different classes for each pair, uniform over all ordered choices."""
    num_classes = draws.noise.shape[-1]
    first = _pick(draws.first, num_classes)
    return first, (first + 1 + _pick(draws.second, num_classes - 1)) % num_classes


@dataclasses.dataclass(frozen=True)
class Mixture(Checked):
    """Relative weights of the regimes, not all 0; a weight of 0 leaves a regime out."""

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


class Pairs(NamedTuple):
    """Synthetic prediction-label pairs.

    Attributes:
      probabilities: predictions on the simplex, `[num_pairs, num_classes]` float32.
      labels: true classes, `[num_pairs]` int32.
      regimes: index into `REGIMES` of the regime each pair was drawn from, `[num_pairs]` int32.
    """

    probabilities: jax.Array
    labels: jax.Array
    regimes: jax.Array


def sample_pairs(
    key: jax.Array, num_pairs: int, num_classes: int, *, mixture: Mixture | None = None
) -> Pairs:
    """Draw synthetic prediction-label pairs, in random order.

    A regime's expected count is exactly its share of `num_pairs`; its count varies only by the
    rounding of that share, so that no generation is short of a regime by bad luck.

    Args:
      key: a key from `jax.random.key`.
      num_pairs: how many pairs to draw, at least 1.
      num_classes: class count of the predictions, at least 2.
      mixture: the weights of the regimes; equal weights by default.

    Raises:
      ConfigError: if `mixture` is no `Mixture`, or `num_pairs` or `num_classes` is too small.
      InputError: if the pairs are too many for one call, or `key` is no single key.

    >>> pairs = sample_pairs(jax.random.key(0), 8, 10)
    >>> pairs.probabilities.shape, pairs.labels.shape
    ((8, 10), (8,))
    """
    num_pairs = check("num_pairs", num_pairs, Count)
    num_classes = check("num_classes", num_classes, Annotated[int, Ge(2)])
    if num_pairs * (num_classes + _NUM_CHANCES) >= 2**31:  # JAX counts in 32 bits
        raise InputError(
            f"num_pairs is {num_pairs} and num_classes {num_classes}; expected fewer than 2^31 "
            "numbers in all: draw the pairs in several calls."
        )
    mixture = config_or_default(mixture, Mixture)
    return _sample_pairs(checked_key(key), num_pairs, num_classes, mixture)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _sample_pairs(key: jax.Array, num_pairs: int, num_classes: int, mixture: Mixture) -> Pairs:
    key_regimes, key_draws = jax.random.split(key)
    per_row, per_class = num_pairs * _NUM_CHANCES, num_pairs * num_classes
    # Flat and a multiple of 8: XLA compiles short rows, and draws other numbers, several times as
    # long. Without the barrier it would draw again for each use.
    flat = jax.random.uniform(key_draws, (-(-(per_row + per_class) // 8) * 8,), jnp.float32)
    flat = jax.lax.optimization_barrier(flat + 2.0**-24)  # half the spacing: never 0, never 1
    order, calibrated, *rows = flat[:per_row].reshape(_NUM_CHANCES, num_pairs)
    chances = flat[per_row : per_row + per_class].reshape(num_pairs, num_classes)
    draws = Draws(chances, 2**0.5 * jax.lax.erf_inv(2 * chances - 1), *rows)

    regimes = _regimes(key_regimes, num_pairs, mixture)[jnp.argsort(order)]
    logits, labels = jnp.zeros_like(chances), jnp.zeros_like(regimes)
    for index, (regime, share) in enumerate(zip(REGIMES.values(), mixture.shares(), strict=True)):
        if share:
            is_it, (its_logits, its_labels) = regimes == index, regime(draws)
            logits = jnp.where(is_it[:, None], its_logits, logits)
            labels = jnp.where(is_it, its_labels, labels)
    probabilities = jax.nn.softmax(logits)
    cumulative = jnp.cumsum(probabilities, axis=-1)
    below = jnp.sum(cumulative <= calibrated[:, None] * cumulative[:, -1:], axis=-1)
    drawn = jnp.minimum(below, num_classes - 1).astype(jnp.int32)
    return Pairs(probabilities, jnp.where(labels == CALIBRATED, drawn, labels), regimes)


def _regimes(key: jax.Array, num_pairs: int, mixture: Mixture) -> jax.Array:
    """The regime of each pair, in order: each regime's share of the pairs, rounded at random.

    Systematic sampling: with one uniform draw for all, a regime begins at its place in the running
    total of the shares, rounded up with the probability of its fraction.
    """
    places = np.cumsum(mixture.shares())[:-1] * num_pairs
    whole = np.floor(places)
    draw = jax.random.uniform(key, (), jnp.float32)
    is_up = draw < (places - whole).astype(np.float32)
    begins = whole.astype(np.int32) + is_up.astype(jnp.int32)
    rows = jnp.arange(num_pairs, dtype=jnp.int32)
    return jnp.sum(rows[:, None] >= begins[None], axis=-1, dtype=jnp.int32)


def log_probabilities(probabilities: jax.Array) -> jax.Array:
    """Logarithms of probabilities, those below the smallest normal float32 raised to it."""
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
