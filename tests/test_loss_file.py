import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from edl_jax import EvolvedLoss, load_pretrained
from edl_jax.errors import LossFileError
from edl_jax.losses import evolved_loss
from edl_jax.losses.by_name import resolve_loss

LOGITS = jnp.asarray([[1.0, -2.0, 0.5], [0.0, 30.0, 2.0]])
LABELS = jnp.asarray([2, 0])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "loss.safetensors"
    load_pretrained().save(path)
    return path


def rewritten(path, change_header=lambda h: h, change_tensors=lambda t: t, signed=False):
    """The file with its metadata or tensors changed, and a digest that fits if `signed`."""
    with safe_open(path, framework="numpy") as file:
        header = change_header(dict(file.metadata()))
        tensors = change_tensors({name: file.get_tensor(name) for name in list(file.keys())})
    if signed:
        header["sha256"] = evolved_loss.digest(header, tensors)
    save_file(tensors, path, metadata=header)


def test_round_trip_is_exact(saved):
    original, loaded = load_pretrained(), EvolvedLoss.load(saved)
    values = jax.jit(lambda loss: loss(LOGITS, LABELS))
    np.testing.assert_array_equal(values(loaded), values(original))
    assert loaded.architecture == original.architecture
    for field in ("config", "metrics", "versions"):
        value = getattr(loaded.provenance, field)
        assert value == getattr(original.provenance, field)
        assert value


def test_header_is_readable_without_this_package(saved):
    with saved.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))["__metadata__"]
    assert header["format"] == "edl_jax.EvolvedLoss/1"
    assert json.loads(header["architecture"])["network"] == "class_agnostic"
    assert "jax" in json.loads(header["versions"])


def test_shipped_file_is_small(saved):
    assert saved.stat().st_size < 16 * 1024


@given(fraction=st.floats(0, 1, exclude_max=True))
def test_refuses_any_truncation(tmp_path_factory, fraction):
    path = tmp_path_factory.mktemp("cut") / "loss.safetensors"
    load_pretrained().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(LossFileError, match="cut, damaged or changed"):
        EvolvedLoss.load(path)


@given(data=st.binary(max_size=300))
def test_refuses_foreign_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("foreign") / "loss.safetensors"
    path.write_bytes(data)
    with pytest.raises(LossFileError):
        EvolvedLoss.load(path)


@given(data=st.data())
def test_no_flipped_bit_gives_another_loss(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flipped") / "loss.safetensors"
    load_pretrained().save(path)
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(LossFileError):
        EvolvedLoss.load(path)


def test_a_pipe_is_no_loss_file(tmp_path):
    os.mkfifo(tmp_path / "loss.safetensors")
    with pytest.raises(LossFileError, match="there is no loss file at"):
        EvolvedLoss.load(tmp_path / "loss.safetensors")


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000])
def test_a_path_that_is_too_long_is_no_loss_file(name):
    with pytest.raises(LossFileError, match="there is no loss file at"):
        resolve_loss(f"{name}.safetensors")


def test_refuses_a_missing_file_a_folder_and_another_safetensors(tmp_path):
    with pytest.raises(LossFileError, match="there is no loss file at"):
        EvolvedLoss.load(tmp_path / "none.safetensors")
    with pytest.raises(LossFileError):
        EvolvedLoss.load(tmp_path)
    save_file({"weights": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(LossFileError, match="its format is None"):
        EvolvedLoss.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "edl_jax.EvolvedLoss/2", "EvolvedLoss/2"),
        ("architecture", "{", "line 1"),
        ("architecture", "[]", "list"),
        ("architecture", "{}", "hidden"),
        ("architecture", '{"network": "x", "hidden": [4], "activation": "silu"}', "'x'"),
        (
            "architecture",
            '{"network": "class_agnostic", "hidden": [999999999], "activation": "silu"}',
            "at least 1 and at most 4096",
        ),
        (
            "architecture",
            '{"network": "class_agnostic", "hidden": [4], "activation": "silu"}',
            "the arrays do not fit",
        ),
        ("config", "[1, 2]", r"{'config': \[1, 2\]}; expected dictionaries"),
        ("metrics", "null", "{'metrics': None}"),
        ("versions", '"0.1.0"', "{'versions': '0.1.0'}"),
    ],
)
def test_refuses_a_header_that_is_no_loss(saved, field, value, message):
    rewritten(saved, lambda header: header | {field: value})
    with pytest.raises(LossFileError, match=r"its (sha256|format) is"):
        EvolvedLoss.load(saved)
    rewritten(saved, signed=True)
    with pytest.raises(LossFileError, match=message):
        EvolvedLoss.load(saved)


def test_refuses_tensors_that_do_not_fit(saved):
    for change, message in [
        (lambda t: t | {"extra": np.zeros(1, np.float32)}, "extra"),
        (lambda t: {n: v for n, v in t.items() if n != "scale"}, "scale"),
        (lambda t: t | {"scale": np.array(1.0)}, r"scale float64\[\]"),
        (lambda t: t | {"scale": np.array(-1, np.float32)}, r"scale is -1\.0"),
        (lambda t: t | {"scale": np.array(np.nan, np.float32)}, "scale .*that are not finite"),
    ]:
        load_pretrained().save(saved)
        rewritten(saved, change_tensors=change, signed=True)
        with pytest.raises(LossFileError, match=message):
            EvolvedLoss.load(saved)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(_):
        raise OSError("No space left on device")

    monkeypatch.setattr("edl_jax.runs.storage.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        load_pretrained().replace(scale=jnp.asarray(9.0)).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(saved, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(evolved_loss, "safe_open", refuse)
    with pytest.raises(LossFileError, match=r"cannot be read .*denied\); it was left as it is"):
        EvolvedLoss.load(saved)
