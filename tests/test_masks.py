"""Masks: one meaning, optax's, told apart by rank; what is masked takes no part, whatever it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edl_jax.errors import InputError
from tests.baseline_losses import EVERY, compiled, logits_of, loss_of

CASES = [  # shape of the logits, axis of the classes, shape of the mask
    ((6, 5), -1, (6, 5)),
    ((6, 5), -1, (1, 5)),
    ((6, 5), -1, (6, 1)),
    ((6, 5), -1, (6,)),
    ((6, 5), -1, (1,)),
    ((3, 3), -1, (3,)),
    ((3, 3), 0, (3,)),
    ((3, 3), 0, (3, 1)),
    ((2, 3, 5), -1, (2, 3)),
    ((2, 5, 3), 1, (2, 3)),
    ((2, 5, 3), -2, (1, 3)),
    ((2, 3, 5), 2, (1, 1, 5)),
    ((5,), 0, ()),
    ((5,), -1, (5,)),
]


@pytest.mark.parametrize(("shape", "axis", "mask_shape"), CASES)
def test_a_mask_means_what_it_means_in_optax(shape, axis, mask_shape):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=shape), jnp.float32)
    where = rng.random(mask_shape) < 0.6
    hard = rng.integers(shape[axis], size=np.delete(shape, axis))
    soft = jax.nn.softmax(jnp.asarray(rng.normal(size=shape), jnp.float32), axis=axis)
    if len(mask_shape) == len(shape):  # optax has no answer for a label that is a masked class
        whole = np.moveaxis(np.broadcast_to(where, shape), axis, -1)
        hard = whole.argmax(axis=-1)
    where = jnp.asarray(where)
    cross_entropy = loss_of("cross_entropy")
    theirs = (
        optax.losses.softmax_cross_entropy_with_integer_labels,
        optax.losses.softmax_cross_entropy,
    )
    for labels, reference in zip((hard, soft), theirs, strict=True):
        ours, expected = (
            jax.vjp(lambda x, f=f, y=labels: f(x, y, axis=axis, where=where), logits)
            for f in (cross_entropy, reference)
        )
        np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5, atol=1e-6)
        gradients = [vjp(jnp.ones_like(values))[0] for values, vjp in (ours, expected)]
        # Where no class takes part, optax's gradient is NaN.
        kept = np.isfinite(gradients[1])
        np.testing.assert_allclose(gradients[0][kept], gradients[1][kept], rtol=1e-5, atol=1e-6)
        assert (gradients[0][~kept] == 0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "edl"])
@pytest.mark.parametrize(
    ("shape", "mask_shape"),
    [
        *(((6, 5), mask) for mask in ((), (5,), (2,), (6, 2), (1, 6, 5))),
        *(((2, 3, 5), mask) for mask in ((5,), (3,), (3, 5))),
        ((5,), (1, 5)),
    ],
)
def test_refuses_a_mask_of_another_rank_or_size(name, shape, mask_shape):
    labels = jnp.zeros(shape[:-1], jnp.int32)
    with pytest.raises(InputError, match=r"where has shape \(.*such as where\[None, :\]"):
        loss_of(name)(jnp.zeros(shape), labels, where=np.ones(mask_shape, bool))


LABELS = jnp.asarray([0, 1, 3, 0, 1, 3])
CLASSES = jnp.asarray([True, True, False, True, False])
KEPT = jnp.asarray([True, False, True, True, False, True])
POISON = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 3e38, -3e38, 0.0])
SOFT = jax.nn.softmax(logits_of(3))


@functools.cache
def poisoned():
    """Of clean logits and labels; and of those where all that is masked is poison."""
    pairs = {}
    for kind, mask in {"classes": CLASSES[None, :], "examples": KEPT[:, None]}.items():
        where = jnp.broadcast_to(mask, (6, 5))
        logits = jnp.where(where, logits_of(), POISON[:, None])
        hard = jnp.where(where.any(-1), LABELS, jnp.asarray([-1, -100, 5, 255, 2**31 - 1, -5]))
        for labels, bad in ((LABELS, hard), (SOFT, jnp.where(where, SOFT, POISON[:, None]))):
            clean = compiled(EVERY)(logits_of(), labels, where)
            pairs[kind, labels.ndim] = clean, compiled(EVERY)(logits, bad, where), where
    unmasked = compiled(EVERY)(logits_of(), LABELS, jnp.ones((6, 5), bool))
    # A masked class as the label of poisoned logits.
    where = jnp.broadcast_to(CLASSES, (6, 5))
    logits = jnp.where(where, logits_of(), POISON[:, None])
    return pairs, unmasked, compiled(EVERY)(logits, jnp.full(6, 2), where)


@pytest.mark.parametrize("where", [[0.5, 2.0], [0.0, -np.inf], [1, 0]])
def test_refuses_what_is_no_mask_but_numbers(where):
    """Weights of the examples, or what others add to logits, of which 0 keeps a class."""
    for form in (np.asarray, jnp.asarray, list):
        with pytest.raises(
            InputError, match=r"where has .* dtype \w+; .* expected True and False for"
        ):
            loss_of("edl")(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), where=form(where))


@pytest.mark.parametrize("name", EVERY)
def test_what_is_masked_takes_no_part_even_where_it_is_not_finite(name):
    pairs, unmasked, as_label = poisoned()
    for kind, (clean, poisoned_results, where) in pairs.items():
        (values, gradient), (found, found_gradient) = clean[name], poisoned_results[name]
        assert np.isfinite(values).all()
        np.testing.assert_allclose(found, values, rtol=1e-6)
        np.testing.assert_allclose(found_gradient, gradient, rtol=1e-5, atol=1e-7)
        assert (found_gradient[~where] == 0).all()
        if kind == ("examples", 1):
            assert (found[~KEPT] == 0).all()
            np.testing.assert_allclose(found[KEPT], unmasked[name][0][KEPT], rtol=1e-6)
    assert (as_label[name][0] == 0).all()
    assert (as_label[name][1] == 0).all()


@pytest.mark.parametrize("name", ["cross_entropy", "bi_tempered", "edl"])
@pytest.mark.parametrize("ignored", [-1, -100, 5, 255])
def test_known_labels_of_masked_examples_may_be_anything(name, ignored):
    loss, logits = loss_of(name), logits_of()
    labels = np.where(KEPT, LABELS, ignored)
    expected = jnp.where(KEPT, loss(logits, LABELS), 0)
    np.testing.assert_allclose(loss(logits, labels, where=KEPT), expected, rtol=1e-6)
    # Inside a trace the mask may be unknown and the labels known.
    traced = jax.jit(lambda where: loss(logits, labels, where=where))
    np.testing.assert_allclose(traced(KEPT), expected, rtol=1e-6)
    with pytest.raises(InputError, match=r"expected classes in .* by `where`"):
        loss(logits, labels, where=KEPT.at[1].set(True))
