"""Stage 1: synthetic prediction-label pairs (docs/method.md, section 1).

A regime, what a classifier's output can look like, shapes what was drawn for its pairs into logits
`[num_pairs, num_classes]`, whose softmax is the prediction, and labels `[num_pairs]` int32.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from edl_jax.checked import Checked, Count, NotNegative, check, checked_key, config_or_default
from edl_jax.errors import ConfigError, InputError

Outputs = tuple[jax.Array, jax.Array]


class Draws(NamedTuple):
    """What is random of a regime's pairs, drawn for all regimes together: compiling is shorter."""

    noise: jax.Array  # standard Gaussian, `[num_pairs, num_classes]`; without rows for `sparse`
    magnitude: jax.Array  # uniform in [0, 1) and `[num_pairs]`, as are the next three
    first: jax.Array
    second: jax.Array
    coin: jax.Array
    key: jax.Array  # for noise of another kind; one regime may use it


_NUM_CHANCES = len(Draws._fields) - 1  # all but noise and key, and one for the order


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
    rows = num_pairs + len(REGIMES)  # each regime's share is rounded up
    if rows * max(num_classes, _NUM_CHANCES) >= 2**31:  # JAX counts in 32 bits
        raise InputError(
            f"num_pairs is {num_pairs} and num_classes {num_classes}; expected fewer than 2^31 "
            "numbers in all: draw the pairs in several calls."
        )
    mixture = config_or_default(mixture, Mixture)
    return _sample_pairs(checked_key(key), num_pairs, num_classes, mixture)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _sample_pairs(key: jax.Array, num_pairs: int, num_classes: int, mixture: Mixture) -> Pairs:
    key_gamma, key_normal, key_chances, key_kept = jax.random.split(key, 4)
    expected = [share * num_pairs for share in mixture.shares()]
    sizes = [math.ceil(count - 1e-6) for count in expected]  # rounded up, thinned out below
    gaussian = [0 if name == "sparse" else size for name, size in zip(REGIMES, sizes, strict=True)]
    noise = _drawn(jax.random.normal, key_normal, sum(gaussian), num_classes)
    uniforms = _drawn(jax.random.uniform, key_chances, sum(sizes), _NUM_CHANCES)
    cuts = np.cumsum(gaussian)[:-1], np.cumsum(sizes)[:-1]
    parts = zip(REGIMES.values(), *map(jnp.split, (noise, uniforms), cuts), strict=True)
    shaped = [regime(Draws._make((mine, *rows.T[:-1], key_gamma))) for regime, mine, rows in parts]
    logits, labels = (jnp.concatenate(column) for column in zip(*shaped, strict=True))
    regimes = jnp.asarray(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    order = _thinned_order(uniforms[:, -1], key_kept, expected, sizes)[:num_pairs]
    return Pairs(jax.nn.softmax(logits[order]), labels[order], regimes[order])


def _drawn(draw: Callable[..., jax.Array], key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Draws, float32, made flat: XLA compiles short rows several times as long."""
    return draw(key, (rows * columns,), jnp.float32).reshape(rows, columns)


def _thinned_order(
    chance: jax.Array, key: jax.Array, expected: list[float], sizes: list[int]
) -> jax.Array:
    """A random order that puts the surplus of the rounding last.

    Systematic sampling: with one shared uniform draw `u`, a regime gives up its last pair where
    the running total of surpluses passes an integer plus `u`. Over `u`, that is with probability
    equal to its surplus, and the number given up is the total surplus, an integer.
    """
    running = np.cumsum([0.0, *np.subtract(sizes, expected)])
    running[-1] = round(running[-1])
    start = jax.random.uniform(key, (), jnp.float32)
    crossed = jnp.floor(jnp.asarray(running, jnp.float32) + start)
    # A regime without pairs has nothing to give: its surplus is 0, so it never crosses.
    gives_up = jnp.where(jnp.diff(crossed) > 0, 2.0, 0.0)
    return jnp.argsort(chance.at[np.cumsum(sizes) - 1].add(gives_up))


def log_probabilities(probabilities: jax.Array) -> jax.Array:
    """Logarithms of probabilities, those below the smallest normal float32 raised to it."""
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
