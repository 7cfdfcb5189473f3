"""What labels and logits a loss takes: their values where they are known, and every dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax.errors import InputError
from tests.baseline_losses import EVERY, compiled, logits_of, loss_of, quick_jit, random_loss

LABELS = np.asarray([0, 1, 2, 3, 1, 0])
ONE_HOT = np.eye(5)[LABELS]


def row(*values, dtype=np.float32):
    """Sound soft labels but for the third row."""
    labels = ONE_HOT.astype(dtype)
    labels[2] = values
    return labels


NO_DISTRIBUTIONS = [
    row(7, -7, 9, 0, 0, dtype=np.int32),
    row(2, 2, 2, 2, 2, dtype=np.int8),
    row(1, 1, 0, 0, 0, dtype=bool),
    row(-0.5, 1.5, 0, 0, 0),
    row(0, 0, 0, 0, 0),
    row(0.5, 0.4, 0, 0, 0),
    row(np.inf, 0, 0, 0, 0),
    row(np.nan, 1, 0, 0, 0),
    row(0.2, 0.2, 0.2, 0.2, 0.1).astype(jnp.bfloat16),
    row(0.2, 0.2, 0.2, 0.2, 0.1).tolist(),
]


@functools.cache
def with_the_third_masked(name):
    """The losses of each of `NO_DISTRIBUTIONS`, known in the trace."""
    loss, where = loss_of(name), np.arange(6) != 2
    return quick_jit(lambda x: [loss(x, labels, where=where) for labels in NO_DISTRIBUTIONS])(
        logits_of()
    )


@pytest.mark.parametrize("name", ["bi_tempered", "edl"])
@pytest.mark.parametrize("case", range(len(NO_DISTRIBUTIONS)))
def test_refuses_known_soft_labels_that_are_no_distributions(name, case):
    loss, logits, labels = loss_of(name), np.asarray(logits_of()), NO_DISTRIBUTIONS[case]
    message = r"labels\[2\] is \[.*sum to 1"
    with pytest.raises(InputError, match=message):
        loss(logits, labels)
    with pytest.raises(InputError, match=message):
        loss(logits.T, np.asarray(labels).T, axis=0)
    with pytest.raises(InputError, match=message):  # known inside a trace too
        jax.jit(lambda x: loss(x, labels))(logits)
    masked = with_the_third_masked(name)[case]  # but its example does not count
    assert np.isfinite(masked).all()
    assert masked[2] == 0


def test_refuses_the_class_id_of_a_single_example():
    with pytest.raises(InputError, match=r"labels\[0\] is \[ 7\. -7\. 9\.\]"):
        loss_of("edl")(jnp.zeros((1, 3)), jnp.array([[7, -7, 9]]))
    with pytest.raises(InputError, match=r"labels is \[2\. 0\. 1\.\]"):
        loss_of("edl")(jnp.zeros(3), jnp.array([2, 0, 1]))


@pytest.mark.parametrize("num_classes", [3, 1000, 50_000])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_takes_soft_labels_rounded_to_any_dtype(dtype, num_classes):
    rng = np.random.default_rng(0)
    one_hot, zeros = np.eye(2, num_classes), np.zeros((2, num_classes), np.float32)
    loss = loss_of("cross_entropy")
    quick_loss = quick_jit(loss)
    for labels in (
        np.full((2, num_classes), 1 / num_classes),
        rng.dirichlet(np.ones(num_classes), 2),
        0.9 * one_hot + 0.1 / num_classes,
        0.7 * one_hot + 0.3 * one_hot[::-1],
    ):
        rounded = labels.astype(dtype if dtype != "bfloat16" else jnp.bfloat16)
        jax.eval_shape(lambda x, y=rounded: loss(x, y), zeros)  # known: not refused
        assert np.isfinite(quick_loss(zeros, rounded)).all()


def test_takes_a_label_that_a_mask_hides_in_part():
    loss, logits = loss_of("cross_entropy"), np.zeros((1, 4), np.float32)
    where, nan = np.arange(4)[None, :] < 3, np.nan
    labels = [np.asarray(row) for row in ([[0.5, 0, 0, 0.5]], [[0.5, 0.5, 0, nan]])]
    values, hidden = quick_jit(lambda x: [loss(x, y, where=where) for y in labels])(logits)
    np.testing.assert_allclose(values, 0.5 * np.log(3), rtol=1e-6)
    np.testing.assert_allclose(hidden, np.log(3), rtol=1e-6)
    with pytest.raises(InputError, match="sum to 1"):
        loss(logits, np.asarray([[0.5, 0, 0, 0.1]]), where=where)


@functools.cache
def unknown():
    """Soft labels with a part that is not finite, kept and masked, in a trace."""
    labels = jnp.asarray(ONE_HOT).at[0, 1].set(jnp.inf).at[1, 1].set(jnp.nan)
    labels = labels.at[2, 2].set(jnp.inf)  # on the class itself, where many losses are near 0
    logits, whole = logits_of().at[2, 2].set(60.0), jnp.ones((6, 5), bool)
    where = whole.at[0, 1].set(False).at[1, 1].set(False).at[2].set(False)
    return compiled(EVERY)(logits, labels, whole), compiled(EVERY)(logits, labels, where)


@pytest.mark.parametrize("name", EVERY)
def test_a_soft_label_that_is_not_finite_gives_nan_unless_masked(name):
    kept, masked = (results[name][0] for results in unknown())
    np.testing.assert_array_equal(np.isnan(kept), np.arange(6) < 3)
    assert np.isfinite(masked).all()


def test_a_stack_of_losses_is_refused_unless_it_is_mapped():
    stack = jax.tree.map(lambda *x: jnp.stack(x), random_loss(0), random_loss(1))
    labels = np.zeros(6, int)
    with pytest.raises(InputError, match=r"a stack of \(2,\) losses; .* jax.vmap"):
        stack(logits_of(), labels)
    losses = jax.eval_shape(jax.vmap(lambda loss: loss(logits_of(), labels)), stack)
    assert losses.shape == (2, 6)


@pytest.mark.parametrize("labels", [np.full(6, 5), 2 * ONE_HOT])
def test_values_that_other_processes_hold_are_not_fetched(labels, monkeypatch):
    labels = jnp.asarray(labels)
    loss = loss_of("cross_entropy")
    with pytest.raises(InputError):
        loss(logits_of(), labels)
    monkeypatch.setattr(type(labels), "is_fully_addressable", False)
    assert loss(logits_of(), labels).shape == (6,)


INTEGERS = ["int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32"]
FEW = ["cross_entropy", "bi_tempered", "edl"]  # the dtypes are one piece of code for all


@pytest.mark.parametrize("dtype", [*INTEGERS, "int64", "uint64"])
def test_labels_of_every_integer_dtype(dtype):
    labels = np.asarray([0, 1, 1, 0, 1, 0])
    logits = np.asarray(logits_of())
    one_hot = np.eye(5, dtype=np.int32)[labels]
    with jax.enable_x64(dtype.endswith("64")):
        narrow = labels.astype(getattr(jnp, dtype))
        assert jnp.asarray(narrow).dtype == dtype

        def of_each(x, wide, hard, soft):
            """By wide labels; by narrow ones, whole, soft and known."""
            losses = {name: loss_of(name) for name in FEW}
            return {
                name: (loss(x, wide), loss(x, hard), loss(x, soft), loss(x, narrow))
                for name, loss in losses.items()
            }

        found = quick_jit(of_each)(
            logits, labels.astype(np.int32), narrow, one_hot.astype(narrow.dtype)
        )
    for name, (expected, *others) in found.items():
        for values in others:
            np.testing.assert_allclose(values, expected, rtol=1e-6, err_msg=name)
            assert values.dtype == jnp.float32


@pytest.mark.parametrize(("dtype", "far"), [("uint32", 2**32 - 1), ("uint64", 2**32 + 1)])
def test_labels_beyond_32_bits_do_not_pass_for_others(dtype, far):
    with jax.enable_x64(dtype.endswith("64")):
        loss, logits = loss_of("edl"), logits_of()
        labels = np.asarray([0, 1, far, 3, 1, 0], dtype)
        with pytest.raises(InputError, match=rf"labels\[2\] is {far}; expected classes in"):
            loss(logits, labels)
        found = jax.jit(loss)(logits, jnp.asarray(labels))
        np.testing.assert_array_equal(np.isnan(found), np.arange(6) == 2)


FLOATS = ["float16", "bfloat16", "float32", "float64", "float4_e2m1fn", "float8_e3m4"]
FLOATS += ["float8_e4m3", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz"]
FLOATS += ["float8_e5m2", "float8_e5m2fnuz"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_logits_of_every_floating_dtype(dtype):
    kind = getattr(jnp, dtype)
    logits = np.clip(np.asarray(logits_of()), -4, 4).astype(kind)
    wide = jnp.float64 if dtype == "float64" else jnp.float32
    cases = [(loss_of(name), labels) for name in FEW for labels in (LABELS, ONE_HOT)]

    def of_each(x):
        """Values, and those of the logits made wide, rounded to their dtype."""
        pairs = [(loss(x, y), loss(x.astype(wide), y)) for loss, y in cases]
        return [(v, v.astype(wide), w.astype(kind).astype(wide)) for v, w in pairs]

    with jax.enable_x64(dtype == "float64"):
        tolerance = max(1e-6, float(jnp.finfo(kind).eps))
        for values, widened, rounded in quick_jit(of_each)(logits):
            assert values.dtype == dtype
            np.testing.assert_allclose(widened, rounded, rtol=tolerance)
        for loss, labels in cases:
            gradient = jax.grad(lambda x, f=loss, y=labels: f(x, y).sum().astype(jnp.float32))
            assert jax.eval_shape(gradient, logits).dtype == dtype
