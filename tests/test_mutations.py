"""The long test follows 10^4 orbits of each dynamics for 10^6 steps, in the public interface."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from edl_jax.strategies import MUTATIONS, Mutation
from edl_jax.strategies.mutations import (
    SINE_MEAN,
    SINE_STD,
    arcsine_noise,
    double_phase,
    gaussian_noise,
    logistic_value,
    random_phase,
    sine_noise,
    sine_step,
    tent_noise,
    triple_phase,
)

# Mutations with an orbit, by the step that they share: the first of each is followed for long.
DYNAMICS = (("logistic", "logistic_gaussian", "tent"), ("sine",), ("chebyshev",))
LAGS = 10
BLOCK = 1_000  # steps from one sample of the long test to the next
SPAN = 20  # blocks in which an orbit may come back to where it was


@functools.cache
def sine_measure():
    """The sine map's invariant measure and correlations by Ulam's method, in float64.

    Returns the edges of cells in the angle u, the distribution function F there, the mean and the
    standard deviation of x, and the autocorrelation of x at lags 0 to LAGS.
    """
    edges = np.linspace(0, 1, 20_001)
    x = np.sin(np.pi / 4 * (edges[1:] + edges[:-1])) ** 2  # in the middle of each cell
    # x' = sin(pi x) <= y on [0, inverse(y)], and on its mirror image.
    inverse = np.arcsin(np.sin(np.pi / 2 * edges) ** 2) / np.pi
    inverse = 2 / np.pi * np.arcsin(np.sqrt(inverse))

    def push(F):
        return np.interp(inverse, edges, F) + F[-1] - np.interp(1 - inverse, edges, F)

    F = edges
    for _ in range(60):
        F = push(F)
    mass = np.diff(F)
    mean = mass @ x
    var = mass @ x**2 - mean**2
    weighted, correlations = np.append(0, np.cumsum(mass * x)), []
    for _ in range(LAGS + 1):
        correlations.append((np.diff(weighted) @ x - mean**2) / var)
        weighted = push(weighted)
    return edges, F, mean, var**0.5, np.array(correlations)


def sine_cdf(noise):
    edges, F, *_ = sine_measure()
    x = np.clip(SINE_MEAN + SINE_STD * noise, 0, 1)
    return np.interp(2 / np.pi * np.arcsin(np.sqrt(x)), edges, F)


ARCSINE = stats.arcsine(loc=-(2**0.5), scale=2 * 2**0.5).cdf
UNIFORM = stats.uniform(loc=-(3**0.5), scale=2 * 3**0.5).cdf
NORMAL = stats.norm.cdf
# The distribution function of each mutation's noise, and Chatterjee's xi of the noise of one step
# and of the next: 1 if the latter is a function of the former, 0 if it does not depend on it.
EXPECTED = {
    "logistic": (ARCSINE, 1),
    "logistic_gaussian": (NORMAL, 1),
    "tent": (UNIFORM, 1),
    "sine": (sine_cdf, 1),
    "chebyshev": (ARCSINE, 1),
    "arcsine": (ARCSINE, 0),
    "gaussian": (NORMAL, 0),
    "uniform": (UNIFORM, 0),
}


def two_steps(name, shape=(100_000,)):
    """Orbit and noise after the first step, and after the second."""
    mutation = MUTATIONS[name]
    first = mutation.step(jax.random.key(1), mutation.init(jax.random.key(0), shape))
    return first, mutation.step(jax.random.key(2), first[0])


def float64(x):
    return np.asarray(x, np.float64)


def test_the_family_is_complete_and_in_order():
    assert [*MUTATIONS] == [*EXPECTED]
    with_orbit = {name for name, (_, xi) in EXPECTED.items() if xi == 1}
    assert {name for names in DYNAMICS for name in names} == with_orbit


@pytest.mark.parametrize("name", EXPECTED)
def test_noise_has_its_marginal_zero_mean_and_unit_variance(name):
    for orbit, noise in two_steps(name, (500, 400)):
        assert (orbit.dtype, noise.dtype) == (jnp.uint32, jnp.float32)
        assert orbit.shape == noise.shape == (500, 400)
        noise = float64(noise).ravel()
        # Four standard errors, and a kurtosis of 3 at most.
        assert noise.mean() == pytest.approx(0, abs=4 * noise.size**-0.5)
        assert noise.var() == pytest.approx(1, abs=4 * (2 / noise.size) ** 0.5)
        assert stats.kstest(noise, EXPECTED[name][0]).pvalue > 1e-3


def test_sine_constants_are_the_moments_of_its_invariant_measure():
    *_, mean, std, _ = sine_measure()
    assert pytest.approx(mean, abs=2e-9) == SINE_MEAN
    assert pytest.approx(std, abs=2e-9) == SINE_STD


@pytest.mark.parametrize("name", EXPECTED)
def test_noise_is_a_function_of_key_and_orbit(name):
    mutation = MUTATIONS[name]
    orbit = mutation.init(jax.random.key(0), (7, 33))
    once, again, other = (mutation.step(jax.random.key(seed), orbit) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1], again[1])
    # One tripled phase and its neighbour may be one float32.
    assert (once[0] != other[0]).any() or (once[1] != other[1]).any()
    np.testing.assert_array_equal(orbit, mutation.init(jax.random.key(0), (7, 33)))


@pytest.mark.parametrize("name", EXPECTED)
def test_noise_works_in_transformations_and_lowers_for_accelerators(name):
    mutation = MUTATIONS[name]

    @jax.jit
    def run(key):
        orbit = mutation.init(key, (3, 5))
        return jax.lax.scan(lambda o, k: mutation.step(k, o), orbit, jax.random.split(key, 4))[1]

    keys = jax.random.split(jax.random.key(0), 2)
    assert run(keys[0]).shape == (4, 3, 5)
    np.testing.assert_allclose(jax.vmap(run)(keys)[1], run(keys[1]), rtol=1e-5, atol=1e-5)
    for platform in ("cuda", "tpu"):
        run.trace(keys[0]).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize(
    ("name", "value", "image"),
    [
        ("logistic", lambda noise: 0.5 + noise / 8**0.5, lambda x: 4 * x * (1 - x)),
        ("logistic_gaussian", stats.norm.cdf, lambda x: 1 - abs(1 - 2 * x)),
        ("tent", lambda noise: 0.5 + noise / 12**0.5, lambda x: 1 - abs(1 - 2 * x)),
        ("sine", lambda noise: SINE_MEAN + SINE_STD * noise, lambda x: np.sin(np.pi * x)),
        ("chebyshev", lambda noise: noise / 2**0.5, lambda x: 4 * x**3 - 3 * x),
    ],
)
def test_step_is_the_map(name, value, image):
    (_, before), (_, after) = two_steps(name)
    x, following = value(float64(before)), value(float64(after))
    assert x.max() > 0.9999
    # Both ends are rounded to 2^-24, and the first error grows by the slope of the map, at most 9.
    np.testing.assert_allclose(following, image(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("advance", "base"), [(double_phase, 2), (triple_phase, 3)])
def test_fresh_digits_are_fair_and_independent(advance, base):
    digits = np.asarray(advance(jax.random.key(0), jnp.zeros(80_000, jnp.uint32)))
    assert digits.max() == base - 1
    # One random number serves eight neighbours (2) or every 10,000th (3).
    for lag in (1, 3, 10_000):
        pairs = np.bincount(base * digits[lag:] + digits[:-lag], minlength=base**2)
        assert stats.chisquare(pairs).pvalue > 1e-3


EDGES = np.array([0, 1, 2**29 - 1, 2**29, 2**30 - 1, 2**30, 2**31 - 2, 2**31 - 1], np.uint32)
EDGES = np.append(EDGES, ~EDGES)


def test_sine_step_is_accurate_to_its_fresh_digits():
    phase = np.append(np.tile(EDGES, 100), random_phase(jax.random.key(0), (100_000,)))
    after = np.asarray(sine_step(jax.random.key(1), jnp.asarray(phase)))
    u, image = ((np.minimum(p, ~p) + 0.5) * 2.0**-31 for p in (phase, after))
    x = np.sin(np.pi / 2 * np.minimum(u, 1 - u)) ** 2
    error = image - 2 / np.pi * np.arcsin(np.sqrt(np.sin(np.pi * x)))
    # Eight fresh digits, centred, and two units of float32 in [1/2, 1) at most.
    assert abs(error).max() < (128 + 2 * 128 + 64) * 2.0**-31
    assert 0.9 < error.std() / (256 * 12**-0.5 * 2.0**-31) < 1.5
    assert abs(error.mean()) < 64 * 2.0**-31


@pytest.mark.parametrize("noise", [arcsine_noise, gaussian_noise, tent_noise, sine_noise])
def test_every_phase_gives_finite_noise(noise):
    values = noise(jnp.asarray(EDGES))
    # Of 2^31 Gaussian numbers the largest is about 6.3.
    assert (abs(values) < 6.5).all()
    # theta and 1 - theta are the same x.
    np.testing.assert_allclose(values, noise(jnp.asarray(~EDGES)), atol=1e-6)


@pytest.mark.parametrize("noise", [gaussian_noise, tent_noise])
def test_noise_of_doubling_is_mirrored_by_the_orbit(noise):
    phase = np.append(EDGES, random_phase(jax.random.key(0), (10_000,))) >> 1
    mirrored = np.uint32(2**31 - 1) - phase
    np.testing.assert_array_equal(noise(jnp.asarray(phase)), -noise(jnp.asarray(mirrored)))
    np.testing.assert_array_equal(noise(jnp.asarray(phase)), noise(jnp.asarray(~phase)))


def test_noises_are_increasing_functions_of_the_orbit():
    phase = jnp.sort(random_phase(jax.random.key(0), (10_000,)) >> 1)  # theta in [0, 1/2)
    for noise in (logistic_value, arcsine_noise, gaussian_noise, tent_noise, sine_noise):
        assert (np.diff(noise(phase)) >= 0).all()


@pytest.mark.parametrize("name", EXPECTED)
def test_orbits_remember_one_step_and_controls_do_not(name):
    (_, first), (_, second) = two_steps(name)
    ranks = stats.rankdata(float64(second)[np.argsort(first)])
    xi = 1 - 3 * abs(np.diff(ranks)).sum() / (ranks.size**2 - 1)
    assert xi > 0.999 if EXPECTED[name][1] else abs(xi) < 0.01


def test_maps_of_one_dynamics_share_the_orbit():
    orbits = [two_steps(name)[1][0] for name in DYNAMICS[0]]
    for orbit in orbits[1:]:
        np.testing.assert_array_equal(orbit, orbits[0])


@pytest.fixture
def restored():
    with mock.patch.dict(MUTATIONS):
        yield


def test_a_mutation_of_ones_own_is_found_by_name(restored):
    def step(key, orbit):
        return orbit + 1, jax.random.rademacher(key, orbit.shape, jnp.float32)

    mutation = Mutation(lambda key, shape: jnp.zeros(shape, jnp.uint32), step)
    assert MUTATIONS.register("heads_or_tails")(mutation) is mutation
    assert [*MUTATIONS][-1] == "heads_or_tails"
    (_, _), (orbit, noise) = two_steps("heads_or_tails")
    assert (orbit == 2).all()
    assert (abs(noise) == 1).all()


@functools.partial(jax.jit, static_argnames=("step", "spans"))
def follow(step, orbit, key, *, spans):
    """Follow orbits for `spans * SPAN * BLOCK` steps of `step(key, orbit) -> (orbit, noises)`.

    Returns:
      orbit at the end of each block, `[spans * SPAN, n]`; whether it came back in a span to where
      it began it, `[spans, n]`; the longest run of unchanged values in each block; the mean
      product of noise at lags 0 to LAGS at the end of each block, `[num_noises, LAGS + 1, spans *
      SPAN]`; the mean noise at the ends of the blocks, `[num_noises, n]`.
    """
    blocks = spans * SPAN
    zeros = jnp.zeros(orbit.shape, jnp.int32)

    def block(carry, inputs):
        orbit, home, total = carry
        index, key = inputs
        home = jnp.where(index % SPAN == 0, orbit, home)

        def advance(carry, index):
            orbit, still, longest, back = carry
            previous = orbit
            orbit, noises = step(jax.random.fold_in(key, index), orbit)
            still = jnp.where(orbit == previous, still + 1, 0)
            return (orbit, still, jnp.maximum(longest, still), back | (orbit == home)), noises

        carry = (orbit, zeros, zeros, zeros > 0)
        quiet, loud = jnp.split(jnp.arange(BLOCK), [BLOCK - LAGS - 1])
        carry, _ = jax.lax.scan(lambda *args: (advance(*args)[0], None), carry, quiet)
        (orbit, _, longest, back), noises = jax.lax.scan(advance, carry, loud)
        products = jnp.mean(noises[0] * noises, axis=-1)
        return (orbit, home, total + noises[-1]), (orbit, back, longest.max(), products)

    total = jnp.zeros(jax.eval_shape(step, jax.random.key(0), orbit)[1].shape)
    inputs = jnp.arange(blocks), jax.random.split(key, blocks)
    (*_, total), outputs = jax.lax.scan(block, (orbit, orbit, total), inputs)
    orbits, back, longest, products = outputs
    back = back.reshape(spans, SPAN, -1).any(1)
    return orbits, back, longest, jnp.swapaxes(products, 0, -1), total / blocks


def caught(back):
    """Orbits in a cycle: of any length up to 20,000 steps, it closes in every span."""
    return (back[1:] & back[:-1]).any(0)


@pytest.mark.parametrize(
    "naive",
    [lambda x: 1 - abs(1 - 2 * x), lambda x: 4 * x * (1 - x), lambda x: jnp.sin(jnp.pi * x)],
    ids=["tent", "logistic", "sine"],
)
def test_naive_orbits_die_and_are_caught(naive):
    start = jax.random.uniform(jax.random.key(0), (1_000,))
    _, back, *_ = follow(lambda key, x: (naive(x), x[None]), start, jax.random.key(1), spans=6)
    assert caught(np.asarray(back)).mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("names", DYNAMICS, ids=lambda names: names[0])
def test_orbits_stay_alive_for_a_million_steps(names):
    spans, num_orbits = 1_000_000 // (SPAN * BLOCK), 10_000
    mutations = [MUTATIONS[name] for name in names]

    def step(key, orbit):
        outcomes = [mutation.step(key, orbit) for mutation in mutations]
        return outcomes[0][0], jnp.stack([noise for _, noise in outcomes])

    # In two halves: XLA on CPU is much quicker with arrays so small that it does not split them.
    halves = [
        follow(step, mutations[0].init(init, (num_orbits // 2,)), run, spans=spans)
        for init, run in jax.random.split(jax.random.key(0), (2, 2))
    ]
    orbits, back, longest, products, averages = (
        np.concatenate(parts, axis=-1) for parts in zip(*halves, strict=True)
    )
    is_sine = names == ("sine",)
    edges, F, *_, correlations = sine_measure()
    if not is_sine:
        F, correlations = edges, np.eye(LAGS + 1)[0]

    # No sticking. A doubled phase repeats for a run of 20 only where 32 + 20 equal digits follow
    # one another, which 10^10 digits do with probability 2e-5; a tripled one (0, 1/2 or their
    # last digits) and the sine's (1 in 256 by chance at a fixed point) have less.
    assert longest.max() < 20
    # No short cycle. A live orbit comes back by chance in one span in 2e5 (1e5 for the sine map,
    # which has half the values), and any of 10^4 in two spans of 50 together with probability 5e-5.
    assert not caught(back).any()
    roughness = (np.diff(F) ** 2).sum() * (F.size - 1)  # the integral of the squared density
    expected = num_orbits * 1_000_000 * roughness / 2.0 ** (31 if is_sine else 32)
    assert back.sum() == pytest.approx(expected, abs=6 * expected**0.5)

    # The invariant density, in u = 2 min(theta, 1 - theta), with which x increases (falls for
    # chebyshev, whose noise has the other sign). Samples 1,000 steps apart are independent.
    folded = np.minimum(orbits, ~orbits)
    u = (folded.ravel() + 0.5) * 2.0**-31
    assert stats.kstest(u, lambda u: np.interp(u, edges, F), method="asymp").pvalue > 1e-3
    last = folded[-100:].ravel()
    expected = last.size**2 / 2 * roughness / 2**31
    assert last.size - np.unique(last).size == pytest.approx(expected, abs=6 * expected**0.5)

    # No orbit's own average strays, nor all of them together.
    assert abs(averages).max() < 6 * len(orbits) ** -0.5
    assert abs(averages.mean(-1)).max() < 5 * orbits.size**-0.5
    # Variance, and correlation at lags 1 to 10, within 5 standard errors (about 3e-4 each).
    error = products.mean(-1) - correlations
    assert (abs(error) < 5 * products.std(-1) * products.shape[-1] ** -0.5).all()
