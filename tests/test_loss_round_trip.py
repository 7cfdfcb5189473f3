"""What may be saved may be loaded, and is the same loss."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from edl_jax import EvolvedLoss, load_pretrained
from edl_jax.errors import ConfigError, InputError, LossFileError
from edl_jax.losses import Provenance, evolved_loss
from edl_jax.losses.export import export_loss, to_stablehlo
from edl_jax.networks import Architecture

RECORDS = [field.name for field in dataclasses.fields(Provenance)]


def stacked(loss):
    return jax.tree.map(lambda x: jnp.stack([x, x]), loss)


def with_weights(loss, factor):
    return loss.replace(params=jax.tree.map(lambda x: factor * x, loss.params))


def of(**changes):
    return lambda loss: loss.replace(**changes)


NO_LOSSES = {
    "a scale of NaN": (of(scale=jnp.float32(jnp.nan)), "scale .*holds values that are not finite"),
    "a scale of infinity": (of(scale=jnp.float32(jnp.inf)), "scale .*holds values that are not f"),
    "a negative scale": (of(scale=jnp.float32(-1)), r"scale is -1\.0; expected more than 0"),
    "a scale of 0": (of(scale=jnp.float32(0)), r"scale is 0\.0; expected more than 0"),
    "weights that are NaN": (lambda loss: with_weights(loss, jnp.nan), "that are not finite"),
    "a stack": (
        stacked,
        r"kernel float32\[2, 5, 16\].*one by one",
    ),
    "a vector for a scale": (of(scale=jnp.ones(1)), r"scale float32\[1\]"),
    "weights of another width": (
        of(architecture=Architecture("class_agnostic", (4,), "silu")),
        "do not fit the loss's architecture",
    ),
    "no weights": (of(params={}), "do not fit the loss's architecture"),
    "halves": (
        lambda loss: jax.tree.map(lambda x: x.astype(jnp.float16), loss),
        r"params.layers.0.bias float16\[16\]",
    ),
}


@pytest.mark.parametrize("case", NO_LOSSES)
def test_what_load_refuses_is_neither_saved_nor_exported(case, tmp_path, monkeypatch):
    change, message = NO_LOSSES[case]
    loss, path = change(load_pretrained()), tmp_path / "loss.safetensors"
    for write in (loss.save, lambda path: export_loss(loss, path), lambda _: to_stablehlo(loss)):
        with pytest.raises(InputError, match=message):
            write(path)
        assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(evolved_loss, "_check", lambda *_: None)
        loss.save(path)
    with pytest.raises(LossFileError, match=message):
        EvolvedLoss.load(path)


@pytest.mark.parametrize(
    "records",
    [
        {"metrics": {"a": object()}},
        {"versions": {(1,): 2}},
        {"config": functools.reduce(lambda x, _: {"a": x}, range(10**5), {})},
    ],
    ids=["an object", "a tuple for a key", "too deep"],
)
def test_refuses_to_save_a_provenance_that_is_no_json(records, tmp_path):
    loss = load_pretrained().replace(provenance=Provenance(**records))
    with pytest.raises(InputError, match="its provenance is no JSON data"):
        loss.save(tmp_path / "loss.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RECORDS)
def test_a_provenance_is_dictionaries(name):
    records: Any = {name: [1, 2]}
    with pytest.raises(InputError, match=rf"has {{'{name}': \[1, 2\]}}; expected dictionaries"):
        Provenance(**records)


def test_refuses_to_export_what_is_no_evolved_loss(tmp_path):
    loss: Any = "edl"
    with pytest.raises(InputError, match="the loss is 'edl'; expected an EvolvedLoss"):
        export_loss(loss, tmp_path / "out")
    assert not list(tmp_path.iterdir())


ARCHITECTURES = [
    Architecture("class_agnostic", (3, 2), "squareplus"),
    Architecture("pair", (2,), "tanh", 3),
    Architecture("class_agnostic", (), "silu"),
]
SCALES = st.one_of(st.floats(2**-9, 8, width=32), st.floats(width=32))
TEXT = st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def any_losses(draw):
    architecture = draw(st.sampled_from(ARCHITECTURES))
    is_usual = draw(st.integers(0, 4))
    dtype = np.float32 if is_usual else draw(st.sampled_from([np.float16, jnp.bfloat16, np.int32]))
    factor = draw(st.floats(-3, 3, width=32))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    params = jax.tree.map(
        lambda x: jnp.asarray((factor * rng.normal(size=x.shape)).astype(np.float32).astype(dtype)),
        nnx.to_pure_dict(architecture.abstract()[1]),
    )
    scale = draw(st.one_of(SCALES, SCALES.map(jnp.float32)))
    records = {name: draw(st.dictionaries(TEXT, JSON, max_size=2)) for name in RECORDS}
    return EvolvedLoss(params, scale, architecture, Provenance(**records))


@settings(max_examples=60)
@given(loss=any_losses())
def test_what_save_takes_load_gives_back_equal(tmp_path_factory, loss):
    path = tmp_path_factory.mktemp("any") / "loss.safetensors"
    try:
        loss.save(path)
    except InputError:
        assert not path.exists()
        return
    loaded = EvolvedLoss.load(path)
    assert loaded.architecture == loss.architecture
    for field in RECORDS:
        assert getattr(loaded.provenance, field) == getattr(loss.provenance, field)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, loss.params)
    assert loaded.scale == np.float32(loss.scale)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(loaded))


def test_a_path_may_begin_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    load_pretrained().save("~/loss.safetensors")
    EvolvedLoss.load("~/loss.safetensors")
    export_loss(EvolvedLoss.load(tmp_path / "loss.safetensors"), "~/exported")
    assert (tmp_path / "exported" / "evolved_loss.py").is_file()


@pytest.mark.parametrize("path", ["", 3, None])
def test_refuses_what_is_no_path(path):
    loss = load_pretrained()
    for call in (loss.save, EvolvedLoss.load, lambda path: export_loss(loss, path)):
        with pytest.raises(ConfigError, match="the path is"):
            call(path)
