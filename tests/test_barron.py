"""Barron's robust loss at its special shapes, and between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from edl_jax import LOSSES
from tests.baseline_losses import logits_of, quick_jit

LABELS = np.asarray([0, 1, 2, 3, 4, 0])


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
