import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edl_jax import LOSSES, cli
from edl_jax.errors import ConfigError
from edl_jax.losses import PRETRAINED, EvolvedLoss, load_pretrained
from edl_jax.losses.adaptive import AdaptiveBarron
from edl_jax.losses.by_name import check_loss_name, resolve_loss
from edl_jax.losses.listing import list_losses
from edl_jax.runs.describing import describe
from tests.baseline_losses import quick_jit

LOGITS, LABELS = jnp.asarray([[1.0, 2.0, 0.5]]), jnp.asarray([0])


def test_every_name_resolves():
    for name in [*LOSSES, *PRETRAINED]:
        check_loss_name(name)
        loss = resolve_loss(name, class_counts=[5, 1, 2])
        logits = jnp.zeros((1, 10 if name == "edl-paper" else 3))
        assert jax.eval_shape(loss, logits, LABELS).shape == (1,)
    assert isinstance(resolve_loss("adaptive_barron", {"scale": 0.1}), AdaptiveBarron)
    assert isinstance(resolve_loss("edl"), EvolvedLoss)


def test_options_and_class_counts_reach_the_loss():
    p = float(jax.nn.softmax(LOGITS)[0, 0])
    value = quick_jit(resolve_loss("gce", {"q": 0.5}))(LOGITS, LABELS)
    np.testing.assert_allclose(value, [(1 - p**0.5) / 0.5], rtol=1e-5)
    value = quick_jit(resolve_loss("gce(q=0.5)", {"q": 0.7}))(LOGITS, LABELS)  # its own counts
    np.testing.assert_allclose(value, [(1 - p**0.5) / 0.5], rtol=1e-5)
    counts = np.asarray([16, 1, 2])
    value = quick_jit(resolve_loss("ldam", {"scale": 1.0}, class_counts=counts))(LOGITS, LABELS)
    shifted = LOGITS - jnp.asarray([0.25, 0.0, 0.0])
    np.testing.assert_allclose(value, -jax.nn.log_softmax(shifted)[:, 0], rtol=1e-5)
    linear = {"parameters": [0.0, 0.0, 1, 0, 0, 0, 0, 0]}  # a list, as JSON gives
    value = quick_jit(resolve_loss("taylor_glo", linear))(LOGITS, LABELS)
    np.testing.assert_allclose(value, [-1.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focal", {"gama": 2.0}, "the loss 'focal' has no option 'gama'; expected one of gamma"),
        ("sce", {"axis": 0}, "has no option 'axis'; expected one of alpha, beta, log_zero"),
        ("mae", {"q": 1}, "has no option 'q'; it has none"),
        ("gce", {"q": 2.0}, "the loss 'gce': q is 2.0; expected a finite number"),
        ("focal", {"gamma": [1, 2]}, r"gamma is \[1, 2\]"),
        ("taylor_glo", {"parameters": "none"}, "expected 8 numbers"),
        ("adaptive_barron", {"alpha": 5.0}, "alpha is 5.0"),
        ("adaptive_barron", {"beta": 5.0}, "no option 'beta'; expected one of alpha, scale"),
        ("ldam", {}, "the loss 'ldam' needs class_counts"),
        ("edl", {"scale": 2.0}, "'edl' is an evolved loss and has no options"),
        ("hinge", {}, "loss is 'hinge'; expected one of cross_entropy, edl, edl-robust, edl-paper"),
        ("hinge(q=1)", {}, "loss is 'hinge'; expected one of cross_entropy, edl"),
        ("gce(q=2.0)", {}, "the loss 'gce': q is 2.0; expected a finite number"),
        ("edl(scale=2)", {}, "'edl' is an evolved loss and has no options"),
        ("gce(0.5)", {}, r"loss is 'gce\(0.5\)'; expected a name and options"),
        ("gce(q=exit())", {}, "expected a name and options with their values"),
        ("gce(**{})", {}, "expected a name and options"),
        ("gce(q=0.5)(q=0.5)", {}, "expected a name and options"),
        ("gce(q=", {}, "loss is 'gce"),
        ("gce)", {}, "expected a name and options"),
        ("(" * 3000 + ")" * 3000, {}, "expected a name and options"),
    ],
)
def test_refusals_name_what_is_allowed(name, options, message):
    with pytest.raises(ConfigError, match=message):
        resolve_loss(name, options)


def test_descriptions_tell_losses_apart(tmp_path):
    path = tmp_path / "mine.safetensors"
    load_pretrained().save(path)
    described = [
        describe(resolve_loss(name, options, class_counts=counts))
        for name, options, counts in [
            ("cross_entropy", {}, None),
            ("gce", {}, None),
            ("gce(q=0.5)", {}, None),
            ("ldam", {}, [1, 2]),
            ("ldam", {}, [2, 2]),
            ("adaptive_barron", {}, None),
            ("adaptive_barron", {"scale": 0.5}, None),
            ("edl", {}, None),
        ]
    ]
    assert len(set(described)) == len(described)
    assert described[0] == "cross_entropy"
    assert described[2] == "gce(q=0.5)"
    assert describe(resolve_loss("gce", {"q": 0.7})) == described[1] == "gce(q=0.7)"
    assert describe(resolve_loss("adaptive_barron")) == described[5]
    assert describe(resolve_loss(str(path))) == described[7]
    assert describe(LOSSES["gce"]) == "gce(q=0.7)"


def loss_times(factor):
    def loss(logits, labels):
        return factor * LOSSES["gce"](logits, labels)

    return loss


def loss_among(name):
    def loss(logits, labels):
        return logits[..., 0] if name in {"a", "b", "c", "d", "e"} else logits[..., 1]

    return loss


def edited(kind):
    """The class after its author has changed what it computes."""

    def __call__(self, logits, labels):
        return self.weight * LOSSES["mae"](logits, labels)

    return type(kind.__name__, (kind,), {"__call__": __call__, "__qualname__": kind.__qualname__})


class Module(nnx.Module):
    def __init__(self, weight):
        self.weight = nnx.Param(jnp.asarray(weight))

    def __call__(self, logits, labels):
        return self.weight * LOSSES["gce"](logits, labels)


class Weighted:
    def __init__(self, weight, parts=()):
        self.weight, self.parts = weight, parts

    def __call__(self, logits, labels):
        return self.weight * LOSSES["gce"](logits, labels)

    def method(self, logits, labels):
        return self(logits, labels)


def test_functions_are_told_apart_by_their_code_and_by_what_they_were_made_with():
    def made(weight, inner=LOSSES["gce"]):
        def loss(logits, labels, scale=1.0):
            return scale * weight * inner(logits, labels)

        return loss

    place = "test_functions_are_told_apart_by_their_code_and_by_what_they_were_made_with.<locals>"
    name = re.escape(f"{place}.made.<locals>.loss")
    expected = rf"{name} [0-9a-f]{{16}}\(inner=gce\(q=0\.7\), weight=2\.0\)\(scale=1\.0\)"
    assert re.fullmatch(expected, describe(made(2.0)))
    described = [
        made(1.0),
        made(9.0),
        made(1.0, LOSSES["poly"]),
        made(1.0, functools.partial(LOSSES["gce"], q=0.5)),
        made(np.ones(3)),
        made(np.zeros(1000)),
        made(np.ones(1000)),
        made([2.0, Weighted(1.0)]),
        made([2.0, Weighted(2.0)]),
        made({"a": Weighted}),
        functools.partial(load_pretrained(), axis=-1),
        lambda logits, labels: logits[..., 0],
        lambda logits, labels: logits[..., 1],
        lambda logits, labels: -logits[..., 0],
        lambda logits, labels, scale=1.0: scale * logits[..., 0],
        lambda logits, labels, scale=2.0: scale * logits[..., 0],
        functools.partial(lambda scale, logits, labels: scale * logits[..., 0], 1.0),
        functools.partial(lambda scale, logits, labels: scale * logits[..., 0], 2.0),
        Weighted(1.0),
        Weighted(2.0),
        Weighted(1.0, (Weighted(1.0),)),
        Weighted(1.0).method,
        Weighted(2.0).method,
        edited(Weighted)(2.0),
        Module(1.0),
        Module(2.0),
        edited(Module)(2.0),
        jax.jit(loss_times(2.0)),
        jax.jit(loss_times(3.0)),
    ]
    assert len({describe(loss) for loss in described}) == len(described)


def test_descriptions_are_the_same_in_another_process():
    def told(loss):
        return describe(loss)

    made = (
        loss_times(2.0),
        jax.jit(loss_times(2.0)),
        Weighted(1.0, [Weighted(2.0)]).method,
        loss_times({"a": Weighted(1.0), "b": jnp.ones(3)}),
        loss_among("a"),
    )
    assert not any(" at 0x" in told(loss) for loss in made)
    code = (
        "from tests.test_losses_by_name import *\n"
        "print(describe(loss_among('a')), describe(jax.jit(loss_times(2.0))))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = f"{describe(loss_among('a'))} {describe(jax.jit(loss_times(2.0)))}"
    assert found.stdout.strip() == here


def test_every_loss_is_documented():
    for name, part in LOSSES.items():
        doc = inspect.getdoc(part)
        function = part.__init__ if isinstance(part, type) else part
        for key in inspect.signature(function).parameters:
            assert f"  {key}: " in doc or key == "self", f"{name}: {key}"
    for entry in list_losses():
        assert 15 < len(entry.summary) < 100
        assert entry.summary.endswith(".")
        assert "https://" in entry.reference
        assert ", 1" in entry.reference or ", 2" in entry.reference  # a year


def test_edl_losses_lists_them_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    assert cli.main(["losses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line for line in lines if line and not line.startswith(" ")]
    assert names[:-1] == [*LOSSES, *PRETRAINED]
    assert all(len(line) <= 70 for line in lines if "https://" not in line)
    assert cli.main(["losses", "--help"]) == 0
    assert "usage: edl losses" in capsys.readouterr().out
    assert cli.main(["losses", "all"]) == 2
    assert "unrecognized arguments: all" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    assert "  losses  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "start"),
    [("losses", "cross_entropy\n    Cross-entropy"), ("train --help", "usage: edl train")],
)
def test_a_reader_may_close_the_pipe(arguments, start):
    command = f"{sys.executable} -m edl_jax {arguments} | head -n 3"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout.startswith(start)
    assert result.stderr == ""
