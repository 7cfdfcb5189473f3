"""Every loss under JAX's transformations and switches, and what it needs of memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from edl_jax import ClassAgnosticNetwork, PairNetwork
from tests.baseline_losses import (
    EVERY,
    NAMES,
    compiled,
    logits_of,
    loss_of,
    quick_jit,
    values_and_gradients,
)
from tests.test_baseline_values import LABELS, by_formula

SHAPE = (6, 5)
SOFT = jax.nn.softmax(logits_of(3))
HARD = jnp.asarray(LABELS)


def both_kinds(logits, hard, soft, where):
    every = values_and_gradients(EVERY)
    return every(logits, hard, where), every(logits, soft, where)


def in_shard_map(*arguments):
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("batch")
    return jax.shard_map(both_kinds, mesh=mesh, in_specs=(spec,) * 4, out_specs=spec)(*arguments)


def in_vmap(*arguments):
    return jax.vmap(both_kinds)(*arguments)


def in_scan(*arguments):
    return jax.lax.scan(lambda carry, row: (carry, both_kinds(*row)), None, arguments)[1]


def test_every_loss_takes_arrays_whose_types_hold_a_sharding():
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        arrays = logits_of(), HARD, SOFT, jnp.ones(SHAPE, bool)
        placed = [jax.device_put(x, PartitionSpec("batch")) for x in arrays]
        for found in jax.eval_shape(both_kinds, *placed):
            assert {values.shape for values, _ in found.values()} == {(6,)}


@functools.cache
def expected():
    where = jnp.ones(SHAPE, bool)
    return compiled(EVERY)(logits_of(), HARD, where), compiled(EVERY)(logits_of(), SOFT, where)


@functools.cache
def transformed(transformation):
    return quick_jit(transformation)(logits_of(), HARD, SOFT, jnp.ones(SHAPE, bool))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "transformation",
    [in_vmap, *(pytest.param(x, marks=pytest.mark.slow) for x in (in_shard_map, in_scan))],
)
def test_values_and_gradients_under_transformations(transformation, name):
    for found, wanted in zip(transformed(transformation), expected(), strict=True):
        np.testing.assert_allclose(found[name][0], wanted[name][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[name][1], wanted[name][1], rtol=1e-4, atol=1e-6)


LEAD, WHOLE = (2, 3), (2, 5, 3)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_losses_have_the_dtype_of_the_logits_under_every_switch(name, dtype):
    """Traced only: what a switch forbids raises then."""
    loss = loss_of(name)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        logits, soft = jax.ShapeDtypeStruct(WHOLE, dtype), jax.ShapeDtypeStruct(WHOLE, jnp.float32)
        for labels, mask_shape in (
            (jax.ShapeDtypeStruct(LEAD, jnp.int32), None),
            (jax.ShapeDtypeStruct(LEAD, jnp.int64), LEAD),
            (soft, None),
            (soft, LEAD),
            (soft, (1, 5, 1)),
        ):
            where = None if mask_shape is None else jax.ShapeDtypeStruct(mask_shape, bool)

            def both(x, y, mask):
                values, vjp = jax.vjp(lambda x: loss(x, y, axis=1, where=mask), x)
                return values, vjp(jnp.ones_like(values))[0]

            values, gradient = jax.eval_shape(both, logits, labels, where)
            assert (values.shape, values.dtype) == (LEAD, dtype)
            assert (gradient.shape, gradient.dtype) == (WHOLE, dtype)


@pytest.mark.parametrize("x64", [False, True])
def test_networks_are_float32_under_every_switch(x64):
    with jax.enable_x64(x64), jax.numpy_rank_promotion("raise"):
        log_p = jax.ShapeDtypeStruct((4, 3), jnp.float32)
        labels = jax.ShapeDtypeStruct((4,), jnp.int32)
        for build in (
            lambda: ClassAgnosticNetwork(rngs=nnx.Rngs(0)),
            lambda: PairNetwork(3, rngs=nnx.Rngs(0)),
        ):

            def used(log_p, labels, build=build):
                network = build()
                results = network(log_p, labels), network.features(log_p, labels)
                return nnx.state(network, nnx.Param), results

            leaves = jax.tree.leaves(jax.eval_shape(used, log_p, labels))
            assert len(leaves) > 2
            assert {x.dtype for x in leaves} == {jnp.dtype("float32")}


@functools.cache
def in_float64():
    with jax.enable_x64(True):
        logits = jnp.asarray(np.asarray(logits_of(), np.float64))
        return compiled(EVERY)(logits, HARD, None)


@pytest.mark.parametrize("name", NAMES)
def test_float64_logits_give_the_precision_of_float64(name):
    values, _ = in_float64()[name]
    np.testing.assert_allclose(values, by_formula(name, logits_of(), LABELS), rtol=1e-12)


def test_no_loss_makes_a_nan_on_its_way():
    where = jnp.asarray([[True, True, False, True, False]]) & (jnp.arange(6) > 0)[:, None]
    for scale in (1.0, 100.0):
        for labels in (HARD, SOFT):
            with jax.debug_nans(True):
                results = compiled(EVERY)(logits_of(scale=scale), labels, where)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


def test_an_evolved_loss_is_data_of_a_module():
    class Model(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
            self.loss = loss_of("edl")

    model, inputs = Model(), jnp.ones((6, 4))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def mean(model):
            return model.loss(model.linear(inputs), HARD).mean()

        value, gradient = nnx.value_and_grad(mean)(model)
        optimizer.update(model, gradient)
        return value

    before = step(model, optimizer)
    assert step(model, optimizer) < before
    graphdef, state = nnx.split(model)
    scale = nnx.merge(graphdef, state).loss.scale
    np.testing.assert_array_equal(scale, loss_of("edl").scale)


# An evolved loss holds 65,536 classes and more together: in large shapes they do not count.
MEMORY = {"edl": (128, 50_000), "pair": (1024, 4096)}
BOUND = 10  # arrays of the logits' size


@pytest.mark.parametrize("name", EVERY)
def test_soft_labels_need_a_few_arrays_of_the_logits_size(name):
    """Values and gradients: 3 to 9, where an array for each class would be 1,000 and more."""
    shape = MEMORY.get(name, (128, 1000))
    loss = loss_of(name, (5,) * shape[1])
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    program = jax.jit(jax.value_and_grad(lambda x, w: loss(x, w).sum()))
    memory = program.lower(x, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < BOUND * 4 * np.prod(shape)


@pytest.mark.parametrize("num_classes", [7, 8])  # with and without a remainder
def test_soft_labels_in_blocks_of_classes(num_classes, monkeypatch):
    logits, soft = (
        logits_of(shape=(2, 3, num_classes)),
        jax.nn.softmax(logits_of(1, shape=(2, 3, num_classes))),
    )
    loss = loss_of("edl")

    def both():
        gradients = jax.value_and_grad(lambda x, w: loss(x, w).sum(), (0, 1))
        return quick_jit(gradients)(logits, soft)

    whole = both()
    monkeypatch.setattr("edl_jax.networks.loss_network.BLOCK", 12)  # 2 classes of 6 examples
    blocks = both()
    for found, wanted in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.slow  # outside jit every operation is a program
@pytest.mark.parametrize(("name", "classes"), [("edl", 5), ("edl", 10), ("bi_tempered", 5)])
def test_a_call_outside_jit_compiles_nothing_after_the_first(name, classes, caplog):
    """With fewer than 8 classes and with more, which go by lanes."""
    logits, labels = np.zeros((4, classes), np.float32), np.zeros(4, np.int32)
    loss = loss_of(name)
    gradient = jax.grad(lambda x: loss(x, labels).sum())
    loss(logits, labels), gradient(logits)
    with jax.log_compiles(True):
        loss(logits, labels), gradient(logits)
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]
