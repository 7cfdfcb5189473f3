import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

from edl_jax import PretrainConfig, pretrain
from edl_jax.errors import ConfigError
from edl_jax.evolution import SlopeConfig
from edl_jax.evolution.problems import SlopeProblem
from edl_jax.objective import SEVERITIES, slope_violations
from tests.network_tools import quick_jit
from tests.test_evolution import TINY
from tests.test_ranking import mean_absolute_error, some_pairs

SURPRISAL = SEVERITIES["surprisal"]
SLOPED = dataclasses.replace(TINY, slope=SlopeConfig(1.0, 2.0, 0.5, pairs=20), generations=2)

cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


def measured(loss, pairs=None, severity=SURPRISAL):
    compiled = quick_jit(lambda pairs: slope_violations(loss, pairs, severity))
    return np.asarray(compiled(some_pairs() if pairs is None else pairs), np.float64)


def squared_error(logits, labels):
    return mean_absolute_error(logits, labels) ** 2


@quick_jit
def scaled_by(scale, pairs):
    return slope_violations(lambda x, y: scale * squared_error(x, y), pairs, SURPRISAL)


def test_cross_entropy_violates_nothing():
    np.testing.assert_allclose(measured(cross_entropy), 0, atol=1e-6)


def test_a_loss_upside_down_violates_descent_and_convexity_wholly():
    descent, norm, convexity = measured(lambda x, y: -cross_entropy(x, y))
    assert descent == pytest.approx(1, abs=1e-5)
    assert norm == pytest.approx(0, abs=1e-6)
    assert convexity == pytest.approx(1, abs=1e-6)


def test_mean_absolute_error_goes_down_but_is_flat_where_it_is_wrong_and_not_convex():
    descent, norm, convexity = measured(mean_absolute_error)
    assert descent == 0
    assert norm > 0.3
    assert 0.5 < convexity < 1


def test_descent_is_of_the_severity_asked_for():
    # Where a prediction is over-confident, cross-entropy goes down and smoothed surprisal up.
    smoothed = SEVERITIES["smoothed_surprisal"]
    assert measured(cross_entropy, severity=smoothed)[0] > 0.01
    by_itself = measured(lambda x, y: smoothed(jax.nn.log_softmax(x), y), severity=smoothed)
    assert by_itself[0] == 0


@given(st.integers(-20, 20))
def test_scale_does_not_matter(exponent):
    found, expected = (scaled_by(2.0**power, some_pairs(200)) for power in (exponent, 0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_against_finite_differences_in_float64():
    """An own loss, whose gradient and curvature NumPy takes by differences."""
    pairs = some_pairs(300, 3)
    moderate = np.flatnonzero(np.asarray(pairs.probabilities).min(axis=-1) > 0.01)
    pairs = jax.tree.map(lambda x: np.asarray(x)[moderate], pairs)

    def by_numpy(z, y):
        p = np.exp(z - z.max())
        p /= p.sum()
        return np.sqrt(1.1 - p[y]) - 1.2 * p[(y + 1) % 3] ** 2

    def loss(logits, labels):
        p = jax.nn.softmax(logits)
        own = jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0]
        next_one = jnp.take_along_axis(p, (labels[:, None] + 1) % 3, axis=1)[:, 0]
        return jnp.sqrt(1.1 - own) - 1.2 * next_one**2

    eye, step = np.eye(3), 1e-4
    descents, norms, references, curvatures = [], [], [], []
    for p, y in zip(np.asarray(pairs.probabilities, np.float64), pairs.labels, strict=True):
        z = np.log(p)
        gradient = np.asarray(
            [(by_numpy(z + step * e, y) - by_numpy(z - step * e, y)) / (2 * step) for e in eye]
        )
        upwards = np.exp(z) / np.exp(z).sum() - eye[y]
        lengths = np.linalg.norm(gradient) * np.linalg.norm(upwards)
        descents.append(max(0, -gradient @ upwards / lengths))
        norms.append(np.linalg.norm(gradient))
        references.append(np.linalg.norm(upwards))
        ends = by_numpy(z + step * eye[y], y) + by_numpy(z - step * eye[y], y)
        curvatures.append((ends - 2 * by_numpy(z, y)) / step**2)
    norms, references, curvatures = map(np.asarray, (norms, references, curvatures))
    ratio = norms / norms.sum() * references.sum() / references
    beyond = np.maximum(0, np.abs(np.log(ratio)) - np.log(2))
    expected = [
        np.mean(descents),
        (references * beyond).sum() / references.sum(),
        -curvatures[curvatures < 0].sum() / np.abs(curvatures).sum(),
    ]
    np.testing.assert_allclose(measured(loss, pairs), expected, rtol=2e-3, atol=1e-4)
    assert min(expected) > 0.001  # none of them is checked on nothing


@pytest.mark.parametrize("loss", [lambda x, y: 0.0 * x[:, 0], lambda x, y: 1e-30 * x[:, 0]])
def test_a_flat_loss_has_finite_violations(loss):
    assert np.isfinite(measured(loss)).all()


def test_fitness_is_the_weighted_slope_over_the_class_counts():
    problem = SlopeProblem(dataclasses.replace(SLOPED, class_counts=(3, 5)))
    key = jax.random.key(1)
    population = quick_jit(jax.vmap(problem.sample))(jax.random.split(key, 6))
    fitness, _, metrics = problem.eval(key, population, problem.init(key))
    of_counts = [jax.tree.map(lambda x: np.asarray(x)[:10], pairs) for pairs in problem.pairs(key)]

    @quick_jit
    def violations(solution, pairs):
        network = problem.network(solution)
        loss = lambda x, y: network(jax.nn.log_softmax(x), y)  # noqa: E731
        return jnp.asarray(slope_violations(loss, pairs, SURPRISAL))

    found = []
    for index in range(6):
        solution = jax.tree.map(lambda x, i=index: np.asarray(x)[i], population)
        each = [violations(solution, pairs) for pairs in of_counts]
        found.append(np.mean(each, axis=0) @ [1.0, 2.0, 0.5])
    np.testing.assert_allclose(fitness, found, rtol=1e-3)
    np.testing.assert_array_equal(metrics["slope_violation"], fitness)


@pytest.mark.slow
def test_evolution_lowers_the_slope_it_is_asked_to_lower():
    plain = dataclasses.replace(TINY, generations=20)
    sloped = dataclasses.replace(plain, slope=SlopeConfig(descent=5.0, norm=5.0, pairs=60))
    history = pretrain(sloped).history["slope_violation"]
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SlopeConfig(descent=-1.0), r"SlopeConfig\.descent is -1\.0"),
        (lambda: SlopeConfig(norm=float("nan")), r"SlopeConfig\.norm is nan"),
        (lambda: SlopeConfig(pairs=0), r"SlopeConfig\.pairs is 0"),
        (
            lambda: PretrainConfig(slope=SlopeConfig(descent=1.0), pairs_per_generation=100),
            r"slope\.pairs is 512; expected no more than pairs_per_generation, 100",
        ),
    ],
)
def test_config_refuses(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
