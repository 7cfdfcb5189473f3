import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edl_jax.models import MODELS
from edl_jax.models.resnet import ResNet
from tests.network_tools import fill, images_of, logits_of, quick_jit

called = nnx.jit(lambda model, images: model(images))


def resnet8(dtype=jnp.float32) -> nnx.Module:
    return fill(nnx.eval_shape(lambda: MODELS["resnet8"](width=4, dtype=dtype, rngs=nnx.Rngs(0))))


def size_of(model: nnx.Module) -> int:
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize(("blocks", "width"), [((1, 1, 1), 16), ((5, 5, 5), 16), ((3, 3, 3), 5)])
def test_parameter_count_of_the_cifar_family_by_arithmetic(blocks, width):
    """Counts by hand: a 3x3 kernel has 9 weights a channel pair; batch norm has 2 a channel."""

    def conv(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + 2 * outputs

    expected, channels = conv(3, width), width
    for stage, count in enumerate(blocks):
        for _ in range(count):
            wide = width * 2**stage
            expected += conv(channels, wide) + conv(wide, wide)
            channels = wide
    expected += channels * 10 + 10
    model = nnx.eval_shape(lambda: ResNet(blocks, width=width, rngs=nnx.Rngs(0)))
    assert size_of(model) == expected


@pytest.mark.parametrize("name", ["resnet8", "resnet18"])
@pytest.mark.parametrize("shape", [(2, 32, 3), (3, 8, 1)])
def test_logits_are_float32_of_one_row_per_image(name, shape):
    sizes = {"width": 4, "num_classes": 7, "in_channels": shape[-1]}
    model = fill(nnx.eval_shape(lambda: MODELS[name](**sizes, rngs=nnx.Rngs(0))))
    logits = logits_of(model, images_of(*shape))
    assert logits.shape == (shape[0], 7)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state():
    results = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = resnet8(dtype)
        logits = logits_of(model, images_of(8, 8))
        assert logits.dtype == jnp.float32
        leaves = jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
        model.eval()
        block = jax.eval_shape(lambda model=model: model.blocks[0].first(jnp.ones((1, 8, 8, 4))))
        assert block.dtype == dtype
        results[dtype] = np.asarray(logits)
    np.testing.assert_allclose(results[jnp.bfloat16], results[jnp.float32], atol=0.1, rtol=0.1)
    assert np.any(results[jnp.bfloat16] != results[jnp.float32])


def test_only_training_updates_the_batch_statistics():
    model = resnet8()
    images = 3 + images_of(4, 8)

    def statistics() -> list[np.ndarray]:
        return [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]

    before = statistics()
    stem = np.array(called(model.stem.conv, images))
    stem_mean = np.array(model.stem.norm.mean[...])
    train_logits = np.asarray(called(model, images))
    trained = statistics()
    assert len(before) == 2 * 7  # mean and variance of the stem and of six convolutions
    assert all(np.any(new != old) for new, old in zip(trained, before, strict=True))
    expected = 0.9 * stem_mean + 0.1 * stem.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(model.stem.norm.mean[...], expected, rtol=1e-4, atol=1e-5)
    model.eval()
    eval_logits = np.asarray(called(model, images))
    alone = called(model, images[:1])
    np.testing.assert_allclose(alone, eval_logits[:1], rtol=1e-4, atol=1e-5)
    assert all(np.all(new == old) for new, old in zip(statistics(), trained, strict=True))
    assert np.any(np.abs(eval_logits - train_logits) > 1e-3)
    model.train()
    called(model, images)
    assert any(np.any(new != old) for new, old in zip(statistics(), trained, strict=True))


def test_running_statistics_are_not_rounded_in_bfloat16():
    model = resnet8(jnp.bfloat16)
    model.eval()
    norm = model.stem.norm
    norm.mean[...] = jnp.full(4, 1000.3)  # bfloat16 has 1000 and 1004
    norm.var[...] = norm.scale[...] = jnp.ones(4)
    norm.bias[...] = jnp.zeros(4)
    normalised = norm(jnp.full((1, 1, 1, 4), 1000.0, jnp.bfloat16))
    np.testing.assert_allclose(normalised, -0.3, atol=1e-3)


def test_pure_function_of_state_under_jit_and_grad():
    model = resnet8()
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    images, labels = images_of(4, 8), np.arange(4)

    @quick_jit
    def step(params, stats):
        def loss(params):
            model = nnx.merge(graph, params, stats, copy=True)
            log_probs = jax.nn.log_softmax(model(images))
            return -log_probs[jnp.arange(4), labels].mean(), nnx.state(model, nnx.BatchStat)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, new_stats), grads = step(params, stats)
    log_probs = jax.nn.log_softmax(called(model, images))
    expected = -np.asarray(log_probs)[np.arange(4), labels].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(
        lambda new, direct: np.testing.assert_allclose(new, direct, rtol=1e-4, atol=1e-5),
        new_stats,
        nnx.state(model, nnx.BatchStat),
    )
    gradients = jax.tree.leaves(jax.device_get(grads))
    assert len(gradients) == len(jax.tree.leaves(params))
    assert all(np.isfinite(g).all() and np.any(g != 0) for g in gradients)


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    model = nnx.eval_shape(lambda: MODELS["resnet8"](width=4, rngs=nnx.Rngs(0)))
    x = images_of(2, 8, 4)
    y = np.asarray(model.blocks[1].shortcut(x))
    assert y.shape == (2, 4, 4, 8)
    np.testing.assert_array_equal(y[..., 2:6], x[:, ::2, ::2])
    assert not np.any(y[..., :2])
    assert not np.any(y[..., 6:])


def test_initial_weights_are_he_normal_over_the_fan_out():
    @quick_jit
    def kernels():
        model = MODELS["resnet8"](width=64, rngs=nnx.Rngs(0))
        return [block.first.conv.kernel[...] for block in model.blocks[:2]]

    for kernel in kernels():
        fan_out = 9 * kernel.shape[-1]
        np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / fan_out), rtol=0.02)
