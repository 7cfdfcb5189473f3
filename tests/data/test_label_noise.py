import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from edl_jax.data.label_noise import (
    asymmetric_targets,
    imbalanced_counts,
    imbalanced_rows,
    noisy_labels,
)
from edl_jax.errors import ConfigError
from tests.data.conftest import CIFAR10_NAMES


@st.composite
def labelled(draw):
    """Labels of a few classes, in any order, and the number of classes."""
    num_classes = draw(st.integers(2, 6))
    labels = draw(st.lists(st.integers(0, num_classes - 1), max_size=60))
    return np.array(labels, np.int32), num_classes


RATES, SEEDS = st.floats(0, 1), st.integers(0, 2**32 - 1)


# Label noise


@hypothesis.given(labelled(), RATES, SEEDS)
def test_symmetric_noise_makes_exactly_the_stated_share_of_each_class_wrong(case, rate, seed):
    labels, num_classes = case
    before = labels.copy()
    noisy = noisy_labels(labels, num_classes, None, rate=rate, seed=seed)
    np.testing.assert_array_equal(labels, before)
    assert noisy.dtype == labels.dtype
    assert np.all((noisy >= 0) & (noisy < num_classes))
    for label in range(num_classes):
        own = labels == label
        assert np.sum(noisy[own] != label) == round(rate * own.sum())
    again = noisy_labels(labels, num_classes, None, rate=rate, seed=seed)
    np.testing.assert_array_equal(noisy, again)


@hypothesis.given(labelled(), RATES, RATES, SEEDS)
def test_a_higher_rate_keeps_the_wrong_labels_of_a_lower_one(case, one, other, seed):
    labels, num_classes = case
    low, high = sorted((one, other))
    for targets in (None, np.roll(np.arange(num_classes), 1)):
        few, many = (
            noisy_labels(labels, num_classes, targets, rate=rate, seed=seed) for rate in (low, high)
        )
        np.testing.assert_array_equal(many[few != labels], few[few != labels])


def test_symmetric_noise_is_uniform_over_the_other_classes():
    labels = np.repeat(np.arange(4), 30_000)
    noisy = noisy_labels(labels, 4, None, rate=0.6, seed=0)
    for label in range(4):
        counts = np.bincount(noisy[labels == label], minlength=4)
        assert counts[label] == 12_000
        # 18,000 draws among three: standard deviation 63.
        np.testing.assert_allclose(np.delete(counts, label), 6_000, atol=320)


def test_noise_differs_between_seeds_and_is_the_same_for_ever():
    labels = np.arange(30) % 3
    first, second = (noisy_labels(labels, 3, None, rate=0.5, seed=seed) for seed in (0, 1))
    assert np.any((first != labels) != (second != labels))
    # Recorded: published results must stay reproducible.
    assert "".join(map(str, first)) == "010212000112010011022122100122"


@hypothesis.given(labelled(), RATES, SEEDS)
def test_asymmetric_noise_takes_exactly_the_stated_share_to_the_target(case, rate, seed):
    labels, num_classes = case
    targets = np.arange(num_classes)
    targets[0] = 1
    noisy = noisy_labels(labels, num_classes, targets, rate=rate, seed=seed)
    assert np.sum(noisy[labels == 0] == 1) == round(rate * np.sum(labels == 0))
    np.testing.assert_array_equal(noisy[labels != 0], labels[labels != 0])
    assert set(noisy[labels == 0]) <= {0, 1}


def test_cifar10s_flips_are_patrinis():
    targets = asymmetric_targets(CIFAR10_NAMES)
    changed = {
        CIFAR10_NAMES[label]: CIFAR10_NAMES[target]
        for label, target in enumerate(targets)
        if label != target
    }
    assert changed == {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    }


def test_other_classes_have_no_flips():
    with pytest.raises(ConfigError, match="'asymmetric'"):
        asymmetric_targets(("cat", "dog"))


# Imbalance


@pytest.mark.parametrize(
    ("largest", "classes", "profile", "factor", "counts"),
    [
        # CIFAR-10-LT as published with Cao et al.'s code, 12,406 and 20,431 images.
        (5000, 10, "exponential", 100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (5000, 10, "exponential", 10, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
        (5000, 10, "step", 100, [5000] * 5 + [50] * 5),
        (100, 5, "step", 10, [100, 100, 100, 10, 10]),
        (500, 2, "exponential", 50, [500, 10]),
        (49, 2, "step", 49, [49, 1]),  # 49 * 49**-1 is less than 1 in float64
        (7, 3, "exponential", 1, [7, 7, 7]),
        (7, 1, "exponential", 3, [7]),
    ],
)
def test_profiles_are_the_published_ones(largest, classes, profile, factor, counts):
    found = imbalanced_counts(largest, classes, profile=profile, factor=factor)
    assert found.tolist() == counts


@hypothesis.given(
    st.lists(st.integers(8, 20), min_size=2, max_size=6),
    st.sampled_from(["exponential", "step"]),
    st.floats(1, 8),
    st.floats(1, 8),
    SEEDS,
)
def test_imbalanced_rows_follow_the_profile_and_are_nested(sizes, profile, one, other, seed):
    num_classes, available = len(sizes), min(sizes)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(num_classes), sizes))
    low, high = sorted((one, other))
    few, many = (
        imbalanced_rows(labels, num_classes, profile=profile, factor=factor, seed=seed)
        for factor in (high, low)
    )
    assert set(few) <= set(many)
    for rows, factor in ((few, high), (many, low)):
        assert np.all(np.diff(rows) > 0)
        expected = imbalanced_counts(available, num_classes, profile=profile, factor=factor)
        found = np.bincount(labels[rows], minlength=num_classes)
        np.testing.assert_array_equal(found, expected)


def test_imbalanced_rows_depend_on_the_seed_and_not_on_the_place():
    labels = np.repeat([0, 1], 50)
    options = {"profile": "exponential", "factor": 5}
    one, other = (imbalanced_rows(labels, 2, seed=seed, **options) for seed in (0, 1))
    assert len(one) == len(other) == 60
    assert np.any(one != other)
    assert one[-10:].tolist() != [*range(50, 60)]


def test_a_class_without_an_image_is_refused():
    with pytest.raises(ConfigError, match="factor is 6 where the smallest class has 5 train"):
        imbalanced_rows(np.arange(10) % 2, 2, profile="step", factor=6, seed=0)
