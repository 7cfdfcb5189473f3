"""The normalised head against NumPy, and batch norm over the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads

from edl_jax.data import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.models import MODELS
from edl_jax.models.layers import NormalizedHead
from edl_jax.training import TrainConfig
from edl_jax.training.classifier import AXIS, make_build
from tests.network_tools import logits_of

SCALE = 30.0


def head_of(kernel: np.ndarray, scale: float = SCALE) -> NormalizedHead:
    head = nnx.eval_shape(lambda: NormalizedHead(*kernel.shape, scale=scale, rngs=nnx.Rngs(0)))
    head.kernel = nnx.Param(jnp.asarray(kernel, jnp.float32))
    return head


@jax.jit
def value_and_gradients(features: jax.Array, kernel: jax.Array):
    """Logits, and gradients of their sum of squares."""

    def loss(features, kernel):
        logits = head_of(kernel)(features)
        return jnp.sum(logits**2), logits

    gradients, logits = jax.grad(loss, argnums=(0, 1), has_aux=True)(features, kernel)
    return logits, gradients


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_normalized_head_gives_scaled_cosines(scale):
    draws = np.random.RandomState(0)
    features, kernel = draws.normal(size=(5, 6)), draws.normal(size=(6, 3))
    norms = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)
    features, kernel = features.astype(np.float32), kernel.astype(np.float32)
    logits = logits_of(head_of(kernel, scale), features)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, scale * features @ kernel / norms, rtol=1e-5, atol=1e-5)
    own = np.asarray(logits_of(head_of(features.T, scale), features))
    np.testing.assert_allclose(own.diagonal(), scale, rtol=1e-6)


def test_normalized_head_s_gradients_are_those_of_finite_differences():
    draws = np.random.RandomState(0)
    arrays = [draws.normal(size=size).astype("float32") for size in [(3, 4), (4, 2)]]
    logits = jax.jit(lambda x, w: head_of(w, 1.0)(x))
    check_grads(logits, arrays, order=1, modes=["rev"], atol=0.01)


VALUES = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1e-30, 1e-6, -1e-6])


@given(arrays(np.float32, (2, 3), elements=VALUES), arrays(np.float32, (3, 2), elements=VALUES))
def test_normalized_head_is_finite_and_bounded_by_the_scale_for_every_input(features, kernel):
    logits, gradients = jax.device_get(value_and_gradients(features, kernel))
    assert np.all(np.abs(logits) <= SCALE * (1 + 1e-5))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_features_without_direction_have_cosines_of_zero_and_no_gradient():
    kernel = np.random.RandomState(0).normal(size=(4, 3)).astype(np.float32)
    features = np.stack([np.zeros(4), np.full(4, 1e-8), np.ones(4)]).astype(np.float32)
    logits, (gradient, _) = jax.device_get(value_and_gradients(features, kernel))
    assert not np.any(logits[:2])
    assert not np.any(gradient[:2])
    assert np.all(logits[2] != 0)
    assert np.any(gradient[2] != 0)


@pytest.mark.parametrize("name", ["resnet8", "vit_tiny"])
def test_every_family_takes_a_normalized_head(name):
    model = nnx.eval_shape(lambda: MODELS[name](width=6, head_scale=7.0, rngs=nnx.Rngs(0)))
    assert isinstance(model.head, NormalizedHead)
    assert model.head.scale == 7.0
    assert model.head.kernel.shape[1] == 10


@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("resnet50", 53)])
def test_every_batch_norm_has_the_axis_where_statistics_are_synchronised(name, count):
    config = TrainConfig(model=name, data=DataConfig("digits"), sync_batch_norm=True)
    build = make_build(config, load_dataset(config.data), jnp.float32)
    model = nnx.eval_shape(lambda: build(jax.random.key(0)))
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
    assert [norm.axis_name for norm in norms] == [AXIS] * count
