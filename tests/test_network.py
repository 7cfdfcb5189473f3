import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, strategies as st
from scipy.special import log_softmax

from edl_jax import ClassAgnosticNetwork, PairNetwork
from edl_jax.errors import ConfigError, InputError
from edl_jax.networks import ACTIVATIONS, Architecture
from tests.network_tools import quick_jit


def agnostic(seed: int = 0, **options) -> ClassAgnosticNetwork:
    return ClassAgnosticNetwork(rngs=nnx.Rngs(seed), **options)


def pairs_of(num_classes: int, seed: int = 0, num_pairs: int = 200):
    """From near-uniform predictions to a single class in float32, some with ties; not compiled."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_pairs, num_classes)) / 10 ** rng.uniform(-2, 1, (num_pairs, 1))
    logits[::7, :2] = logits[::7].max(axis=1, keepdims=True)
    log_p = np.maximum(log_softmax(logits, axis=-1), np.log(np.finfo(np.float32).tiny))
    return log_p.astype(np.float32), rng.integers(num_classes, size=num_pairs, dtype=np.int32)


@functools.partial(quick_jit, static_argnums=(0, 1))
def _called(function, graph, state, *arguments):
    return function(nnx.merge(graph, state), *arguments)


def called(function, network, *arguments):
    """`function(network, *arguments)`, compiled once for all networks of a structure."""
    return _called(function, *nnx.split(network), *arguments)


def losses_of(network, log_p, labels):
    return called(type(network).__call__, network, log_p, labels)


def test_accelerators_multiply_in_full_float32():
    features = jax.ShapeDtypeStruct((5, 8), jnp.float32)
    exported = jax.export.export(
        jax.jit(lambda x: agnostic().from_features(x)), platforms=["cuda", "tpu"]
    )(features)
    products = [x for x in exported.mlir_module().splitlines() if "stablehlo.dot_general" in x]
    assert len(products) >= 3  # a layer each
    assert all("precision = [HIGHEST, HIGHEST]" in x for x in products)


def test_summaries_against_float64():
    log_p, labels = pairs_of(6)
    p, y = np.exp(np.asarray(log_p, np.float64)), np.asarray(labels)
    rows = np.arange(len(y))
    others = p.copy()
    others[rows, y] = -1
    expected = [
        p[rows, y],
        -np.asarray(log_p, np.float64)[rows, y] / 4,
        others.max(-1),
        -(p * np.asarray(log_p, np.float64)).sum(-1) / 4,
        (p**2).sum(-1),
    ]
    found = called(ClassAgnosticNetwork.features, agnostic(), log_p, labels)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def features_of_every_class(network, log_p):
    """`[num_features, ..., num_classes]`, each class in turn being the label."""
    classes = jnp.arange(log_p.shape[-1]).reshape((1,) * (log_p.ndim - 1) + (-1,))
    parts = network.class_features(log_p)(classes, log_p)
    return jnp.concatenate([jnp.broadcast_to(x, (len(x), *log_p.shape)) for x in parts])


@pytest.mark.parametrize("network", [agnostic(), PairNetwork(5, rngs=nnx.Rngs(0))])
def test_features_of_every_class_are_the_features_of_each(network):
    log_p, _ = pairs_of(5)
    every = called(features_of_every_class, network, log_p)
    for label in range(5):
        one = called(type(network).features, network, log_p, np.full(200, label, np.int32))
        np.testing.assert_allclose(every[..., label], one, rtol=1e-6)


@pytest.mark.parametrize("ties", [2, 3])
def test_rival_of_a_tied_class_is_its_twin(ties):
    p = np.float32([0.3] * ties + [1 - 0.3 * ties])
    rival = called(features_of_every_class, agnostic(), np.log(p))[2]
    np.testing.assert_allclose(rival[:ties], max(0.3, 1 - 0.3 * ties), rtol=1e-6)


@pytest.mark.parametrize("ties", [2, 3])
def test_the_rival_of_a_tied_class_moves_with_its_twins(ties):
    logits, step = np.asarray([2.0] * ties + [1.0, 0.0]), 1e-6

    def rival(x, label):
        return np.exp(np.delete(x - np.log(np.exp(x).sum()), label).max())

    jacobian = quick_jit(
        jax.jacobian(lambda x: features_of_every_class(agnostic(), jax.nn.log_softmax(x))[2])
    )(np.float32(logits))
    for label in range(ties):
        expected = [
            (rival(logits + step * e, label) - rival(logits - step * e, label)) / (2 * step)
            for e in np.eye(len(logits))
        ]
        np.testing.assert_allclose(jacobian[label], expected, atol=1e-6)


@given(seed=st.integers(0, 1000), num_classes=st.sampled_from([2, 3, 10, 50]))
def test_relabelling_the_classes_does_not_change_the_loss(seed, num_classes):
    log_p, labels = pairs_of(num_classes, seed, num_pairs=50)
    order = np.random.default_rng(seed).permutation(num_classes)
    network = agnostic(seed)
    relabelled = losses_of(network, log_p[:, order], np.argsort(order)[labels])
    # Only the order of sums over classes differs.
    np.testing.assert_allclose(relabelled, losses_of(network, log_p, labels), rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_finite_and_not_negative(activation, seed):
    for network, num_classes in (
        (agnostic(seed, activation=activation), 7),
        (PairNetwork(7, activation=activation, rngs=nnx.Rngs(seed)), 7),
    ):
        losses = np.asarray(losses_of(network, *pairs_of(num_classes, seed)))
        assert losses.shape == (200,)
        assert (losses >= 0).all()
        assert np.isfinite(losses).all()


def test_mlp_against_numpy():
    network = PairNetwork(3, hidden=(4,), activation="tanh", rngs=nnx.Rngs(1))
    log_p, labels = pairs_of(3)
    x = np.concatenate([np.exp(log_p), np.eye(3)[np.asarray(labels)]], axis=-1)
    first, last = (
        (np.asarray(layer.kernel[...], np.float64), np.asarray(layer.bias[...], np.float64))
        for layer in network.layers
    )
    z = np.tanh(x @ first[0] + first[1]) @ last[0] + last[1]
    found = losses_of(network, log_p, labels)
    np.testing.assert_allclose(found, np.log1p(np.exp(z[:, 0])), rtol=1e-5)


def test_leading_shapes():
    log_p, labels = pairs_of(4, num_pairs=24)
    network = agnostic()
    flat = np.asarray(losses_of(network, log_p, labels))
    shaped = np.asarray(losses_of(network, log_p.reshape(2, 3, 4, 4), labels.reshape(2, 3, 4)))
    np.testing.assert_allclose(shaped.ravel(), flat, rtol=1e-6)
    np.testing.assert_allclose(losses_of(network, log_p[0], labels[0]), flat[0], rtol=1e-6)


def test_architecture_rebuilds_a_network():
    architecture = Architecture("pair", (8,), "relu", 4)
    graphdef, shapes = architecture.abstract()
    state = nnx.state(architecture.build(jax.random.key(3)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    direct = PairNetwork(4, (8,), "relu", rngs=nnx.Rngs(jax.random.key(3)))
    found = losses_of(nnx.merge(graphdef, state), *pairs_of(4))
    np.testing.assert_array_equal(found, losses_of(direct, *pairs_of(4)))


def test_refuses_bad_arguments():
    with pytest.raises(ConfigError, match="activation is 'sin'"):
        agnostic(activation="sin")
    with pytest.raises(ConfigError, match=r"hidden is \(4, 0\); .* at least 1 and at most 4096"):
        agnostic(hidden=(4, 0))
    with pytest.raises(ConfigError, match="num_classes is 1"):
        PairNetwork(1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="4 classes; this PairNetwork was made for 3"):
        PairNetwork(3, rngs=nnx.Rngs(0))(*pairs_of(4))
    with pytest.raises(ConfigError, match="exactly one class count"):
        Architecture("pair", (4,), "tanh")
    with pytest.raises(ConfigError, match=r"hidden is \(1000000000,\); .* at most 4096"):
        Architecture("class_agnostic", (10**9,), "tanh")
    with pytest.raises(ConfigError, match="hidden has 17 widths; expected at most 16"):
        Architecture("class_agnostic", (1,) * 17, "tanh")
