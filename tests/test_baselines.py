"""What must hold for every baseline loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.test_util import check_vjp

from edl_jax.errors import InputError
from tests.baseline_losses import (
    COUNTS,
    EVERY,
    NAMES,
    compiled,
    logits_of,
    loss_of,
    quick_jit,
    takes_counts,
)

LABELS = jnp.asarray([0, 1, 2, 3, 4, 0])
SHAPE = (6, 5)
SIGNED = {"taylor_polynomial"}  # the losses that may be negative
NARROW = ["cross_entropy", "poly", "bi_tempered", "smoothed_zero_one", "edl"]


@functools.cache
def results(seed=0):
    return compiled()(logits_of(seed), LABELS)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    """`check_grads`, reverse mode, on the programs that are compiled already."""

    def f(x):
        return compiled()(x, LABELS)[name][0].sum()

    def f_vjp(x):
        values, gradient = compiled()(x, LABELS)[name]
        return values.sum(), lambda cotangent: (cotangent * gradient,)

    for seed in range(3):
        check_vjp(f, f_vjp, (logits_of(seed, 1.0),), eps=1e-2, atol=2e-2, rtol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_one_hot_labels_equal_integer_labels(name):
    value, gradient = results()[name]
    soft_value, soft_gradient = one_hot_results()[name]
    assert value.shape == (6,)
    assert len(np.unique(value)) == 6
    np.testing.assert_allclose(soft_value, value, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(soft_gradient, gradient, rtol=1e-4, atol=1e-5)


@functools.cache
def one_hot_results():
    return compiled()(logits_of(), jax.nn.one_hot(LABELS, 5))


@pytest.mark.parametrize("name", NAMES)
def test_relabelling_the_classes_does_not_change_value_or_gradient(name):
    for seed in range(1 if takes_counts(name) else 10):
        order = jax.random.permutation(jax.random.key(seed), 5)
        value, gradient = results(seed)[name]
        moved = moved_results(seed, order, name if takes_counts(name) else None)[name]
        np.testing.assert_allclose(moved[0], value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(moved[1], gradient[:, order], rtol=1e-3, atol=1e-5)


def moved_results(seed, order, alone):
    function = compiled()
    if alone:  # its counts move with the classes
        function = compiled((alone,), tuple(COUNTS[i] for i in order))
    return function(logits_of(seed)[:, order], jnp.argsort(order)[LABELS])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_tied_logits_treats_the_tied_alike(name):
    _, gradient = compiled()(jnp.zeros(SHAPE), LABELS)[name]
    others = np.delete(np.asarray(gradient[2]), 2)
    np.testing.assert_allclose(others, others[0], rtol=1e-5)


WHERE = jnp.asarray([True, True, False, True, False])
UNMASKED_LABELS = jnp.asarray([0, 1, 3, 0, 1, 3])


@functools.cache
def masked_results():
    """Of the other classes alone; with a mask; with extreme masked logits; masked as labels."""
    mask, logits = jnp.broadcast_to(WHERE, SHAPE), logits_of()
    extreme = jnp.where(WHERE, logits, jnp.asarray([3e38, -3e38] * 15).reshape(SHAPE))
    counts = tuple(count for count, kept in zip(COUNTS, WHERE, strict=True) if kept)
    half = 0.5 * jax.nn.one_hot(UNMASKED_LABELS, 5) + 0.5 * jax.nn.one_hot(2, 5)
    return (
        compiled(counts=counts)(logits[:, WHERE], jnp.asarray([0, 1, 2, 0, 1, 2])),
        compiled()(logits, UNMASKED_LABELS, mask),
        compiled()(extreme, UNMASKED_LABELS, mask),
        compiled()(logits, jnp.full(6, 2), mask),
        compiled()(logits, half, mask),
    )


@pytest.mark.parametrize("name", NAMES)
def test_masked_classes_take_no_part(name):
    alone, masked, extreme, as_label, as_half = (each[name] for each in masked_results())
    for value, gradient in (masked, extreme):
        np.testing.assert_allclose(value, alone[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[:, WHERE], alone[1], rtol=1e-4, atol=1e-5)
        assert (gradient[:, ~WHERE] == 0).all()
    # As a label, a masked class adds nothing, whole or in part.
    assert (as_label[0] == 0).all()
    assert (as_label[1] == 0).all()
    np.testing.assert_allclose(as_half[0], 0.5 * alone[0], rtol=1e-5, atol=1e-6)


@functools.cache
def by_axis():
    logits = logits_of().reshape(2, 3, 5)
    soft = jax.nn.softmax(logits_of(9)).reshape(2, 3, 5)
    mask = jnp.broadcast_to(jnp.asarray([True, True, True, True, False]), logits.shape)
    moved = [jnp.moveaxis(x, -1, 1) for x in (logits, soft, mask)]
    labels = LABELS.reshape(2, 3)

    def of_every_axis(logits, labels, moved):
        x, soft, mask = moved
        return {
            name: (
                loss_of(name)(jnp.moveaxis(logits, -1, 0), labels, axis=0),
                loss_of(name)(x, soft, axis=-2, where=mask),
                loss_of(name)(logits[1, 2], labels[1, 2]),
            )
            for name in NAMES
        }

    flat = [x.reshape(6, 5) for x in (logits, soft, mask)]
    return quick_jit(of_every_axis)(logits, labels, moved), compiled()(*flat)


@pytest.mark.parametrize("name", NAMES)
def test_axis_and_leading_shapes(name):
    (hard, soft_masked, single), flat_soft_masked = (each[name] for each in by_axis())
    expected = results()[name][0]
    np.testing.assert_allclose(hard, expected.reshape(2, 3), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(soft_masked, flat_soft_masked[0].reshape(2, 3), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(single, expected[5], rtol=1e-6, atol=1e-6)


@functools.cache
def far_apart(gap):
    """Of logits that are `gap` apart, the label being the lowest, and a soft label on all."""
    logits = jnp.zeros(SHAPE).at[:, 4].set(gap).at[:3, 3].set(gap)
    labels, whole = jnp.zeros(6, jnp.int32), jnp.ones(SHAPE, bool)
    return [
        compiled(EVERY)(logits, y, whole) for y in (labels, 0.5 * jax.nn.one_hot(labels, 5) + 0.1)
    ]


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_is_not_cut_where_logits_are_far_apart(name):
    for found, nearer in zip(far_apart(5e9), far_apart(1e8), strict=True):
        np.testing.assert_allclose(found[name][1], nearer[name][1], rtol=1e-5, atol=1e-6)


def test_the_gradient_of_logits_far_apart_is_that_of_optax():
    logits, labels = np.asarray([2e9, 0, 0], np.float32), np.arange(2)
    reference = optax.losses.softmax_cross_entropy_with_integer_labels
    losses = (reference, loss_of("cross_entropy"), loss_of("edl"))
    gradients = quick_jit(
        lambda x, y: [jax.vmap(jax.grad(loss), (None, 0))(x, y) for loss in losses]
    )
    for label, expected, found, evolved in zip(labels, *gradients(logits, labels), strict=True):
        np.testing.assert_array_equal(found, expected)
        # The slope of an evolved loss far out is a little less than 1.
        np.testing.assert_allclose(evolved, -evolved[1] * expected, rtol=1e-6)
        assert (evolved[1] < -0.9) == (label == 1)


@given(data=st.data(), dtype=st.sampled_from([jnp.float32, jnp.bfloat16]), soft=st.booleans())
def test_finite_for_extreme_logits(data, dtype, soft):
    big = float(jnp.finfo(jnp.bfloat16).max)
    values = st.one_of(
        st.sampled_from([-big, -1e9, -1e4, -1e2, 0.0, 1e-3, 30.0, 1e2, 1e4, big]),
        st.floats(-1e4, 1e4, width=32),
    )
    logits = jnp.asarray(data.draw(st.lists(values, min_size=30, max_size=30)), dtype)
    labels = jnp.asarray(data.draw(st.lists(st.integers(0, 4), min_size=6, max_size=6)))
    if soft:
        labels = 0.9 * jax.nn.one_hot(labels, 5) + 0.02
    mask = data.draw(st.lists(st.booleans(), min_size=30, max_size=30))
    where = jnp.asarray(mask).reshape(SHAPE) | data.draw(st.booleans())
    for name, (values, gradient) in compiled()(logits.reshape(SHAPE), labels, where).items():
        assert values.dtype == gradient.dtype == dtype, name
        assert jnp.isfinite(values).all(), name
        assert jnp.isfinite(gradient).all(), name
        assert name in SIGNED or (values >= -1e-6).all(), name


def test_bfloat16_is_float32_rounded_once():
    logits, where = logits_of().astype(jnp.bfloat16), jnp.ones(SHAPE, bool)
    exact = compiled()(logits.astype(jnp.float32), LABELS, where)
    for name, (values, _) in compiled()(logits, LABELS, where).items():
        np.testing.assert_allclose(
            values.astype(jnp.float32), exact[name][0], rtol=2**-8, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ("dtype", "num_classes"), [("uint8", 256), ("uint8", 300), ("int8", 200), ("uint32", 300)]
)
def test_labels_may_have_a_dtype_too_narrow_for_the_class_count(dtype, num_classes):
    logits, labels = np.asarray(logits_of(shape=(3, num_classes))), np.asarray([0, 1, 127])
    narrow = labels.astype(dtype)

    def of_each(x, wide, traced):
        losses = [loss_of(name) for name in NARROW]
        return [(loss(x, wide), loss(x, traced), loss(x, narrow)) for loss in losses]

    found = quick_jit(of_each)(logits, labels.astype(np.int32), narrow)
    for name, (expected, traced, known) in zip(NARROW, found, strict=True):
        np.testing.assert_array_equal(traced, expected, err_msg=name)
        np.testing.assert_array_equal(known, expected, err_msg=name)


def test_label_out_of_range_under_jit_gives_nan():
    for name, (values, _) in compiled()(logits_of(), LABELS.at[:2].set([5, -1])).items():
        np.testing.assert_array_equal(jnp.isnan(values), np.arange(6) < 2, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_bad_input(name):
    loss, logits = loss_of(name), logits_of()
    with pytest.raises(InputError, match="logits have dtype int32"):
        loss(jnp.zeros(SHAPE, jnp.int32), LABELS)
    with pytest.raises(InputError, match=r"labels have shape \(4,\)"):
        loss(logits, LABELS[:4])
    with pytest.raises(InputError, match=r"labels\[5\] is 5; expected classes in \[0, 5\)"):
        loss(logits, jnp.asarray([0, 1, 2, 3, 4, 5]))
    with pytest.raises(InputError, match="axis is 2"):
        loss(logits, LABELS, axis=2)
    with pytest.raises(InputError, match=r"where has shape \(3,\)"):
        loss(logits, LABELS, where=jnp.ones(3))
    with pytest.raises(InputError, match="at least 2 classes"):
        loss(jnp.zeros((6, 1)), jnp.zeros(6, jnp.int32))


def test_lowers_for_accelerators():
    def gradients(logits, low_logits, labels, soft):
        pairs = [(logits, labels), (logits, soft), (low_logits, labels)]
        return [
            jax.grad(lambda x, y=y, name=name: loss_of(name)(x, y).mean())(x)
            for name in NAMES
            for x, y in pairs
        ]

    shape = (128, 5)
    exported = jax.export.export(jax.jit(gradients), platforms=["cuda", "tpu"])(
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        jax.ShapeDtypeStruct(shape[:1], jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    assert exported.platforms == ("cuda", "tpu")
