"""Vision transformers: refusals, initial weights, training without batch statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edl_jax.errors import ConfigError, InputError
from edl_jax.models import MODELS
from edl_jax.models.vit import VisionTransformer
from tests.network_tools import fill, images_of, logits_of, quick_jit


@pytest.mark.parametrize("size", [30, 33, 2])
def test_the_patch_must_divide_the_image(size):
    with pytest.raises(ConfigError, match=f"image_size is {size} .* multiples of 4 and 3, such"):
        MODELS["vit_tiny"](image_size=size, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("width", "advice"), [(64, 63), (1, 3), (191, 192)])
def test_the_heads_must_divide_the_width(width, advice):
    with pytest.raises(ConfigError, match=f"and width {width}; .* 3 heads .* and {advice}"):
        MODELS["vit_tiny"](width=width, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 32, 28, 3)])
def test_images_of_another_size_are_refused(shape):
    model = nnx.eval_shape(lambda: MODELS["vit_tiny"](rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=f"images are {shape[1]}x{shape[2]} .* for 32x32"):
        nnx.eval_shape(lambda model: model(jnp.ones(shape)), model)


@pytest.fixture(scope="module")
def short():
    """A transformer of one block."""
    with pytest.MonkeyPatch.context() as patch:
        model = partial(VisionTransformer, width=48, depth=1, heads=3, patch=4)
        patch.setitem(MODELS, "vit_short", model)
        yield "vit_short"


def filled(name: str) -> nnx.Module:
    return fill(nnx.eval_shape(lambda: MODELS[name](width=12, rngs=nnx.Rngs(0))))


def test_initial_weights(short):
    graph, state = quick_jit(lambda: nnx.split(MODELS[short](rngs=nnx.Rngs(0))))()
    model = nnx.merge(graph, jax.device_get(state))
    block = model.blocks[0]
    # Cut at two deviations, a normal distribution keeps 0.8796 of its own.
    matrices = [block.attention.query_key_value, block.attention.out, block.expand, block.contract]
    for array in [*(m.kernel for m in matrices), model.positions, model.head.kernel]:
        assert np.abs(array[...]).max() <= 0.04
        np.testing.assert_allclose(np.std(array[...]), 0.0176, rtol=0.06)
    np.testing.assert_allclose(np.std(model.embed.kernel[...]), 48**-0.5, rtol=0.06)
    for layer in [*matrices, model.embed, model.head]:
        assert not np.any(layer.bias[...])


def test_gradients_reach_every_parameter(short):
    graph, params, rest = nnx.split(filled(short), nnx.Param, ...)
    images = images_of(2, 32)

    @quick_jit
    def gradient(params, rest):
        def loss(params):
            logits = nnx.merge(graph, params, rest, copy=True)(images)
            return -jax.nn.log_softmax(logits)[:, 0].mean()

        return jax.grad(loss)(params)

    leaves = jax.tree.leaves(jax.device_get(gradient(params, rest)))
    assert len(leaves) == 20
    assert all(np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in leaves)


def test_training_and_evaluation_are_one(short):
    model, images = filled(short), images_of(2, 32)
    model.train()
    training = logits_of(model, images)
    model.eval()
    np.testing.assert_array_equal(logits_of(model, images), training)
