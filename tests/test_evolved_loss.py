import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.test_util import check_grads

from edl_jax import Mixture, load_pretrained, sample_pairs
from edl_jax.errors import ConfigError, InputError
from edl_jax.losses import PRETRAINED, Provenance, calibrated
from edl_jax.runs.folder import as_json
from tests.baseline_losses import random_loss

LOSSES = {"edl": load_pretrained(), "random": random_loss(), "pair": random_loss(1, 5)}


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def logits_of(shape=(6, 5), seed=0, scale=3.0, dtype=jnp.float32):
    return (scale * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)


LABELS = jnp.asarray([0, 1, 2, 3, 4, 0])


# Operation by operation a loss takes dozens of programs for each shape.
@functools.partial(jax.jit, static_argnames="axis")
def value_of(loss, logits, labels, *, where=None, axis=-1):
    return loss(logits, labels, where=where, axis=axis)


@jax.jit
def value_and_gradient_of(loss, logits, labels, *, where=None):
    value, vjp = jax.vjp(lambda x: loss(x, labels, where=where), logits)
    return value, vjp(jnp.ones_like(value))[0]


def test_value_is_scale_times_the_network(loss):
    log_p = jax.nn.log_softmax(logits_of())
    expected = loss.scale * loss.network()(log_p, LABELS)
    np.testing.assert_allclose(loss(logits_of(), LABELS), expected, rtol=1e-6)
    np.testing.assert_allclose(value_of(loss, logits_of(), LABELS), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["edl", "random"])
@pytest.mark.parametrize("num_classes", [7, 19])  # without and with lanes, and a remainder
def test_of_logits_is_the_network_on_their_log_probabilities(name, num_classes):
    loss, labels = LOSSES[name], np.asarray(LABELS)
    logits = np.array(logits_of((6, num_classes)))
    logits[3:] = np.round(logits[3:] / 3)  # ties

    def by_network(x):
        return loss.scale * loss.network()(jax.nn.log_softmax(x), labels)

    expected, vjp = jax.vjp(jax.jit(by_network), logits)
    value, gradient = value_and_gradient_of(loss, logits, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, vjp(jnp.ones(6))[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 9])
def test_second_derivatives_of_integer_labels_are_those_of_one_hot_labels(num_classes):
    loss, logits = LOSSES["random"], logits_of((num_classes,))
    tied = logits.at[1].set(logits.max())

    @jax.jit
    def hessians(x):
        return [jax.hessian(loss)(x, y) for y in (jnp.asarray(0), jnp.eye(num_classes)[0])]

    for x in (logits, tied):
        by_class, by_one_hot = hessians(x)
        np.testing.assert_allclose(by_class, by_one_hot, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(by_class, by_class.T, rtol=1e-4, atol=1e-5)


def test_integer_labels_need_one_array_of_the_logits_size():
    """The gradient; and partial sums, which are half of one."""
    shape = (128, 5003)
    x, y = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    program = jax.jit(jax.value_and_grad(lambda x, y: LOSSES["edl"](x, y).mean()))
    memory = program.lower(x, y).compile().memory_analysis()
    assert memory.output_size_in_bytes < 1.01 * 4 * np.prod(shape)
    assert memory.temp_size_in_bytes < 0.6 * 4 * np.prod(shape)


def test_gradients(loss):
    for labels in (LABELS, jax.nn.softmax(logits_of(seed=5))):
        function = functools.partial(value_of, loss, labels=labels)
        check_grads(function, (logits_of(),), order=1, modes=["rev", "fwd"], eps=1e-2)


def test_one_hot_labels_equal_integer_labels(loss):
    one_hot = jax.nn.one_hot(LABELS, 5)
    hard, gradient = value_and_gradient_of(loss, logits_of(), LABELS)
    soft, gradient_of_soft = value_and_gradient_of(loss, logits_of(), one_hot)
    np.testing.assert_allclose(soft, hard, rtol=1e-6)
    np.testing.assert_allclose(value_of(loss, logits_of(), one_hot.astype(int)), hard, rtol=1e-6)
    np.testing.assert_allclose(gradient_of_soft, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["edl", "random"])
@pytest.mark.parametrize("row", [[2, 2, 1, 0, 3e38], [2, 2, 2, 0, 1], [0, 0, 0, 0, 0]])
def test_one_hot_labels_give_the_gradient_of_integer_labels_where_logits_tie(name, row):
    logits, labels = np.tile(np.asarray(row, np.float32), (5, 1)), np.arange(5)
    where = np.asarray([[True, True, True, True, row[4] < 3e38]])
    one_hot = np.eye(5, dtype=np.float32)
    hard, soft = (
        value_and_gradient_of(LOSSES[name], logits, y, where=where)[1] for y in (labels, one_hot)
    )
    np.testing.assert_allclose(soft, hard, rtol=1e-4, atol=1e-6)


def test_soft_labels_give_the_label_weighted_mean(loss):
    soft = jax.nn.softmax(logits_of(seed=5))
    each = np.stack([value_of(loss, logits_of(), np.full(6, k)) for k in range(5)], axis=-1)
    found = value_of(loss, logits_of(), soft)
    np.testing.assert_allclose(found, (np.asarray(soft) * each).sum(-1), rtol=1e-5)


@given(seed=st.integers(0, 1000))
def test_relabelling_the_classes_does_not_change_value_or_gradient(seed):
    order = np.random.default_rng(seed).permutation(5)
    logits, labels = np.asarray(logits_of(seed=seed)), np.asarray(LABELS)
    for loss in (LOSSES["edl"], LOSSES["random"]):
        value, gradient = jax.device_get(value_and_gradient_of(loss, logits, labels))
        moved = value_and_gradient_of(loss, logits[:, order], np.argsort(order)[labels])
        np.testing.assert_allclose(moved[0], value, rtol=1e-5)
        np.testing.assert_allclose(moved[1], gradient[:, order], rtol=1e-3, atol=1e-5)


def test_gradient_of_tied_logits_treats_the_tied_alike():
    _, gradient = value_and_gradient_of(LOSSES["edl"], np.zeros(5, np.float32), np.asarray(2))
    others = np.delete(np.asarray(gradient), 2)
    np.testing.assert_allclose(others, others[0], rtol=1e-6)
    assert gradient[2] < 0 < others[0]


@given(
    data=st.data(),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    soft=st.booleans(),
)
def test_finite_and_not_negative_for_extreme_logits(data, dtype, soft):
    values = st.one_of(
        st.sampled_from([-1e4, -1e2, 0.0, 1e-3, 1e2, 1e4]), st.floats(-1e4, 1e4, width=32)
    )
    rows = data.draw(st.lists(st.lists(values, min_size=5, max_size=5), min_size=3, max_size=3))
    logits = jnp.asarray(rows, dtype)
    labels = np.asarray(data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3)), np.int32)
    if soft:
        labels = 0.9 * np.eye(5, dtype=np.float32)[labels] + 0.02
    # Half of the masks leave all in.
    masks = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=3, max_size=3)
    where = np.asarray(data.draw(st.one_of(st.just([[True] * 5] * 3), masks)))
    for loss in LOSSES.values():
        values, gradient = value_and_gradient_of(loss, logits, labels, where=where)
        assert values.dtype == gradient.dtype == dtype
        values, gradient = np.asarray(values, np.float32), np.asarray(gradient, np.float32)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert np.isfinite(gradient).all()


def test_largest_finite_logits(loss):
    big = np.finfo(np.float32).max
    logits = np.asarray([[big, -big, 0, 0, 0], [-big, big, big, 0, 1]], np.float32)
    for label in (0, 1):
        for found in value_and_gradient_of(loss, logits, np.full(2, label)):
            assert np.isfinite(found).all()


def test_bfloat16_is_float32_rounded_once(loss):
    logits = logits_of(dtype=jnp.bfloat16)
    expected = value_of(loss, logits.astype(jnp.float32), LABELS).astype(jnp.bfloat16)
    np.testing.assert_array_equal(value_of(loss, logits, LABELS), expected)


@pytest.mark.parametrize("name", ["edl", "random"])
def test_masked_classes_take_no_part(name):
    loss, logits = LOSSES[name], np.asarray(logits_of((4, 6)))
    kept = np.asarray([True, True, False, True, False, True])
    where = kept[None, :]
    labels, fewer = np.asarray([0, 1, 3, 5]), np.asarray([0, 1, 2, 3])
    value, gradient = jax.device_get(value_and_gradient_of(loss, logits, labels, where=where))
    np.testing.assert_allclose(value, value_of(loss, logits[:, kept], fewer), rtol=1e-6)
    assert (gradient[:, ~kept] == 0).all()
    # As a label, a masked class adds nothing; cross-entropy in optax does the same.
    assert (np.asarray(value_of(loss, logits, np.full(4, 2), where=where)) == 0).all()
    eye = np.eye(6, dtype=np.float32)
    soft = 0.5 * eye[labels] + 0.5 * eye[2]
    found = value_of(loss, logits, soft, where=where)
    np.testing.assert_allclose(found, 0.5 * value, rtol=1e-6)


def test_axis_and_leading_shapes():
    loss = LOSSES["random"]
    logits = np.asarray(logits_of((2, 3, 5)))
    labels = np.asarray([[0, 1, 2], [3, 4, 0]])
    expected = value_of(loss, logits, labels)
    assert expected.shape == (2, 3)
    soft = np.asarray(jax.nn.softmax(logits_of((2, 3, 5), seed=9)))
    where = np.asarray([True, True, True, True, False])
    masked = value_of(loss, logits, soft, where=where[None, None])
    for axis in (0, 1, 2, -1, -2, -3):
        moved = np.moveaxis(logits, -1, axis)
        found = value_of(loss, moved, labels, axis=axis)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        mask = np.moveaxis(np.broadcast_to(where, logits.shape), -1, axis)
        found = value_of(loss, moved, np.moveaxis(soft, -1, axis), axis=axis, where=mask)
        np.testing.assert_allclose(found, masked, rtol=1e-6)
    assert jax.eval_shape(loss, logits[0, 0], 3).shape == ()


def test_is_a_pytree_for_jit_vmap_scan_and_stacking():
    one, other = random_loss(0), random_loss(1)
    one = one.replace(provenance=Provenance(metrics={"a": 1.0}))
    logits = logits_of()
    expected = jnp.stack([one(logits, LABELS), other(logits, LABELS)])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), one, other)
    both = jax.jit(jax.vmap(lambda loss: loss(logits, LABELS)))(stacked)
    np.testing.assert_allclose(both, expected, rtol=1e-5)
    _, scanned = jax.lax.scan(lambda c, loss: (c, loss(logits, LABELS)), None, stacked)
    np.testing.assert_allclose(scanned, expected, rtol=1e-5)
    assert jax.tree.map(lambda x: x, one).provenance.metrics == {"a": 1.0}
    traced = jax.jit(lambda loss: loss)
    traced(one)
    traced(other)
    assert traced._cache_size() == 1  # provenance is never compared


def test_trains_like_a_loss_of_optax():
    logits = jnp.zeros((6, 5))
    optimizer = optax.adam(0.1)
    loss = load_pretrained()

    def step(carry, _):
        logits, state = carry
        value, gradient = jax.value_and_grad(lambda x: loss(x, LABELS).mean())(logits)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(logits, updates), state), value

    (logits, _), values = jax.lax.scan(step, (logits, optimizer.init(logits)), length=100)
    assert (logits.argmax(-1) == LABELS).all()
    assert values[-1] < 0.2 * values[0]


def test_refuses_bad_input(loss):
    logits = logits_of()
    with pytest.raises(InputError, match="logits have dtype int32"):
        loss(jnp.zeros((6, 5), jnp.int32), LABELS)
    with pytest.raises(InputError, match=r"labels have shape \(4,\)"):
        loss(logits, LABELS[:4])
    for value in (["one"], [[1.0], [1.0, 2.0]], [2**70]):  # text, ragged, too large
        with pytest.raises(InputError, match=r"labels is .*; expected an array of numbers"):
            loss(logits, value)
    with pytest.raises(InputError, match=r"dtype float32; .* expected integers"):
        loss(logits, LABELS.astype(jnp.float32))
    with pytest.raises(InputError, match=r"labels\[0\] is 5; expected classes in \[0, 5\)"):
        loss(logits, LABELS.at[0].set(5))
    with pytest.raises(InputError, match=r"labels\[0\] is -1;"):
        loss(logits, LABELS.at[0].set(-1))
    with pytest.raises(InputError, match=r"labels\[3\] is 4294967299;"):  # 3, in 32 bits
        loss(logits, np.asarray([0, 1, 2, 2**32 + 3, 4, 0]))
    for axis in (2, True, False, 1.0):
        with pytest.raises(InputError, match=f"axis is {axis}; expected an axis of"):
            loss(logits, LABELS, axis=axis)
    with pytest.raises(InputError, match=r"where has shape \(3,\)"):
        loss(logits, LABELS, where=jnp.ones(3))
    with pytest.raises(InputError, match="at least 2 classes"):
        loss(jnp.zeros((6, 1)), jnp.zeros(6, jnp.int32))


def test_label_out_of_range_under_jit_gives_nan(loss):
    labels = LABELS.at[0].set(5).at[1].set(-1)
    out = [True, True, False, False, False, False]
    np.testing.assert_array_equal(jnp.isnan(jax.jit(loss)(logits_of(), labels)), out)
    # Nor does it pass for the nearest class where that is masked.
    where = jnp.asarray([[False, True, True, True, False]])
    masked = jax.jit(lambda x, y: loss(x, y, where=where))(logits_of(), labels)
    np.testing.assert_array_equal(jnp.isnan(masked), out)
    np.testing.assert_array_equal(masked == 0, [False, False, False, False, True, True])


def test_pair_network_refuses_another_class_count():
    with pytest.raises(InputError, match="made for 5"):
        LOSSES["pair"](jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize("factor", [1e-3, 1.0, 50.0])
def test_calibration_gives_cross_entropys_mean_gradient_norm(factor):
    mixture = Mixture(sparse=0)  # its Gamma draws take longest to compile
    sets = [sample_pairs(jax.random.key(s), 500, k, mixture=mixture) for s, k in ((0, 3), (1, 10))]
    loss = calibrated(random_loss().replace(scale=jnp.asarray(factor)), sets)
    norms = np.zeros(2)
    for pairs in sets:
        logits = np.log(np.maximum(pairs.probabilities, 1e-37))
        _, gradient = value_and_gradient_of(loss, logits, pairs.labels)
        norms[0] += np.linalg.norm(gradient, axis=-1).sum()
        softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        of_cross_entropy = softmax - np.eye(logits.shape[-1])[pairs.labels]
        norms[1] += np.linalg.norm(of_cross_entropy, axis=-1).sum()
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_calibration_refuses_a_flat_loss():
    flat = jax.tree.map(jnp.zeros_like, random_loss())
    with pytest.raises(InputError, match="expected a slope"):
        calibrated(flat, [sample_pairs(jax.random.key(0), 500, 3, mixture=Mixture(sparse=0))])


SHIPPED = {"edl": 0.99, "edl-robust": 0.99, "edl-paper": 0.9}  # by the least pairwise accuracy


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_loss_is_what_its_configuration_makes(name):
    loss = load_pretrained(name)
    assert loss.provenance.metrics["pairwise_accuracy"] > SHIPPED[name]
    path = Path(__file__).parents[1] / "configs" / f"pretrain_{name.replace('-', '_')}.py"
    made_by = as_json(runpy.run_path(str(path))["get_config"]())
    strategy = made_by.pop("strategy")
    made_by |= strategy | {"strategy": strategy["name"]}
    # Of version 0.1.0, where some fields were called otherwise; some have gone, at their defaults.
    recorded = loss.provenance.config
    gone = {"kernel": "xla", "restart_after": 0, "use_crossover": False}
    assert {name: recorded.get(name, value) for name, value in gone.items()} == gone
    recorded = {name: value for name, value in recorded.items() if name in made_by}
    if recorded.get("step_size") == "auto":  # the success rule of `ChaoticES`
        recorded["step_size"] = "success_rule"
    assert len(recorded) > 15
    assert made_by | recorded == made_by


def test_every_shipped_loss_has_a_name():
    assert {*SHIPPED} == {*PRETRAINED}
    with pytest.raises(ConfigError, match="no pretrained loss 'edll'; expected one of edl, edl-r"):
        load_pretrained("edll")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_accelerators(platform, dtype):
    value_and_grad = jax.jit(jax.value_and_grad(lambda x, y: load_pretrained()(x, y).mean()))
    shapes = (
        jax.ShapeDtypeStruct((128, 10), dtype),
        jax.ShapeDtypeStruct((128,), jnp.int32),
    )
    exported = jax.export.export(value_and_grad, platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)
