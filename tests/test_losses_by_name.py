import inspect
import pickle
import subprocess
import sys
from fractions import Fraction
from typing import Annotated
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Ge

from edl_jax import LOSSES, LossMethod, TrainConfig, cli
from edl_jax.errors import ConfigError
from edl_jax.losses import PRETRAINED, EvolvedLoss, formula, load_pretrained
from edl_jax.losses.by_name import check_loss_name, list_losses, resolve_loss
from edl_jax.runs.describing import describe
from edl_jax.studies import CompareConfig
from tests.baseline_losses import Tempered, is_method, quick_jit

LOGITS, LABELS = jnp.asarray([[1.0, 2.0, 0.5]]), jnp.asarray([0])


@pytest.fixture
def tempered():
    """A module of your own, by name."""
    with mock.patch.dict(LOSSES):
        yield LOSSES.register("tempered")(Tempered)


def test_every_name_resolves(tempered):
    for name in [*LOSSES, *PRETRAINED]:
        check_loss_name(name)
        loss = resolve_loss(name, class_counts=[5, 1, 2])
        if isinstance(loss, LossMethod):
            continue
        logits = jnp.zeros((1, 10 if name == "edl-paper" else 3))
        assert jax.eval_shape(loss, logits, LABELS).shape == (1,)
    assert isinstance(resolve_loss("tempered"), tempered)
    assert isinstance(resolve_loss("edl"), EvolvedLoss)


def test_a_loss_that_changes_is_registered_by_its_class_and_refused_where_none_trains(
    capsys, tempered
):
    with mock.patch.dict(LOSSES):

        @LOSSES.register("my_tempered")
        class MyTempered(LossMethod):
            """Cross-entropy at a temperature."""

            def __init__(self, *, last=2.0):
                self.last = last

            def losses(self, state, logits, labels):
                return LOSSES["cross_entropy"](logits / self.last, labels)

        assert is_method(LOSSES["my_tempered"])
        test_every_name_resolves(tempered)
        assert resolve_loss("my_tempered(last=3)").last == 3
        assert "my_tempered" not in CompareConfig(losses=("static",)).loss_names()
        assert TrainConfig(loss="my_tempered(last=3)").loss == "my_tempered(last=3)"
        with pytest.raises(ConfigError, match=r"with options last: .*'q'"):
            resolve_loss("my_tempered(q=1)")
        assert cli.main(["card", "my_tempered"]) == 2
        assert "loss is 'my_tempered', which changes while it trains" in capsys.readouterr().err


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
    value = quick_jit(resolve_loss("taylor_polynomial", linear))(LOGITS, LABELS)
    np.testing.assert_allclose(value, [-1.0], rtol=1e-5)


@pytest.mark.usefixtures("tempered")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("focal", {"gama": 2.0}, "the loss 'focal', with options gamma: .*'gama'"),
        ("sce", {"axis": 0}, "the loss 'sce', with options alpha, beta: logits have shape"),
        ("mae", {"q": 1}, "the loss 'mae', with options none: .*'q'"),
        ("gce", {"q": 2.0}, "the loss 'gce', with options q: q is 2.0; expected a finite number"),
        ("focal", {"gamma": [1, 2]}, r"gamma is \[1, 2\]"),
        ("focal", {"gamma": 10**400}, "gamma is 1000"),
        (f"focal(gamma={10**400})", {}, "gamma is 1000"),
        ("gce", {"q": Fraction(1, 2)}, r"q is Fraction\(1, 2\); expected a finite number"),
        ("taylor_ce", {"order": np.int64(0)}, r"order is np.int64\(0\); expected a whole number"),
        ("tempered", {"temperature": jnp.float32(-5)}, r"temperature is -5\.0; expected a"),
        ("bi_tempered", {"t2": jnp.float32(0.5)}, r"t2 is 0\.5; expected a finite"),
        ("taylor_polynomial", {"parameters": "none"}, "expected 8 numbers"),
        ("tempered", {"temperature": -5.0}, "temperature is -5.0"),
        ("tempered", {"beta": 5.0}, "with options temperature: .*'beta'"),
        ("ldam", {}, "the loss 'ldam', .*missing .* 'class_counts'"),
        ("edl", {"scale": 2.0}, "'edl' is an evolved loss and has no options"),
        ("hinge", {}, "loss is 'hinge'; expected one of cross_entropy, edl, edl-robust, edl-paper"),
        ("hinge(q=1)", {}, "loss is 'hinge'; expected one of cross_entropy, edl"),
        ("gce(q=2.0)", {}, "the loss 'gce', with options q: q is 2.0; expected a finite number"),
        ("edl(scale=2)", {}, "'edl' is an evolved loss and has no options"),
        ("gce(0.5)", {}, r"loss is 'gce\(0.5\)'; expected a name and options"),
        ("gce(q=exit())", {}, "expected a name and options with their values"),
        ("poly(epsilon=1,epsilon=2)", {}, "options with their values, each once"),
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


def test_options_may_be_numbers_of_numpy_and_jax(tempered):
    for name, options in (
        ("taylor_ce", {"order": np.int64(3)}),
        ("bi_tempered", {"t1": jnp.float32(0.5), "t2": np.float32(1)}),
    ):
        plain = {key: value.item() for key, value in options.items()}
        found, expected = resolve_loss(name, options), resolve_loss(name, plain)
        found, expected = quick_jit(
            lambda f=found, g=expected: (f(LOGITS, LABELS), g(LOGITS, LABELS))
        )()
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert resolve_loss("tempered", {"temperature": jnp.float32(3)}).temperature[...] == 3


def test_bounds_count_where_annotations_are_strings():
    with mock.patch.dict(LOSSES):

        @formula
        def bounded(c, *, factor: "Annotated[float, Ge(0)]" = 1.0):
            return factor * c.miss()

        with pytest.raises(ConfigError, match=r"factor is -1\.0; expected .* at least 0"):
            bounded(LOGITS, LABELS, factor=-1.0)


def test_descriptions_tell_losses_apart(tmp_path, tempered):
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
            ("tempered", {}, None),
            ("tempered", {"temperature": 0.5}, None),
            ("edl", {}, None),
        ]
    ]
    assert len(set(described)) == len(described)
    assert described[0] == "cross_entropy"
    assert described[2] == "gce(q=0.5)"
    assert describe(resolve_loss("gce", {"q": 0.7})) == described[1] == "gce(q=0.7)"
    assert describe(resolve_loss("tempered")) == described[5]
    assert describe(resolve_loss(str(path))) == described[7]
    assert describe(LOSSES["gce"]) == "gce(q=0.7)"


def test_a_loss_shows_its_options_and_can_be_sent_to_another_process():
    for name, options in {"mae": [], "gce": ["q"], "bi_tempered": ["t1", "t2"]}.items():
        names = ["logits", "labels", *options, "axis", "where"]
        assert [*inspect.signature(LOSSES[name]).parameters] == names
        assert pickle.loads(pickle.dumps(LOSSES[name])) is LOSSES[name]


def test_every_loss_is_documented():
    for name, part in LOSSES.items():
        doc = inspect.getdoc(part)
        function = part.__init__ if isinstance(part, type) else part
        shared = {"self", "logits", "labels", "axis", "where"}  # EvolvedLoss says what these are
        for key in inspect.signature(function).parameters.keys() - shared:
            assert f"  {key}: " in doc, f"{name}: {key}"
    for _, summary, reference in list_losses():
        assert 15 < len(summary) < 100
        assert summary.endswith(".")
        assert "https://" in reference
        assert ", 1" in reference or ", 2" in reference  # a year


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "start"),
    [("losses", "cross_entropy\n    Cross-entropy"), ("train --help", "usage: edl train")],
)
def test_a_reader_may_close_the_pipe(arguments, start):
    command = f"{sys.executable} -m edl_jax {arguments} | head -n 3"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert result.stdout.startswith(start)
    assert result.stderr == ""
