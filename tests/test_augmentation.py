import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax.training.augmentation import augment, normalize


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def augmented(seed: int, images: np.ndarray, *, padding: int, flip: bool) -> np.ndarray:
    out = augment(jax.random.key(seed), jnp.asarray(images), padding=padding, flip=flip)
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


def test_without_padding_and_flip_is_the_identity():
    images = random_images(4, 6, 5, 3)
    np.testing.assert_array_equal(augmented(0, images, padding=0, flip=False), images)


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
    counts = np.unique(np.array(chosen), axis=0, return_counts=True)[1]
    choices = (2 * padding + 1) ** 2 * (1 + flip)
    assert len(counts) == choices
    expected = len(images) / choices
    assert np.sum((counts - expected) ** 2 / expected) < 2 * choices + 10  # chi-squared


def test_flips_are_even_and_independent_of_the_crop():
    images = random_images(4000, 4, 4, 1)
    out = augmented(3, images, padding=1, flip=True)
    pairs = zip(images, out, strict=True)
    chosen = np.array([every_result(image, 1, True)[result.tobytes()] for image, result in pairs])
    top, left, mirrored = chosen.T.astype(float)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    for first, second in [(top, left), (top, mirrored), (left, mirrored)]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(4000)


def test_same_key_same_result_under_jit_and_another_key_another():
    images = random_images(16, 8, 8, 1)
    jitted = jax.jit(functools.partial(augment, padding=2, flip=True))
    plain = augmented(0, images, padding=2, flip=True)
    np.testing.assert_array_equal(jitted(jax.random.key(0), images), plain)
    assert np.any(augmented(1, images, padding=2, flip=True) != plain)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_against_numpy_float64(dtype):
    images = random_images(3, 4, 5, 3)
    mean = np.array([0.49, 0.48, 0.45], np.float32)
    std = np.array([0.25, 0.24, 0.26], np.float32)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        out = normalize(jnp.asarray(images), mean, std, dtype)
    assert out.dtype == dtype
    expected = (images.astype(np.float64) / 255 - mean) / std
    tolerance = 3e-6 if dtype == jnp.float32 else 2**-8 * np.abs(expected).max()
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_lowers_for_every_platform(platform):
    @jax.jit
    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        augmented = augment(key, images, padding=4, flip=True)
        return normalize(augmented, jnp.zeros(3), jnp.ones(3), jnp.bfloat16)

    images = jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.uint8)
    exported = jax.export.export(prepare, platforms=[platform])(jax.random.key(0), images)
    assert exported.out_avals[0].shape == images.shape
