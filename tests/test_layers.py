"""The normalised head against NumPy, and batch statistics over a mapped axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads

from edl_jax.models import MODELS
from edl_jax.models.layers import NormalizedHead
from tests.network_tools import fill, images_of, quick_jit

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
    logits = head_of(kernel, scale)(jnp.asarray(features, jnp.float32))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, scale * features @ kernel / norms, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head_of(features.T, scale)(features).diagonal(), scale, rtol=1e-6)


def test_normalized_head_s_gradients_are_those_of_finite_differences():
    draws = np.random.RandomState(0)
    arrays = [jnp.asarray(draws.normal(size=size), "float32") for size in [(3, 4), (4, 2)]]
    check_grads(lambda x, w: head_of(w, 1.0)(x), arrays, order=1, modes=["rev"], atol=0.01)


VALUES = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1e-30, 1e-6, -1e-6])


@given(arrays(np.float32, (2, 3), elements=VALUES), arrays(np.float32, (3, 2), elements=VALUES))
def test_normalized_head_is_finite_and_bounded_by_the_scale_for_every_input(features, kernel):
    logits, gradients = value_and_gradients(features, kernel)
    assert np.all(np.abs(logits) <= SCALE * (1 + 1e-5))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_features_without_direction_have_cosines_of_zero_and_no_gradient():
    kernel = np.random.RandomState(0).normal(size=(4, 3)).astype(np.float32)
    features = np.stack([np.zeros(4), np.full(4, 1e-8), np.ones(4)]).astype(np.float32)
    logits, (gradient, _) = value_and_gradients(features, kernel)
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


def statistics_and_gradient(norm_axis: str | None, shards: int | None):
    """New statistics and gradient of a step on 8 images, divided into mapped shards if asked."""
    model = nnx.eval_shape(
        lambda: MODELS["resnet8"](width=2, norm_axis=norm_axis, rngs=nnx.Rngs(0))
    )
    graph, params, statistics = nnx.split(fill(model), nnx.Param, nnx.BatchStat)
    images, labels = images_of(8, 8), np.arange(8)

    def loss(params, images, labels):
        model = nnx.merge(graph, params, statistics, copy=True)
        logits = model(images)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return losses.mean(), nnx.state(model, nnx.BatchStat)

    def whole(params):
        if shards is None:
            return loss(params, images, labels)
        mapped = jax.vmap(loss, in_axes=(None, 0, 0), axis_name="shard")
        parts = (x.reshape(shards, -1, *x.shape[1:]) for x in (images, labels))
        value, statistics = mapped(params, *parts)
        return value.mean(), statistics

    gradient, statistics = quick_jit(jax.grad(whole, has_aux=True))(params)
    return jax.tree.leaves(statistics), jax.tree.leaves(gradient)


def test_statistics_over_a_mapped_axis_are_those_of_the_whole_batch():
    statistics, gradient = statistics_and_gradient(None, None)
    over_shards, over_gradient = statistics_and_gradient("shard", 4)
    for each, whole in zip(over_shards, statistics, strict=True):
        np.testing.assert_allclose(each, np.stack([whole] * 4), rtol=1e-4, atol=1e-5)
    for mapped, whole in zip(over_gradient, gradient, strict=True):
        np.testing.assert_allclose(mapped, whole, rtol=1e-3, atol=1e-4)


def test_statistics_stay_local_without_an_axis():
    statistics, _ = statistics_and_gradient(None, 4)
    assert all(np.any(each[0] != each[1]) for each in statistics)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("resnet50", 53)])
def test_every_batch_norm_has_the_axis(name, count):
    model = nnx.eval_shape(lambda: MODELS[name](norm_axis="shard", rngs=nnx.Rngs(0)))
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
    assert [norm.axis_name for norm in norms] == ["shard"] * count
