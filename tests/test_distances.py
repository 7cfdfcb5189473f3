import numpy as np
import pytest

from edl_jax import Pairs
from edl_jax.studies.coverage import coordinates
from edl_jax.studies.statistics import is_covered, mmd


def normal(seed, size=300, dimensions=3, shift=0.0):
    return shift + np.random.default_rng(seed).normal(size=(size, dimensions))


def pairs_of(probabilities, labels):
    labels = np.asarray(labels, np.int32)
    return Pairs(np.asarray(probabilities, np.float32), labels, np.full_like(labels, -1))  # pyright: ignore


def test_coordinates_of_known_pairs():
    pairs = pairs_of([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1, 0, 0], [0, 0, 1]], [0, 1, 0, 1])
    points = coordinates(pairs)
    most = np.log(1e6 - 1)  # the logit of 1 - 1e-6
    np.testing.assert_allclose(points[0], [0, -np.log(3), 1.5 * np.log(2)], atol=1e-6)
    np.testing.assert_allclose(points[1], [-np.log(3), 0, 1.5 * np.log(2)], atol=1e-6)
    np.testing.assert_allclose(points[2], [most, -most, 0], atol=1e-6)
    np.testing.assert_allclose(points[3], [-most, most, 0], atol=1e-6)


def test_relabelling_the_classes_changes_nothing():
    rng = np.random.default_rng(0)
    pairs = pairs_of(rng.dirichlet(np.full(7, 0.3), 200), rng.integers(7, size=200))
    order = rng.permutation(7)
    permuted = pairs_of(pairs.probabilities[:, order], np.argsort(order)[pairs.labels])
    np.testing.assert_allclose(coordinates(permuted), coordinates(pairs), atol=1e-12)


def test_mmd_against_brute_force():
    x, y, width = normal(0, 9), normal(1, 7, shift=0.5), 1.3

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * width**2))

    within = [
        np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
        for z in (x, y)
    ]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert mmd(x, y, width) == pytest.approx(expected, rel=1e-12)


def test_mmd_is_unbiased_and_finds_a_shift():
    found = np.asarray([mmd(normal(i), normal(1000 + i), 1.7) for i in range(60)])
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    assert found.min() < 0
    # Two normals a distance d apart: 2 (w^2 / (w^2 + 2))^(3/2) (1 - exp(-d^2 / (2 (w^2 + 2)))).
    width, shift = 1.7, 0.5
    peak = (width**2 / (width**2 + 2)) ** 1.5
    expected = 2 * peak * (1 - np.exp(-3 * shift**2 / (2 * (width**2 + 2))))
    shifted = mmd(normal(0, 3000), normal(1, 3000, shift=shift), width)
    assert shifted == pytest.approx(expected, rel=0.1)


def test_covered_is_inside_a_ball_that_reaches_to_the_third_neighbour():
    support = np.arange(11.0)[:, None]  # balls reach 2, those at the ends 3
    points = np.asarray([[-3.0], [-3.1], [5.5], [13.0], [13.1]])
    np.testing.assert_array_equal(is_covered(points, support), [1, 0, 1, 1, 0])


def test_a_fresh_sample_is_covered_and_a_far_one_is_not():
    assert is_covered(normal(0, 1000), normal(1, 1000)).mean() > 0.95
    assert is_covered(normal(0, 1000, shift=8.0), normal(1, 1000)).mean() < 0.01
    half = np.concatenate([normal(0, 500), normal(1, 500, shift=20.0)])
    assert is_covered(half, normal(2, 1000)).mean() == pytest.approx(0.49, abs=0.02)
