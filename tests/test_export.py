"""A loss taken out of the package is the same loss."""

import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import cli, load_pretrained
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


def test_pytorch_module_needs_nothing_but_pytorch_and_safetensors(exported):
    _, folder = exported
    source = (folder / "evolved_loss.py").read_text()
    imported = {
        line.split()[1].split(".")[0]
        for line in source.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported - set(sys.stdlib_module_names) == {"safetensors", "torch"}
