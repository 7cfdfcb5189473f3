"""Label noise and class imbalance for training data, exact in number and fixed by a seed."""

from collections.abc import Sequence

import numpy as np

from edl_jax.errors import ConfigError

# Of CIFAR-10, pairs that people and networks mix up (Patrini et al. 2017).
_FLIPS = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


def imbalanced_counts(largest: int, num_classes: int, *, profile: str, factor: float) -> np.ndarray:
    """Class counts of an imbalanced set, rounded down, `[num_classes]`, int64.

    With `C` classes and `n = largest`, class `c` keeps `n * factor^(-c / (C - 1))` images if the
    profile is "exponential" (Cui et al. 2019, Cao et al. 2019); with "step" (Buda et al. 2018), the
    last `C // 2` classes keep `n / factor` and the others all.
    """
    classes = np.arange(num_classes)
    if profile == "exponential":
        exponents = classes / max(num_classes - 1, 1)
    else:
        exponents = classes >= num_classes - num_classes // 2
    # 1e-9: what is a whole number but for rounding stays it.
    return np.floor(largest * factor ** -exponents.astype(float) + 1e-9).astype(np.int64)


def imbalanced_rows(
    labels: np.ndarray, num_classes: int, *, profile: str, factor: float, seed: int
) -> np.ndarray:
    """Which examples an imbalanced set keeps, chosen at random within each class, increasing.

    The smallest class's count stands for `n` in `imbalanced_counts`, so that the counts are the
    profile's exactly. A larger factor keeps a subset of what a smaller one keeps.
    """
    available = int(np.bincount(labels, minlength=num_classes).min())
    counts = imbalanced_counts(available, num_classes, profile=profile, factor=factor)
    if counts.min() < 1:
        raise ConfigError(
            f"imbalance_factor is {factor} where the smallest class has {available} training "
            "images: a class would be left with none. Expected at most as much as it has images."
        )
    rng = np.random.default_rng([seed, 0])
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen))


def noisy_labels(
    labels: np.ndarray, num_classes: int, targets: np.ndarray | None, *, rate: float, seed: int
) -> np.ndarray:
    """Labels of which exactly `round(rate * n_c)` of each class `c` are wrong.

    Each class is taken for its target (asymmetric noise, Patrini et al. 2017), or for any other,
    uniformly (symmetric noise, Angluin and Laird 1988). A higher rate with the same seed keeps the
    wrong labels of a lower one.
    """
    rng = np.random.default_rng([seed, 1])
    noisy = labels.copy()
    for label in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if targets is None:
            wrong = (label + rng.integers(1, num_classes, len(rows))) % num_classes
        else:
            wrong = np.full(len(rows), targets[label])
        count = round(rate * len(rows))
        noisy[rows[:count]] = wrong[:count]
    return noisy


def asymmetric_targets(class_names: Sequence[str]) -> np.ndarray:
    """The class that each of CIFAR-10 is taken for, `[num_classes]`."""
    if not {*_FLIPS, *_FLIPS.values()} <= {*class_names}:
        raise ConfigError(
            "label_noise is 'asymmetric', which is defined for the classes of CIFAR-10; expected "
            "'symmetric' for this data set."
        )
    return np.array([class_names.index(_FLIPS.get(name, name)) for name in class_names])
