import numpy as np
import pytest
from scipy import stats

from edl_jax import Pairs
from edl_jax.errors import InputError
from edl_jax.studies.transferability.distances import (
    SUMMARIES,
    coordinates,
    divergence,
    edges_of,
    is_covered,
    mean_discrepancy,
    median_distance,
    summarise_pairs,
    two_sample_test,
)


def normal(seed, size=300, dimensions=3, shift=0.0):
    return shift + np.random.default_rng(seed).normal(size=(size, dimensions))


def pairs_of(probabilities, labels):
    labels = np.asarray(labels, np.int32)
    return Pairs(np.asarray(probabilities, np.float32), labels, np.full_like(labels, -1))  # pyright: ignore


def test_summaries_of_known_pairs():
    pairs = pairs_of([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1, 0, 0], [0, 0, 1]], [0, 1, 0, 1])
    found = summarise_pairs(pairs)
    assert list(found) == list(SUMMARIES)
    np.testing.assert_allclose(found["true_probability"], [0.5, 0.25, 1, 0])
    np.testing.assert_allclose(found["rival_probability"], [0.25, 0.5, 0, 1])
    np.testing.assert_allclose(found["entropy"], [1.5 * np.log(2)] * 2 + [0, 0], atol=1e-12)
    np.testing.assert_allclose(found["confidence"], [0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(found["rank"], [1, 2, 1, 2])
    points = coordinates(pairs)
    assert points.shape == (4, 3)
    most = np.log(1e6 - 1)  # the logit of 1 - 1e-6
    np.testing.assert_allclose(points[2], [most, -most, 0], atol=1e-6)
    np.testing.assert_allclose(points[0], [0, -np.log(3), 1.5 * np.log(2)], atol=1e-6)


def test_relabelling_the_classes_changes_nothing():
    rng = np.random.default_rng(0)
    pairs = pairs_of(rng.dirichlet(np.full(7, 0.3), 200), rng.integers(7, size=200))
    order = rng.permutation(7)
    permuted = pairs_of(pairs.probabilities[:, order], np.argsort(order)[pairs.labels])
    np.testing.assert_allclose(coordinates(permuted), coordinates(pairs), atol=1e-12)
    before, after = summarise_pairs(pairs), summarise_pairs(permuted)
    for name in SUMMARIES:
        np.testing.assert_allclose(after[name], before[name], atol=1e-12, err_msg=name)


def test_bins_hold_every_summary():
    rng = np.random.default_rng(0)
    sure, unsure = rng.dirichlet(np.full(10, 0.03), 500), np.full((500, 10), 0.1)
    both = pairs_of(np.concatenate([sure, unsure]), rng.integers(10, size=1000))
    for name, values in summarise_pairs(both).items():
        edges = edges_of(name, 10)
        assert values.min() >= edges[0] - 1e-6, name
        assert values.max() <= edges[-1] + 1e-6, name
    ranks = np.histogram(np.arange(1, 11), edges_of("rank", 10))[0]
    np.testing.assert_array_equal(ranks, np.ones(10))
    assert len(edges_of("rank", 100)) == 21


def test_divergence_by_hand():
    edges = np.asarray([0.0, 1, 2, 3])
    # Histograms (1/2, 1/2, 0) and (0, 1/2, 1/2): half a bit.
    assert divergence(np.asarray([0.5, 1.5]), np.asarray([1.5, 2.5]), edges) == pytest.approx(0.5)
    assert divergence(np.asarray([0.1]), np.asarray([-4.0, 0.9]), edges) == 0
    assert divergence(np.asarray([0.1]), np.asarray([7.0]), edges) == pytest.approx(1)
    first, second = np.random.default_rng(0).uniform(size=(2, 4000))
    assert divergence(first, second, edges_of("confidence", 10)) < 0.004
    assert divergence(first, second**1.5, edges_of("confidence", 10)) > 0.01


def test_mean_discrepancy_against_brute_force():
    x, y, width = normal(0, 9), normal(1, 7, shift=0.5), 1.3

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * width**2))

    within = [
        np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
        for z in (x, y)
    ]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert mean_discrepancy(x, y, width) == pytest.approx(expected, rel=1e-12)


def test_mean_discrepancy_in_blocks_of_rows(monkeypatch):
    x, y = normal(0, 25), normal(1, 13)
    whole = mean_discrepancy(x, y, 1.0)
    inside = is_covered(x, y)
    monkeypatch.setattr("edl_jax.studies.transferability.distances._ROWS_AT_A_TIME", 10)
    assert mean_discrepancy(x, y, 1.0) == pytest.approx(whole, rel=1e-12)
    np.testing.assert_array_equal(is_covered(x, y), inside)


def test_mean_discrepancy_is_unbiased_and_finds_a_shift():
    found = np.asarray([mean_discrepancy(normal(i), normal(1000 + i), 1.7) for i in range(60)])
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    assert found.min() < 0
    # Two normals a distance d apart: 2 (w^2 / (w^2 + 2))^(3/2) (1 - exp(-d^2 / (2 (w^2 + 2)))).
    width, shift = 1.7, 0.5
    peak = (width**2 / (width**2 + 2)) ** 1.5
    expected = 2 * peak * (1 - np.exp(-3 * shift**2 / (2 * (width**2 + 2))))
    shifted = mean_discrepancy(normal(0, 3000), normal(1, 3000, shift=shift), width)
    assert shifted == pytest.approx(expected, rel=0.1)


def test_median_distance():
    points = np.asarray([[0.0], [1.0], [3.0]])  # distances 1, 2 and 3
    assert median_distance(points) == 2
    with pytest.raises(InputError, match="points are equal"):
        median_distance(np.zeros((5, 2)))


def test_two_sample_test_keeps_its_level_and_finds_a_shift():
    tests = [two_sample_test(normal(i, 60), normal(500 + i, 60), seed=i) for i in range(60)]
    p = np.asarray([test.p for test in tests])
    # Exact, so at most 5 % on average; more than this has a probability below 0.001.
    assert (p <= 0.05).sum() <= stats.binom.ppf(0.999, 60, 0.05)
    assert np.mean([test.accuracy for test in tests]) == pytest.approx(0.5, abs=0.04)
    found = two_sample_test(normal(0, 200), normal(1, 240, shift=1.5))
    assert found.accuracy > 0.85
    assert found.p < 1e-6
    # Of equal means and deviations, which a linear classifier could not tell apart.
    two_humps = normal(0, 400, 1) * 0.3 + np.sign(normal(1, 400, 1))
    assert two_sample_test(two_humps, two_humps.std() * normal(2, 400, 1)).p < 1e-4


def test_fisher_p_value_is_that_of_the_accuracy():
    x, y = np.zeros((20, 1)), np.ones((20, 1))
    test = two_sample_test(np.repeat(x, 4, axis=0), np.repeat(y, 4, axis=0))
    assert test.accuracy == 1
    assert test.p == pytest.approx(stats.hypergeom.pmf(40, 80, 40, 40))
    same = two_sample_test(x, x)
    assert (same.accuracy, same.p) == (0.5, 1)


def test_covered_is_inside_a_ball_that_reaches_to_the_third_neighbour():
    support = np.arange(11.0)[:, None]  # balls reach 2, those at the ends 3
    points = np.asarray([[-3.0], [-3.1], [5.5], [13.0], [13.1]])
    np.testing.assert_array_equal(is_covered(points, support), [1, 0, 1, 1, 0])


def test_a_fresh_sample_is_covered_and_a_far_one_is_not():
    assert is_covered(normal(0, 1000), normal(1, 1000)).mean() > 0.95
    assert is_covered(normal(0, 1000, shift=8.0), normal(1, 1000)).mean() < 0.01
    half = np.concatenate([normal(0, 500), normal(1, 500, shift=20.0)])
    assert is_covered(half, normal(2, 1000)).mean() == pytest.approx(0.49, abs=0.02)
