import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from edl_jax.training.metrics import NUM_BINS, metrics_of, sums_of

compiled = jax.jit(sums_of)


def reference(logits, labels):
    """Accuracy, mean surprisal and calibration error, image by image in float64."""
    x = np.asarray(logits, float)
    logs = x - x.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    confidence, correct = np.exp(logs).max(1), x.argmax(1) == labels
    error = 0.0
    for m in range(NUM_BINS):
        inside = (confidence > m / NUM_BINS) & (confidence <= (m + 1) / NUM_BINS)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return correct.mean(), -logs[np.arange(len(x)), labels].mean(), error


def random_images(seed, scale):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(64, 10))).astype(np.float32)
    return logits, rng.integers(0, 10, 64).astype(np.int32)


@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 5.0, 100.0]))
def test_metrics_against_float64_image_by_image(seed, scale):
    logits, labels = random_images(seed, scale)
    found = metrics_of(jax.device_get(compiled(logits, labels)), 64)
    for value, expected in zip(found.values(), reference(logits, labels), strict=True):
        assert value == pytest.approx(expected, rel=2e-5, abs=2e-6)


def test_surplus_rows_take_no_part_and_parts_add_up_to_the_whole():
    logits, labels = random_images(0, 3.0)
    surplus = np.where(np.arange(64) < 40, labels, -1)
    whole = jax.device_get(compiled(logits, surplus))
    expected = reference(logits[:40], labels[:40])
    for value, known in zip(metrics_of(whole, 40).values(), expected, strict=True):
        assert value == pytest.approx(known, rel=2e-5)
    parts = [
        compiled(logits, np.where(np.arange(64) % 2 == half, surplus, -1)) for half in range(2)
    ]
    for a, b, total in zip(*parts, whole, strict=True):
        np.testing.assert_allclose(a + b, total, rtol=1e-6)


def test_known_values():
    """Two images of confidence 0.6, one of them right: 0.1 away from an accuracy of one half."""
    logits = np.log(np.float32([[0.6, 0.4], [0.6, 0.4]]))
    found = metrics_of(jax.device_get(compiled(logits, np.int32([0, 1]))), 2)
    expected = (0.5, -(np.log(0.6) + np.log(0.4)) / 2, 0.1)
    np.testing.assert_allclose([*found.values()], expected, rtol=1e-6)
    # The end of a bin belongs to it, and confidence 1 to the last.
    sure = compiled(np.float32([[99, -99]]), np.int32([0]))
    assert np.argmax(sure.bin_correct) == 14
    even = compiled(np.zeros((1, 3), np.float32), np.int32([0]))
    assert np.argmax(even.bin_correct) == 4  # 1/3 of (4/15, 5/15]
