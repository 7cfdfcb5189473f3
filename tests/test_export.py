"""A loss taken out of the package is the same loss."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from edl_jax import cli, load_pretrained
from edl_jax.losses import export
from edl_jax.losses.export import PLATFORMS, export_loss, to_stablehlo
from tests.test_evolved_loss import LABELS, LOSSES, logits_of


@pytest.fixture(scope="module", params=LOSSES)
def exported(request, tmp_path_factory):
    """A loss, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("exported") / "new"
    export_loss(LOSSES[request.param], folder)
    return LOSSES[request.param], folder


def value_and_gradient(loss, logits, labels):
    return jax.jit(jax.value_and_grad(lambda x, y: loss(x, y).sum()))(logits, labels)


def test_stablehlo_is_the_loss_and_its_gradient(exported):
    loss, folder = exported
    program = jax.export.deserialize(bytearray((folder / "loss.jax_export").read_bytes()))
    assert program.platforms == PLATFORMS
    for shape in [(6, 5)] if loss.architecture.num_classes else [(6, 5), (1, 2), (3, 100)]:
        logits, labels = logits_of(shape), LABELS[: shape[0]] % shape[1]
        found = value_and_gradient(program.call, logits, labels)
        expected = value_and_gradient(loss, logits, labels)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_stablehlo_gives_nan_for_a_label_out_of_range():
    program = jax.export.deserialize(bytearray(to_stablehlo(load_pretrained())))
    assert jnp.isnan(program.call(logits_of((2, 3)), jnp.asarray([0, 3]))).tolist() == [False, True]


def test_command_writes_three_files(tmp_path, capsys):
    assert cli.main(["export", "edl", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert len(printed) == 3


@pytest.mark.parametrize(
    ("loss", "said"), [("focal", "no evolved loss"), ("gone.safetensors", "no loss file")]
)
def test_command_refuses_what_is_no_evolved_loss(loss, said, tmp_path, capsys):
    assert cli.main(["export", loss, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_command_says_where_it_cannot_write(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["export", "edl", "--out", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err


@pytest.fixture
def read_in_torch(monkeypatch):
    """How the PyTorch module reads a file, up to where it needs PyTorch itself."""
    if importlib.util.find_spec("torch") is None:
        for name in ("torch", "torch.nn"):
            monkeypatch.setitem(sys.modules, name, MagicMock())
    spec = importlib.util.spec_from_file_location(
        "evolved_loss", Path(export.__file__).with_name("torch_loss.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._contents


def test_pytorch_module_reads_the_arrays_of_the_file(exported, read_in_torch):
    loss, folder = exported
    architecture, arrays = read_in_torch(folder / "loss.safetensors")
    assert architecture["num_classes"] == loss.architecture.num_classes
    with safe_open(folder / "loss.safetensors", framework="numpy") as file:
        assert sorted(arrays) == sorted(file.keys())
        for name, (shape, content) in arrays.items():
            expected = file.get_tensor(name)
            assert shape == expected.shape
            assert content == expected.tobytes()


def rewritten(content, change):
    """A loss file with another header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def no_architecture(header):
    del header["__metadata__"]["architecture"]


def another_dtype(header):
    header["scale"]["dtype"] = "I32"


def another_place(header):
    header["scale"]["data_offsets"] = [-4, 0]


def another_architecture(header, **fields):
    architecture = json.loads(header["__metadata__"]["architecture"])
    header["__metadata__"]["architecture"] = json.dumps({**architecture, **fields})


def wider(header):
    another_architecture(header, hidden=[10**9, 10**9])


def words_for_widths(header):
    another_architecture(header, hidden=[10**12, "a"])


def numbers_too_large(header):
    another_architecture(header, hidden=[10**30, "a"])


def no_widths(header):
    another_architecture(header, hidden=None)


def nested(header):
    header["__metadata__"]["architecture"] = "[" * 10**5


def another_activation(header):
    another_architecture(header, activation="none")


def test_pytorch_module_refuses_other_files(exported, tmp_path, read_in_torch):
    _, folder = exported
    content = (folder / "loss.safetensors").read_bytes()
    flipped = bytearray(content)
    flipped[-2] ^= 1
    changes = (no_architecture, another_dtype, another_place, wider, another_activation)
    changes += (words_for_widths, numbers_too_large, no_widths, nested)
    bad = {
        "empty": b"",
        "short": content[:20],
        "no header": b"\xff" * 64,
        "a header longer than the file": (2**40).to_bytes(8, "little") + content[8:],
        "a list": (2).to_bytes(8, "little") + b"[]",
        "another format": content.replace(b"EvolvedLoss/1", b"EvolvedLoss/9"),
        "cut by a number": content[:-4],
        "too long": content + bytes(4),
        "a bit flipped": bytes(flipped),
        **{change.__name__: rewritten(content, change) for change in changes},
    }
    path = tmp_path / "loss.safetensors"
    for name, other in bad.items():
        path.write_bytes(other)
        with pytest.raises(ValueError, match="is no loss file: ") as refusal:
            read_in_torch(path)
        assert "Error(" in str(refusal.value), name
    path.unlink()
    with pytest.raises(ValueError, match="there is no loss file at "):
        read_in_torch(path)
    os.mkfifo(tmp_path / "pipe")
    for other in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="there is no loss file at "):
            read_in_torch(other)
    path.write_bytes(rewritten(content, lambda header: None))
    read_in_torch(path)


def test_pytorch_module_calls_a_file_that_cannot_be_read_now_not_damaged(
    exported, monkeypatch, read_in_torch
):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match="Permission denied"):
        read_in_torch(exported[1] / "loss.safetensors")


def test_pytorch_module_needs_nothing_but_pytorch(exported):
    _, folder = exported
    source = (folder / "evolved_loss.py").read_text()
    imported = {
        line.split()[1].split(".")[0]
        for line in source.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported - set(sys.stdlib_module_names) == {"torch"}
