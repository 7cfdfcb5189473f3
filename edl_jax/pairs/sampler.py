"""Draw synthetic prediction-label pairs from the mixture of regimes."""

import functools
import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from edl_jax.checked import Count, check, checked_key, config_or_default
from edl_jax.errors import InputError
from edl_jax.pairs.regimes import REGIMES, Draws, Mixture

_NUM_CHANCES = len(Draws._fields) - 1  # all but noise and key, and one for the order


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
    return _sample_pairs(
        checked_key(key), num_pairs, num_classes, config_or_default(mixture, Mixture)
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _sample_pairs(key: jax.Array, num_pairs: int, num_classes: int, mixture: Mixture) -> Pairs:
    key_gamma, key_normal, key_chances, key_kept = jax.random.split(key, 4)
    expected = [share * num_pairs for share in mixture.shares()]
    sizes = [math.ceil(count - 1e-6) for count in expected]  # rounded up, thinned out below
    gaussian = [0 if name == "sparse" else size for name, size in zip(REGIMES, sizes, strict=True)]
    noise = _drawn(jax.random.normal, key_normal, sum(gaussian), num_classes)
    uniforms = _drawn(jax.random.uniform, key_chances, sum(sizes), _NUM_CHANCES)
    parts = zip(REGIMES.values(), _split(noise, gaussian), _split(uniforms, sizes), strict=True)
    shaped = [regime(Draws._make((mine, *rows.T[:-1], key_gamma))) for regime, mine, rows in parts]
    logits, labels = (jnp.concatenate(column) for column in zip(*shaped, strict=True))
    regimes = jnp.asarray(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    order = _thinned_order(uniforms[:, -1], key_kept, expected, sizes)[:num_pairs]
    return Pairs(jax.nn.softmax(logits[order]), labels[order], regimes[order])


def _drawn(draw: Callable[..., jax.Array], key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Draws, float32, made flat: XLA compiles short rows several times as long."""
    return draw(key, (rows * columns,), jnp.float32).reshape(rows, columns)


def _split(rows: jax.Array, sizes: list[int]) -> list[jax.Array]:
    return jnp.split(rows, np.cumsum(sizes)[:-1])


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
