import functools
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax.data.augmentation import Augmentation, augment, normalize
from edl_jax.errors import ConfigError

MEAN = np.array([0.49, 0.48, 0.45], np.float32)
COLOUR = [125, 122, 115]  # the mean in pixels


class Data(NamedTuple):
    """What `augment` reads of a data set."""

    crop_padding: int
    flip: bool
    mean: np.ndarray


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@functools.partial(jax.jit, static_argnames=("settings", "padding", "flip"))
def jitted_augment(key, images, index, *, settings, padding, flip):
    data: Any = Data(padding, flip, MEAN[: images.shape[-1]])
    return augment(key, images, index, settings, data)


def augmented(seed, images, *, padding, flip, settings=None, index=None) -> np.ndarray:
    settings = settings or Augmentation()
    index = np.arange(len(images)) if index is None else index
    key = jax.random.key(seed)
    out = jitted_augment(key, images, index, settings=settings, padding=padding, flip=flip)
    assert out.shape == images.shape
    assert out.dtype == np.uint8
    return np.asarray(out)


def every_result(image: np.ndarray, padding: int, flip: bool) -> dict[bytes, tuple[int, int, int]]:
    """All crops and mirror images of one image, by (top, left, mirrored)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    results = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            results[crop.tobytes()] = (top, left, 0)
            if flip:
                results[crop[:, ::-1].tobytes()] = (top, left, 1)
    return results


def assert_uniform(chosen: list[tuple[int, ...]], choices: int) -> None:
    counts = np.unique(np.array(chosen), axis=0, return_counts=True)[1]
    assert len(counts) == choices
    expected = len(chosen) / choices
    assert np.sum((counts - expected) ** 2 / expected) < 2 * choices + 10  # chi-squared


def test_without_padding_and_flip_is_the_identity():
    images = random_images(512, 6, 5, 3)
    np.testing.assert_array_equal(augmented(0, images, padding=0, flip=False), images)


def test_settings_turn_crop_and_flip_off():
    images = random_images(512, 6, 5, 3)
    off = Augmentation(crop=False, flip=False)
    np.testing.assert_array_equal(augmented(0, images, padding=2, flip=True, settings=off), images)
    for settings, (padding, flip) in [
        (Augmentation(crop=False), (0, True)),
        (Augmentation(flip=False), (2, False)),
    ]:
        np.testing.assert_array_equal(
            augmented(0, images, padding=2, flip=True, settings=settings),
            augmented(0, images, padding=padding, flip=flip),
        )


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_every_result_is_a_crop_of_its_own_image_and_all_choices_occur(padding, flip):
    images = random_images(512, 6, 5, 3)
    out = augmented(0, images, padding=padding, flip=flip)
    chosen = []
    for image, result in zip(images, out, strict=True):
        possible = every_result(image, padding, flip)
        assert result.tobytes() in possible
        chosen.append(possible[result.tobytes()])
    assert_uniform(chosen, (2 * padding + 1) ** 2 * (1 + flip))


def every_cutout(image: np.ndarray, size: int) -> dict[bytes, tuple[int, int]]:
    """One image with a square cut out around every pixel, by the square's centre."""
    height, width, channels = image.shape
    results = {}
    for row in range(height):
        for column in range(width):
            result = image.copy()
            top, left = row - size // 2, column - size // 2
            square = np.s_[max(top, 0) : top + size, max(left, 0) : left + size]
            result[square] = COLOUR[:channels]
            results[result.tobytes()] = (row, column)
    return results


@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutout_fills_a_square_around_every_pixel_alike(size):
    images = random_images(512, 4, 5, 3)
    settings = Augmentation(cutout=size)
    out = augmented(0, images, padding=0, flip=False, settings=settings)
    chosen = []
    for image, result in zip(images, out, strict=True):
        possible = every_cutout(image, size)
        assert len(possible) == 20
        chosen.append(possible[result.tobytes()])
    assert_uniform(chosen, 20)


def test_cutout_comes_last_and_its_place_is_independent_of_crop_and_flip():
    images = random_images(4000, 4, 4, 1) | 1  # none has the colour of what is cut out
    images[images == COLOUR[0]] = 0
    settings = Augmentation(cutout=1)
    out = augmented(0, images, padding=1, flip=True, settings=settings)
    plain = augmented(0, images, padding=1, flip=True)
    assert ((out != plain).sum((1, 2, 3)) == 1).all()
    assert (out[out != plain] == COLOUR[0]).all()
    row, column = np.argwhere((out != plain)[..., 0])[:, 1:].T
    pairs = zip(images, plain, strict=True)
    found = [every_result(image, 1, True)[result.tobytes()] for image, result in pairs]
    choices = [*np.array(found).T, row, column]
    correlations = np.corrcoef(choices) - np.eye(5)
    assert abs(correlations).max() < 4 / np.sqrt(4000)


def test_what_is_cut_out_is_zero_once_normalised():
    images = random_images(512, 4, 5, 3)
    out = augmented(0, images, padding=0, flip=False, settings=Augmentation(cutout=2))
    changed = out[(out != images).any(-1)]
    cut = normalize(jnp.asarray(changed[:, None, None]), MEAN, MEAN)
    assert len(cut) > 512
    assert abs(cut).max() < 0.5 / 255 / MEAN.min() + 1e-6


@hypothesis.given(st.lists(st.integers(0, 15), min_size=16, max_size=16), st.integers(0, 2**32 - 1))
def test_an_images_choices_depend_on_key_and_index_only(places, seed):
    places = np.array(places)
    images = random_images(16, 6, 5, 3)
    settings = Augmentation(cutout=2)
    whole = augmented(seed, images, padding=2, flip=True, settings=settings)
    part = augmented(seed, images[places], index=places, padding=2, flip=True, settings=settings)
    np.testing.assert_array_equal(part, whole[places])


def test_a_square_larger_than_the_images_is_refused():
    images = random_images(2, 6, 5, 3)
    options = {"padding": 0, "flip": False}
    jitted_augment.eval_shape(
        jax.random.key(0), images, np.arange(2), settings=Augmentation(cutout=5), **options
    )
    with pytest.raises(ConfigError, match=r"cutout is 6 with images of 6 x 5 pixels; .* at most 5"):
        augmented(0, images, settings=Augmentation(cutout=6), **options)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", 1),
        ("flip", "no"),
        ("cutout", -1),
        ("cutout", 2.0),
        ("mixup", -0.1),
        ("mixup", float("inf")),
        ("cutmix", float("nan")),
        ("cutmix", "1"),
    ],
)
def test_settings_that_cannot_work_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"Augmentation.{field} is .*; expected"):
        Augmentation(**{field: value})


def test_flips_are_even_and_independent_of_the_crop():
    images = random_images(4000, 4, 4, 1)
    out = augmented(3, images, padding=1, flip=True)
    pairs = zip(images, out, strict=True)
    chosen = np.array([every_result(image, 1, True)[result.tobytes()] for image, result in pairs])
    top, left, mirrored = chosen.T.astype(float)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    for first, second in [(top, left), (top, mirrored), (left, mirrored)]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(4000)


def test_same_key_same_result_and_another_key_another():
    images = random_images(512, 6, 5, 3)
    first, again, other = (augmented(seed, images, padding=2, flip=True) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(other != first)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_against_numpy_float64(dtype):
    images = random_images(3, 4, 5, 3)
    std = np.array([0.25, 0.24, 0.26], np.float32)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        out = normalize(jnp.asarray(images), MEAN, std, dtype)
    assert out.dtype == dtype
    expected = (images.astype(np.float64) / 255 - MEAN) / std
    tolerance = 3e-6 if dtype == jnp.float32 else 2**-8 * np.abs(expected).max()
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    settings = Augmentation(cutout=16)

    @jax.jit
    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            data: Any = Data(crop_padding=4, flip=True, mean=MEAN)
            augmented = augment(key, images, jnp.arange(128), settings, data)
            return normalize(augmented, jnp.zeros(3), jnp.ones(3), jnp.bfloat16)

    images = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.uint8)
    exported = jax.export.export(prepare, platforms=[platform])(jax.random.key(0), images)
    assert exported.out_avals[0].shape == images.shape
