import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from edl_jax.strategy import MUTATIONS
from edl_jax.strategy.mutations import (
    arcsine_noise,
    double_phase,
    gaussian_noise,
    logistic_value,
    random_phase,
)

ARCSINE = stats.arcsine(loc=-(2**0.5), scale=2 * 2**0.5)
MARGINALS = {
    "logistic": ARCSINE,
    "logistic_gaussian": stats.norm,
    "arcsine": ARCSINE,
    "gaussian": stats.norm,
    "uniform": stats.uniform(loc=-(3**0.5), scale=2 * 3**0.5),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_noise_has_its_marginal_zero_mean_and_unit_variance(name):
    mutation = MUTATIONS[name]
    orbit, noise = mutation.step(jax.random.key(1), mutation.init(jax.random.key(0), (500, 400)))
    noise = np.asarray(noise, np.float64).ravel()
    assert orbit.shape == (500, 400)
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.var() == pytest.approx(1, abs=0.01)
    assert stats.kstest(noise, MARGINALS[name].cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", MUTATIONS)
def test_noise_is_a_function_of_key_and_orbit(name):
    mutation = MUTATIONS[name]
    orbit = mutation.init(jax.random.key(0), (7, 3))
    for a, b in zip(*(mutation.step(jax.random.key(1), orbit) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_phase_doubling_is_the_logistic_map():
    phase = random_phase(jax.random.key(0), (100_000,))
    x = np.asarray(logistic_value(phase), np.float64)
    after = np.asarray(logistic_value(double_phase(jax.random.key(1), phase)), np.float64)
    np.testing.assert_allclose(after, 4 * x * (1 - x), atol=2e-6)


def test_noises_are_increasing_functions_of_the_orbit():
    phase = jnp.sort(random_phase(jax.random.key(0), (10_000,)) >> 1)  # theta in [0, 1/2)
    for noise in (logistic_value, arcsine_noise, gaussian_noise):
        assert (np.diff(noise(phase)) >= 0).all()


def test_every_phase_gives_finite_noise():
    half = 2**31
    edges = [0, 1, half - 2, half - 1, half, half + 1, 2 * half - 2, 2 * half - 1]
    edges = jnp.asarray(edges, jnp.uint32)
    assert jnp.isfinite(arcsine_noise(edges)).all()
    gaussian = gaussian_noise(edges)
    assert jnp.isfinite(gaussian).all()
    # theta and 1 - theta are the same x, and the tails mirror one another.
    np.testing.assert_array_equal(gaussian, gaussian[::-1])
    assert gaussian[0] == -gaussian[3]


def test_orbits_remember_one_step_and_controls_do_not():
    for name, remembers in {"logistic": True, "arcsine": False, "gaussian": False}.items():
        mutation = MUTATIONS[name]
        orbit, first = mutation.step(
            jax.random.key(1), mutation.init(jax.random.key(0), (100_000,))
        )
        _, second = mutation.step(jax.random.key(2), orbit)
        # x is not correlated with its next value, but determines it: (x - 1/2)^2 is.
        dependence = np.corrcoef(np.asarray(first) ** 2, second)[0, 1]
        assert abs(dependence) > 0.9 if remembers else abs(dependence) < 0.02, name


def test_orbits_stay_alive_for_a_million_steps():
    num_orbits, blocks, steps = 10_000, 500, 2_000

    def block(phase, key):
        start = phase

        def step(carry, index):
            phase, still, longest = carry
            previous = phase
            phase = double_phase(jax.random.fold_in(key, index), phase)
            still = jnp.where(phase == previous, still + 1, 0)
            return (phase, still, jnp.maximum(longest, still)), None

        zero = jnp.zeros(num_orbits, jnp.int32)
        carry, _ = jax.lax.scan(step, (phase, zero, zero), jnp.arange(steps))
        return carry[0], (start, carry[2].max())

    run = jax.jit(lambda phase, keys: jax.lax.scan(block, phase, keys))
    _, (phases, longest) = run(
        random_phase(jax.random.key(0), (num_orbits,)),
        jax.random.split(jax.random.key(1), blocks),
    )
    # Only 0 and all ones repeat under doubling: for a run of 20, 32 + 20 equal digits must follow
    # one another, which 10^10 digits hold with probability 2e-5.
    assert longest.max() < 20
    samples = np.asarray(phases)  # every 2,000 steps: independent but for the shared history
    assert len(np.unique(samples)) > 0.999 * (1 - samples.size / 2**33) * samples.size
    values = np.asarray(logistic_value(jnp.asarray(samples[-100:].ravel())), np.float64)
    assert stats.kstest(values, stats.arcsine.cdf).pvalue > 1e-4
    # No orbit's own time average strays: its standard error is sqrt(1/8 / 500).
    averages = np.asarray(logistic_value(jnp.asarray(samples))).mean(0)
    assert np.abs(averages - 0.5).max() < 6 * (1 / 8 / blocks) ** 0.5
