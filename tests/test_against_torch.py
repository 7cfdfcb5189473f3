"""Logits, statistics and gradients against PyTorch in float64, with the weights carried over."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from edl_jax.models import MODELS
from edl_jax.models.resnet import ResNet
from edl_jax.models.vit import VisionTransformer
from tests.network_tools import fill, images_of, quick_jit

torch = pytest.importorskip("torch")
reference = pytest.importorskip("tests.torch_reference")

pytestmark = pytest.mark.slow


def pair(name: str, **sizes):
    """A model and its PyTorch twin with the same weights and statistics."""
    if name == "vit":
        shape = {"depth": 2, "heads": 3, "patch": 4}
        build = partial(VisionTransformer, width=24, image_size=16, **shape)
        theirs = reference.VisionTransformer(24, image_size=16, **shape)
    elif name == "resnet18":
        build = partial(MODELS[name], **sizes)
        theirs = reference.ResNet((2, 2, 2, 2), sizes.get("width", 64), True)
    else:
        option_a, bottleneck = name == "option_a", name == "bottleneck"
        blocks = (1, 1, 1) if option_a else (1, 2)
        shape = {"width": 8, "projection": not option_a, "bottleneck": bottleneck}
        build = partial(ResNet, blocks, **shape)
        theirs = reference.ResNet(blocks, 8, not option_a, bottleneck)
    ours = fill(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    theirs = theirs.double()
    weights = reference.to_torch(nnx.state(ours))
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return ours, theirs


def batch(size: int, side: int):
    images = images_of(size, side)
    return images, torch.tensor(images.transpose(0, 3, 1, 2)).double()


@pytest.mark.parametrize("name", ["resnet18", "option_a", "bottleneck", "vit"])
def test_logits_statistics_and_gradients_are_pytorch_s(name):
    ours, theirs = pair(name, **({"width": 8} if name == "resnet18" else {}))
    images, torch_images = batch(8, 16)
    labels = np.arange(8)
    graph, params, rest = nnx.split(ours, nnx.Param, ...)

    @quick_jit
    def evaluate(params, rest):
        model = nnx.merge(graph, params, rest)
        model.eval()
        return model(images)

    @quick_jit
    def train(params, rest):
        def loss(params):
            model = nnx.merge(graph, params, rest, copy=True)
            logits = model(images)
            cross_entropy = -jax.nn.log_softmax(logits)[labels, labels].mean()
            return cross_entropy, (logits, nnx.state(model, nnx.Not(nnx.Param)))

        return jax.grad(loss, has_aux=True)(params)

    if name != "vit":  # whose fast path for evaluation is PyTorch's business
        theirs.eval()
    expected = theirs(torch_images).detach().numpy()
    np.testing.assert_allclose(evaluate(params, rest), expected, atol=1e-4)

    gradient, (logits, statistics) = train(params, rest)
    theirs.train()
    expected = theirs(torch_images)
    np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-4)
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()
    ours_by_name = reference.to_torch(gradient)
    theirs_by_name = dict(theirs.named_parameters())
    assert ours_by_name.keys() == theirs_by_name.keys()
    largest = max(float(p.grad.abs().max()) for p in theirs_by_name.values())
    for key, value in ours_by_name.items():
        expected = theirs_by_name[key].grad.numpy()
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=2e-5 * largest, err_msg=key)
    means = {k: v for k, v in reference.to_torch(statistics).items() if k.endswith("mean")}
    assert bool(means) == (name != "vit")
    for key, value in means.items():  # variances differ by PyTorch's n / (n - 1)
        np.testing.assert_allclose(value, theirs.state_dict()[key], atol=1e-5, err_msg=key)


def test_resnet18_at_full_width_is_pytorch_s():
    ours, theirs = pair("resnet18")
    images, torch_images = batch(2, 32)
    graph, state = nnx.split(ours)

    @quick_jit
    def evaluate(state):
        model = nnx.merge(graph, state)
        model.eval()
        return model(images)

    expected = theirs.eval()(torch_images).detach().numpy()
    np.testing.assert_allclose(evaluate(state), expected, atol=1e-4)
