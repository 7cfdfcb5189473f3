"""What the machine can do at best: matrix products, and functions of single elements."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import Work
from edl_jax.networks import ACTIVATIONS

STEPS = 8  # applications of a function in one call, so that calling costs nothing


def measure_ceilings(activation: str, *, quick: bool = False) -> dict[str, Any]:
    """Best rates of several sizes and repeats.

    Returns:
      `matrix_flops` of a large square float32 product, `network_flops` of products of the loss
      network's own shape, and `activation`, `softplus` and `multiply_add` in elements/s.
    """
    repeats = 2 if quick else 12
    matrix = matrix_flops(quick=quick)
    sizes = [2**power for power in ((14,) if quick else (15, 16, 17, 18, 19, 20, 21))]
    if not quick and jax.default_backend() != "cpu":
        sizes += [2**24, 2**26]  # an accelerator needs more to be busy
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "activation": ACTIVATIONS[activation],
        "softplus": ACTIVATIONS["softplus"],
        "multiply_add": lambda x: x * 0.999 + 0.001,
    }
    rates = {
        name: {size: _elements(function, size, repeats) for size in sizes}
        for name, function in functions.items()
    }
    return {
        "matrix_flops": max(matrix.values()),
        "matrix_by_size": matrix,
        "network_flops": max(_network(width, repeats) for width in (1024, 4096)),
        **{name: max(by_size.values()) for name, by_size in rates.items()},
        "elements_by_size": rates,
    }


def matrix_flops(dtype: Any = jnp.float32, *, quick: bool = False) -> dict[int, float]:
    """FLOP/s of square products in a dtype, by size."""
    sizes = (256,) if quick else (1024, 2048)
    if not quick and jax.default_backend() != "cpu":
        sizes += (8192,)
    return {size: _matrix(size, 2 if quick else 12, dtype) for size in sizes}


def best_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The best of each ceiling over several measurements."""
    names = ("matrix_flops", "network_flops", "activation", "softplus", "multiply_add")
    return {name: max(row[name] for row in rows) for name in names}


def bound_seconds(work: Work, ceilings: dict[str, float], matrix: str = "matrix_flops") -> float:
    """No evaluation of the population can take less, if its parts run one after the other.

    FLOPs / matrix ceiling + activations / activation ceiling + outputs / softplus ceiling. Bias
    additions and the objective are left out.
    """
    return (
        work.flops / ceilings[matrix]
        + work.activations / ceilings["activation"]
        + work.pair_evaluations / ceilings["softplus"]
    )


def describe(ceilings: dict[str, float]) -> str:
    """The ceilings and the formula of the bound, for a table's caption."""
    work = Work(1, 1)
    return (
        "Ceilings of this machine in float32, measured by XLA in the same run, best of several "
        f"sizes: square matrix product {ceilings['matrix_flops'] / 1e9:.0f} GFLOP/s, products of "
        f"the network's own 16-wide shape {ceilings['network_flops'] / 1e9:.0f} GFLOP/s, "
        f"activation {ceilings['activation'] / 1e9:.2f}, softplus {ceilings['softplus'] / 1e9:.2f} "
        f"and multiply-add {ceilings['multiply_add'] / 1e9:.2f} G elements/s. One network on one "
        f"pair: {work.flops} FLOP in matrix products (two a weight), {work.activations} hidden "
        "activations, 1 softplus. Bound of the evaluation = FLOPs / matrix ceiling + activations / "
        "activation ceiling + outputs / softplus ceiling; it leaves out biases and the objective. "
        "'Of bound' is bound / our time, so 100 % would be the bound itself; 'of own-shape bound' "
        "has the network's own shape as its matrix ceiling."
    )


def _best_seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array, repeats: int) -> float:
    compiled = jax.jit(function, donate_argnums=0)
    x = jax.block_until_ready(compiled(x))
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        x = jax.block_until_ready(compiled(x))
        best = min(best, time.perf_counter() - begin)
    return best


def _matrix(size: int, repeats: int, dtype: Any) -> float:
    other = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(dtype)
    seconds = _best_seconds(lambda x: x @ other, jnp.ones((size, size), dtype), repeats)
    return 2 * size**3 / seconds


def _network(width: int, repeats: int) -> float:
    """Of 16 networks' hidden layers at a time, 16 to 16 wide, on `width` pairs."""
    kernels = jax.random.normal(jax.random.key(0), (16, 16, 16)) / 4

    def steps(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, STEPS, lambda _, x: jnp.einsum("pfh,pfn->phn", kernels, x), x)

    return STEPS * 2 * 16**3 * width / _best_seconds(steps, jnp.ones((16, 16, width)), repeats)


def _elements(function: Callable[[jax.Array], jax.Array], size: int, repeats: int) -> float:
    """Both one call for each application and a loop in one call; the faster counts."""

    def start() -> jax.Array:
        return jax.random.normal(jax.random.key(0), (size,))

    def steps(x: jax.Array) -> jax.Array:
        # The sum keeps values from fading into slow denormal numbers, at one cheap addition.
        return jax.lax.fori_loop(0, STEPS, lambda _, x: function(x) + 0.1, x)

    single = _best_seconds(lambda x: function(x) + 0.1, start(), 4 * repeats)
    return max(size / single, STEPS * size / _best_seconds(steps, start(), repeats))
