"""Label noise and class imbalance for training data, exact in number and fixed by a seed."""

from collections.abc import Sequence

import numpy as np

from edl_jax.checked import Seed, check
from edl_jax.errors import ConfigError

# Patrini et al. 2017: pairs that people and networks mix up.
_CIFAR10_FLIPS = {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
}


def imbalanced_counts(largest: int, num_classes: int, *, profile: str, factor: float) -> np.ndarray:
    """Class counts of an imbalanced set, rounded down.

    With `C` classes and `n = largest`, class `c` keeps `n * factor^(-c / (C - 1))` images if the
    profile is "exponential"; with "step", the last `C // 2` classes keep `n / factor` and the
    others all.

    Returns:
      `[num_classes]`, int64.

    References:
      Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019;
      Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss",
      NeurIPS 2019; Buda et al., "A systematic study of the class imbalance problem in
      convolutional neural networks", Neural Networks 2018.
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
    """Which examples an imbalanced set keeps, chosen at random within each class.

    The smallest class's count stands for `n` in the profile, so that the counts are the profile's
    exactly, whatever the counts were. A larger factor keeps a subset of what a smaller one keeps.

    Args:
      labels: `[n]`, whole numbers in `[0, num_classes)`.
      num_classes: number of classes.
      profile: "exponential" or "step", see `imbalanced_counts`.
      factor: count of the largest class over that of the smallest, at least 1.
      seed: of the choice, at least 0 and below 2^32.

    Returns:
      Positions in `labels`, increasing, int64.

    Raises:
      ConfigError: a class would be left without an example, or the seed cannot be.
    """
    available = int(np.bincount(labels, minlength=num_classes).min())
    counts = imbalanced_counts(available, num_classes, profile=profile, factor=factor)
    if counts.min() < 1:
        raise ConfigError(
            f"imbalance_factor is {factor} where the smallest class has {available} training "
            "images: a class would be left with none. Expected at most as much as it has images."
        )
    rng = np.random.default_rng([check("seed", seed, Seed), 0])
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen))


def symmetric_noise(labels: np.ndarray, num_classes: int, *, rate: float, seed: int) -> np.ndarray:
    """Replaces a share of each class's labels by one of the other classes, uniformly.

    Exactly `round(rate * n_c)` labels of class `c` become wrong: the rate is that of wrong labels,
    not of labels drawn anew (which would leave one in `num_classes` of them right). A higher rate
    with the same seed keeps the wrong labels of a lower one and adds to them.

    Args:
      labels: `[n]`, whole numbers in `[0, num_classes)`.
      num_classes: number of classes, at least 2.
      rate: share of wrong labels, in [0, 1].
      seed: of the choice, at least 0 and below 2^32.

    Returns:
      `[n]`, dtype of `labels`; a new array.

    Raises:
      ConfigError: if the seed cannot be.

    References:
      Angluin and Laird, "Learning from noisy examples", Machine Learning 1988; van Rooyen et al.,
      "Learning with symmetric label noise", NeurIPS 2015.
    """
    rng = np.random.default_rng([check("seed", seed, Seed), 1])
    noisy = labels.copy()
    for label in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        others = (label + rng.integers(1, num_classes, len(rows))) % num_classes
        count = round(rate * len(rows))
        noisy[rows[:count]] = others[:count]
    return noisy


def asymmetric_noise(
    labels: np.ndarray, targets: np.ndarray, *, rate: float, seed: int
) -> np.ndarray:
    """Replaces a share of each class's labels by one given class.

    Exactly `round(rate * n_c)` labels of class `c` become `targets[c]`; none where `targets[c]` is
    `c`. A higher rate with the same seed keeps the wrong labels of a lower one.

    Args:
      labels: `[n]`, whole numbers in `[0, num_classes)`.
      targets: `[num_classes]`, see `asymmetric_targets`.
      rate: share of wrong labels within each class that has any, in [0, 1].
      seed: of the choice, at least 0 and below 2^32.

    Returns:
      `[n]`, dtype of `labels`; a new array.

    Raises:
      ConfigError: if the seed cannot be.

    References:
      Patrini et al., "Making deep neural networks robust to label noise: a loss correction
      approach", CVPR 2017.
    """
    rng = np.random.default_rng([check("seed", seed, Seed), 1])
    noisy = labels.copy()
    for label, target in enumerate(targets):
        rows = rng.permutation(np.flatnonzero(labels == label))
        noisy[rows[: round(rate * len(rows))]] = target
    return noisy


def asymmetric_targets(class_names: Sequence[str], superclasses: np.ndarray | None) -> np.ndarray:
    """The class that each class is taken for.

    With CIFAR-10's class names: truck for automobile, bird for airplane, deer for horse, cat and
    dog for each other, and the other five for none. With superclasses, as CIFAR-100 has them: the
    next class of the same superclass, and the first for the last.

    Args:
      class_names: names of the classes.
      superclasses: `[num_classes]`, the superclass of each; None where there are none.

    Returns:
      `[num_classes]`, int64.

    Raises:
      ConfigError: there are neither these names nor superclasses.
    """
    targets = np.arange(len(class_names))
    if {*_CIFAR10_FLIPS, *_CIFAR10_FLIPS.values()} <= {*class_names}:
        number = {name: index for index, name in enumerate(class_names)}
        for name, target in _CIFAR10_FLIPS.items():
            targets[number[name]] = number[target]
        return targets
    if superclasses is None:
        raise ConfigError(
            "label_noise is 'asymmetric', which is defined for CIFAR-10 and for data sets with a "
            "coarse_label such as cifar100; expected 'symmetric' for this one."
        )
    for superclass in np.unique(superclasses):
        members = np.flatnonzero(superclasses == superclass)
        targets[members] = np.roll(members, -1)
    return targets
