"""Barron's robust loss: its special shapes, its distribution, and learning both parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_vjp
from scipy import integrate, special

from edl_jax import LOSSES
from edl_jax.errors import ConfigError
from edl_jax.losses.formulas.robust import AdaptiveBarron, log_partition
from tests.baseline_losses import logits_of, quick_jit

LABELS = np.asarray([0, 1, 2, 3, 4, 0])


def log_z(alpha):
    def density(log_x):
        return np.exp(log_x - general(np.exp(log_x), alpha))

    pieces = ((-60, -10), (-10, 0), (0, 3), (3, 10), (10, 60))
    return np.log(2 * sum(integrate.quad(density, *piece, limit=500)[0] for piece in pieces))


def general(x, alpha):
    """`rho` in float64 for shapes at which it divides 0 by 0 or loses digits."""
    width = max(abs(alpha - 2), 1e-12)
    log_term = np.log1p(x**2 / width)
    return width / alpha * np.expm1(alpha / 2 * log_term) if alpha else width / 2 * log_term


def test_barron_at_its_special_shapes_and_smooth_near_them():
    logits = logits_of(3)
    x = 1 - special.softmax(np.asarray(logits, np.float64), axis=-1)[np.arange(6), LABELS]
    s = (x / 0.3) ** 2
    special_cases = {
        2.0: s / 2,
        1.0: np.sqrt(s + 1) - 1,
        0.0: np.log(s / 2 + 1),
        -2.0: 2 * s / (s + 4),
        -1e9: 1 - np.exp(-s / 2),  # nearly its limit
    }
    barron = quick_jit(lambda alpha: LOSSES["barron"](logits, LABELS, alpha=alpha, scale=0.3))
    gradient = quick_jit(jax.grad(lambda alpha: barron.__wrapped__(alpha).sum()))
    for alpha, expected in special_cases.items():
        np.testing.assert_allclose(barron(alpha), expected, rtol=2e-6)
        exact = LOSSES["barron"](logits, LABELS, alpha=alpha, scale=0.3)
        np.testing.assert_allclose(exact, expected, rtol=2e-6)
        for near in (1e-5, 1e-3):
            neighbour = alpha - near if alpha > -1e9 else -1 / near
            np.testing.assert_allclose(barron(neighbour), expected, rtol=20 * near)
            assert jnp.isfinite(gradient(neighbour))
    for alpha in (-1.0, -1e-4, 0.0, 1e-4, 1.0, 1.9):  # slopes in the shape
        difference = sum(general(x / 0.3, alpha + 1e-5) - general(x / 0.3, alpha - 1e-5)) / 2e-5
        assert gradient(alpha) == pytest.approx(difference, rel=1e-3)


def test_partition_function_and_its_slope():
    value, slope = quick_jit(log_partition), quick_jit(jax.grad(log_partition))
    assert value(0.0) == pytest.approx(np.log(np.pi * np.sqrt(2)), abs=1e-6)
    assert value(2.0) == pytest.approx(np.log(np.sqrt(2 * np.pi)), abs=1e-6)
    assert value(1.0) == pytest.approx(np.log(2 * np.e * special.k1(1)), abs=1e-6)
    for alpha in (0.001, 0.03, 0.3, 1.5, 1.9, 1.999):
        assert value(alpha) == pytest.approx(log_z(alpha), abs=1e-6)
        h = min(1e-4, (2 - alpha) / 10, alpha / 10)
        difference = (log_z(alpha + h) - log_z(alpha - h)) / (2 * h)
        assert slope(alpha) == pytest.approx(difference, abs=1e-3)


def test_adaptive_barron_learns_the_shape_and_scale_of_its_residuals():
    loss = AdaptiveBarron(alpha=0.5, scale=0.2)
    assert loss.alpha() == pytest.approx(0.5, rel=1e-5)
    assert loss.scale() == pytest.approx(0.2, rel=1e-5)
    graphdef, params = nnx.split(loss, nnx.Param)
    logits = logits_of(0, 0.5)

    mean = quick_jit(lambda params: nnx.merge(graphdef, params)(logits, LABELS).mean())
    optimizer = optax.adam(0.05)

    @quick_jit
    def step(params, state):
        gradient = jax.grad(mean.__wrapped__)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, gradient

    learned, state = params, optimizer.init(params)
    _, _, gradient = step(learned, state)
    check_vjp(
        mean,
        lambda x: (mean(x), lambda c: (jax.tree.map(lambda g: c * g, gradient),)),
        (params,),
        eps=1e-2,
        atol=1e-3,
        rtol=1e-3,
    )
    for _ in range(400):
        learned, state, _ = step(learned, state)
    residual = 1 - np.take_along_axis(np.asarray(jax.nn.softmax(logits)), LABELS[:, None], axis=-1)
    fitted = nnx.merge(graphdef, learned)
    # Residuals of like size: the best density is the Gaussian of their root mean square.
    assert fitted.alpha() > 1.8
    assert fitted.scale() == pytest.approx(np.sqrt((residual**2).mean()), rel=0.05)
    assert mean(learned) < mean(params)


def test_refuses_shapes_and_scales_out_of_range():
    with pytest.raises(ConfigError, match="alpha is 2"):
        AdaptiveBarron(alpha=2)
    with pytest.raises(ConfigError, match="scale is 0"):
        AdaptiveBarron(scale=0)
