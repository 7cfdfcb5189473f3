"""Every network by name: published sizes, gold logits, accelerators, refusals."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edl_jax.models import MODELS
from edl_jax.models.resnet import ResNet
from edl_jax.models.vit import VisionTransformer
from tests.network_tools import fill, images_of, logits_of

# Of each model: how many parameters were published, and the first image's first logits in training,
# by PyTorch. For these, write the network once more in tests/torch_reference.py, load into it
# `to_torch(nnx.state(narrow(name)))`, and give it `images_of(2, 32)`, all in float64. None: nobody
# else has published the model, so nothing is compared.
MODEL_FACTS = {
    "resnet8": (75_290, [2.33839, -1.15741, 0.888103, -1.63086]),
    "resnet20": (269_722, [-3.68383, -3.56179, 1.09101, -2.32448]),
    "resnet18": (11_173_962, [1.63586, -2.99883, 4.57483, 4.73184]),
    "resnet50": (23_520_842, [-1.32667, -12.1138, 5.84665, -8.72629]),
    # DeiT-Ti/16's count at 224 pixels and 1000 classes, below, for patch 4, 64 patches, 10 classes:
    "vit_tiny": (
        5_717_416 - (16**2 - 4**2) * 3 * 192 - (196 - 64) * 192 - 990 * 193,
        [-0.983707, -2.34645, -1.59127, -0.317247],
    ),
}
NAMES = [name for name in MODELS if MODELS.is_protected(name)]  # not those of other tests
EVALUATION = {
    "resnet8": [-0.346898, -2.4303, 0.52843, -0.456336],
    "resnet18": [29.7244, -4.25555, 22.6675, 19.7245],
}


def test_every_model_is_tested():
    assert {*NAMES} == {*MODEL_FACTS}


@functools.cache
def abstract(name: str) -> nnx.Module:
    """The network at full width, shapes only."""
    return nnx.eval_shape(lambda: MODELS[name](dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))


def narrow(name: str, dtype=jnp.float32) -> nnx.Module:
    width = 4 if name.startswith("resnet") else 12
    return fill(nnx.eval_shape(lambda: MODELS[name](width=width, dtype=dtype, rngs=nnx.Rngs(0))))


def size_of(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one(name):
    assert size_of(abstract(name)) == MODEL_FACTS[name][0]


@pytest.mark.parametrize(("width", "heads", "published"), [(192, 3, 5717416), (384, 6, 22050664)])
def test_parameter_count_of_deit_at_224_pixels_is_the_published_one(width, heads, published):
    shape = {"width": width, "depth": 12, "heads": heads, "patch": 16}
    sizes = {"num_classes": 1000, "image_size": 224}
    model = nnx.eval_shape(lambda: VisionTransformer(**shape, **sizes, rngs=nnx.Rngs(0)))
    assert size_of(model) == published


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_logits_are_pytorch_s(name):
    logits = logits_of(narrow(name), images_of(2, 32))
    assert logits.shape == (2, 10)
    if expected := MODEL_FACTS[name][1]:
        np.testing.assert_allclose(logits[0, :4], expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_logits_are_pytorch_s(name):
    model = narrow(name)
    model.eval()
    logits = logits_of(model, images_of(2, 32))
    np.testing.assert_allclose(logits[0, :4], EVALUATION[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_lowers_for_accelerators_with_products_in_bfloat16_and_a_float32_head(name):
    graph, params, rest = nnx.split(abstract(name), nnx.Param, ...)

    def train(params, rest, images):
        model = nnx.merge(graph, params, rest, copy=True)
        return model(images), nnx.state(model, nnx.Not(nnx.Param))

    images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.bfloat16)
    export = jax.export.export(jax.jit(train), platforms=["cuda", "tpu"])
    exported = export(params, rest, images)
    assert exported.platforms == ("cuda", "tpu")
    product = re.compile(r"stablehlo\.(?:convolution|dot_general).* : \(tensor<\w*x(b?f\d+)>")
    operands = [
        found[1] for found in map(product.search, exported.mlir_module().splitlines()) if found
    ]
    assert operands[-2:] == ["f32", "f32"]  # the head, once for each platform
    assert set(operands[:-2]) == {"bf16"}
    logits, statistics = jax.eval_shape(train, params, rest, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, statistics, logits))} == {
        jnp.dtype(jnp.float32)
    }


def test_bfloat16_is_near_float32():
    logits = logits_of(narrow("resnet8", jnp.bfloat16), images_of(2, 32))[0, :4]
    error = np.abs(logits - np.array(MODEL_FACTS["resnet8"][1]))
    assert 1e-4 < error.max() < 0.1


def test_resnet_takes_images_of_any_size():
    model = nnx.eval_shape(lambda: MODELS["resnet8"](image_size=28, rngs=nnx.Rngs(0)))
    assert isinstance(model, ResNet)
    assert nnx.eval_shape(
        lambda model, images: model(images), model, jnp.ones((1, 17, 9, 3))
    ).shape == (1, 10)
