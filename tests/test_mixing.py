"""Every setting is drawn from once, for all tests: 4,000 batches of 5 images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from edl_jax.data.augmentation import Augmentation, cutmix_box, mix

MIXUP = Augmentation(mixup=0.4)
CUTMIX = Augmentation(cutmix=1.0)
BOTH = Augmentation(mixup=0.4, cutmix=1.0)
NUM_CLASSES = 4
LABELS = np.array([3, 0, 2, 2, 1])
NEIGHBOUR = np.array([1, 0, 3, 2, 4])
IMAGES = np.random.default_rng(0).normal(size=(5, 6, 4, 2)).astype(np.float32)
DRAWS = 4000


@functools.cache
def draws(settings: Augmentation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixed images, soft labels, and the first label's weight, of every batch."""

    @jax.jit
    @jax.vmap
    def run(key):
        return mix(key, IMAGES, LABELS, settings, num_classes=NUM_CLASSES)

    images, labels = map(np.asarray, run(jax.random.split(jax.random.key(1), DRAWS)))
    assert images.shape == (DRAWS, *IMAGES.shape)
    assert labels.shape == (DRAWS, 5, NUM_CLASSES)
    assert images.dtype == labels.dtype == np.float32
    return images, labels, labels[:, 0, LABELS[0]]


def blended(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The formula, in float64: `keep` of each row and the rest of its neighbour's."""
    return keep * rows.astype(np.float64) + (1 - keep) * rows[NEIGHBOUR]


def boxes(images: np.ndarray) -> np.ndarray:
    """Where cutmix shows the neighbour, `[draws, h, w]`; everything else must be in place."""
    shown = (images == IMAGES[NEIGHBOUR]).all(-1)
    kept = (images == IMAGES).all(-1)
    assert (shown | kept).all()
    assert kept[:, 4].all()
    box = shown[:, 0]
    assert (shown[:, :4] == box[:, None]).all()  # one box for the whole batch
    return box


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX, BOTH])
def test_labels_are_blended_with_the_neighbours_and_rows_sum_to_one(settings):
    _, labels, weight = draws(settings)
    assert ((weight >= 0) & (weight <= 1)).all()
    expected = blended(np.eye(NUM_CLASSES)[LABELS], weight[:, None, None].astype(np.float64))
    np.testing.assert_allclose(labels, expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=0, atol=1e-6)
    assert (labels >= 0).all()


def test_mixup_blends_images_as_labels_by_a_beta_weight():
    images, _, weight = draws(MIXUP)
    expected = blended(IMAGES, weight[:, None, None, None, None].astype(np.float64))
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)
    assert stats.kstest(weight, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_cutmix_shows_the_neighbour_in_a_box_whose_area_the_labels_know():
    images, _, weight = draws(CUTMIX)
    box = boxes(images)
    rows, columns = box.any(2), box.any(1)
    assert (box == rows[:, :, None] & columns[:, None, :]).all()
    for side in (rows, columns):  # without a gap
        assert (abs(np.diff(side.astype(int), axis=1, prepend=0, append=0)).sum(1) <= 2).all()
    np.testing.assert_allclose(weight, 1 - box.mean((1, 2)), rtol=0, atol=1e-7)
    assert len(np.unique(weight)) > 10
    # With alpha 1, lambda is uniform, and each side loses whole pixels and what the border cuts.
    u = 1 - (np.arange(1_000) + 0.5) / 1_000
    expected = 1.0
    for size, side in ((6, rows), (4, columns)):
        sides = (size * u**0.5).astype(int)
        first = np.arange(size)[:, None] - sides // 2
        seen = np.clip(first + sides, 0, size) - np.clip(first, 0, size)
        assert side.mean() * size == pytest.approx(seen.mean(), abs=4 * size / DRAWS**0.5)
        expected = expected * seen.mean(0) / size
    assert 1 - weight.mean() == pytest.approx(expected.mean(), abs=4 * 0.5 / DRAWS**0.5)


@jax.jit
def jitted_boxes(keys, weight):
    return jax.vmap(lambda key: cutmix_box(key, 6, 4, weight))(keys)


@pytest.mark.parametrize(("weight", "sides"), [(0.0, (6, 4)), (0.7, (3, 2)), (1.0, (0, 0))])
def test_cutmix_box_has_its_sides_and_every_centre_alike(weight, sides):
    box = np.asarray(jitted_boxes(jax.random.split(jax.random.key(0), 2400), np.float32(weight)))
    if not any(sides):
        assert not box.any()
        return
    possible = set()
    for row in range(6):
        for column in range(4):
            expected = np.zeros((6, 4), bool)
            top, left = row - sides[0] // 2, column - sides[1] // 2
            expected[max(top, 0) : top + sides[0], max(left, 0) : left + sides[1]] = True
            possible.add(expected.tobytes())
    assert len(possible) == 24
    found, counts = np.unique(box.reshape(2400, -1), axis=0, return_counts=True)
    assert {one.tobytes() for one in found} == possible
    assert np.sum((counts - 100) ** 2 / 100) < 2 * 24 + 10  # chi-squared


def test_with_both_a_fair_coin_picks_for_the_batch_what_either_alone_would_do():
    both, mixup, cutmix = draws(BOTH), draws(MIXUP), draws(CUTMIX)
    is_mixup, is_cutmix = (
        np.isclose(both[0], alone[0], rtol=0, atol=1e-6).all((1, 2, 3, 4))
        & np.isclose(both[1], alone[1], rtol=0, atol=1e-6).all((1, 2))
        for alone in (mixup, cutmix)
    )
    assert (is_mixup | is_cutmix).all()
    assert is_mixup.mean() == pytest.approx(0.5, abs=4 * 0.5 / DRAWS**0.5)
    # The coin knows nothing of the weight.
    for _, _, weight in (mixup, cutmix):
        assert stats.ks_2samp(weight[is_mixup], weight[~is_mixup]).pvalue > 1e-3


def test_off_is_the_identity_with_integer_labels():
    key = jax.random.key(0)
    images, labels = mix(key, IMAGES, LABELS, Augmentation(), num_classes=NUM_CLASSES)
    assert images is IMAGES
    assert labels is LABELS


def test_division_into_even_parts_changes_nothing():
    key = jax.random.split(jax.random.key(1), DRAWS)[7]
    parts = IMAGES[:4].reshape(2, 2, 6, 4, 2), LABELS[:4].reshape(2, 2)
    run = jax.jit(jax.vmap(lambda x, y: mix(key, x, y, CUTMIX, num_classes=NUM_CLASSES)))
    for part, whole in zip(run(*parts), draws(CUTMIX), strict=False):
        np.testing.assert_array_equal(part.reshape(whole[7, :4].shape), whole[7, :4])
    assert (draws(CUTMIX)[0][7] != draws(CUTMIX)[0][8]).any()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform_and_keeps_bfloat16(platform):
    @jax.jit
    def prepare(key, images, labels):
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            return mix(key, images, labels, BOTH, num_classes=10)

    images = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((128,), jnp.int32)
    exported = jax.export.export(prepare, platforms=[platform])(jax.random.key(0), images, labels)
    assert [x.str_short() for x in exported.out_avals] == [
        "bfloat16[128,32,32,3]",
        "float32[128,10]",
    ]
