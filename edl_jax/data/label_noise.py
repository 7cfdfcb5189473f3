"""Label noise and class imbalance for training data, exact in number and fixed by a seed."""

from collections.abc import Sequence

import numpy as np

from edl_jax.errors import ConfigError

# The class that each is taken for, of pairs that people and networks mix up (Patrini et al. 2017).
_CIFAR10 = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
# The superclasses of CIFAR-100 (Krizhevsky 2009), in which each is taken for the next.
_CIFAR100_GROUPS = """
beaver dolphin otter seal whale, aquarium_fish flatfish ray shark trout,
orchid poppy rose sunflower tulip, bottle bowl can cup plate,
apple mushroom orange pear sweet_pepper, clock keyboard lamp telephone television,
bed chair couch table wardrobe, bee beetle butterfly caterpillar cockroach,
bear leopard lion tiger wolf, bridge castle house road skyscraper,
cloud forest mountain plain sea, camel cattle chimpanzee elephant kangaroo,
fox porcupine possum raccoon skunk, crab lobster snail spider worm,
baby boy girl man woman, crocodile dinosaur lizard snake turtle,
hamster mouse rabbit shrew squirrel, maple_tree oak_tree palm_tree pine_tree willow_tree,
bicycle bus motorcycle pickup_truck train, lawn_mower rocket streetcar tank tractor
"""
_CIFAR100 = {
    name: group.split()[(place + 1) % 5]
    for group in _CIFAR100_GROUPS.split(",")
    for place, name in enumerate(group.split())
}


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
    uniformly (symmetric noise, Angluin and Laird 1988). The rate is that of wrong labels, not of
    labels drawn anew, of which one in `num_classes` would be right. A higher rate with the same
    seed keeps the wrong labels of a lower one.
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
    """The class that each is taken for, `[num_classes]`, of CIFAR-10 or CIFAR-100."""
    for flips in (_CIFAR10, _CIFAR100):
        if {*flips, *flips.values()} <= {*class_names}:
            number = {name: index for index, name in enumerate(class_names)}
            return np.array([number[flips.get(name, name)] for name in class_names])
    raise ConfigError(
        "label_noise is 'asymmetric', which is defined for the classes of CIFAR-10 and CIFAR-100; "
        "expected 'symmetric' for this data set."
    )
