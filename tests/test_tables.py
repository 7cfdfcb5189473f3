"""Tables and pages of studies, and the demonstration."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pandas as pd
import pytest

from edl_jax import PretrainConfig, TrainConfig
from edl_jax.data import Augmentation
from edl_jax.data.config import DataConfig
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.runs.folder import RunFolder
from edl_jax.studies import (
    AblateConfig,
    CompareConfig,
    CoverageConfig,
    DemoConfig,
    Study,
    ablate,
    card,
    compare,
    coverage,
    demo,
)
from edl_jax.studies.figures import (
    line_styles,
    panels,
    plot_curves,
    plot_evolution,
    plot_training,
    short_names,
)
from edl_jax.studies.tables import contrast, frame, markdown, other_settings, readable, summary
from edl_jax.training.optimizers import OptimizerConfig
from tests.data.conftest import NO_SERVER, name_archive
from tests.test_evolution import TINY
from tests.test_training import DIGITS

ROWS = [
    {"loss": loss, "size": size, "seed": seed, "x": 10.0 * (loss == "b") + seed + noise}
    for loss, noise in (("a", 0.0), ("b", 0.1), ("c", 0.2))
    for size in (1, 2)
    for seed in (0, 1, 2)
]
ROWS[3]["x"] += 0.5  # of a at size 2


def draw():
    figure, (axis,) = panels(1)
    axis.plot([0, 1], label="one")
    return figure


def test_a_summary_and_its_words():
    table = summary(frame(ROWS, ["loss", "size"]), ["loss", "size"], ["x"])
    assert table[["loss", "size", "n"]].values.tolist() == [
        [loss, size, 3] for loss in "abc" for size in (1, 2)
    ]
    assert table["x_mean"][2] == pytest.approx(11.1)
    assert table["x_std"][2] == pytest.approx(1)
    assert markdown(table.iloc[2:3]) == (
        "| loss | size | n | x (mean ± std) |\n"
        "| --- | --- | --- | --- |\n"
        "| b | 1 | 3 | 11.1 ± 1.0 |"
    )
    assert summary(frame(ROWS), [], ["x"])["n"].tolist() == [18]


def test_a_contrast_pairs_by_seed_within_a_setting():
    rows = [dict(row) for row in ROWS]
    rows[6]["x"] += 0.2  # or all differences would be the same
    rows[7] = {**rows[7], "error": "it failed"}
    table = contrast(frame(rows, ["loss"]), ["loss", "size"], [("x", "loss", [("b", "a")])])
    first, second = table.to_dict("records")
    assert (first["size"], first["value"], first["baseline"], first["n"]) == (1, "b", "a", 2)
    assert first["difference_mean"] == pytest.approx(10.2)
    assert (second["size"], second["n"]) == (2, 3)
    assert second["difference_mean"] == pytest.approx(10.1 - 0.5 / 3)
    assert second["p"] < 0.01
    assert second["verdict"] == "higher"
    none = contrast(frame(rows), ["loss", "size"], [("x", "loss", [("d", "a")])])
    assert not len(none)
    same = contrast(frame(ROWS), ["loss", "size"], [("x", "loss", [("c", "b")])])
    assert same["verdict"][0] == "not tested"


def test_lists_and_what_is_missing_are_text_where_they_tell_settings_apart():
    cells = frame([{"a": [16, 16], "b": None, "c": True, "x": None}], ["a", "b", "c"])
    assert cells[["a", "b", "c"]].values.tolist() == [["16, 16", "None", True]]
    assert cells["x"].isna().all()


def test_cells_of_a_table():
    table = pd.DataFrame(
        {
            "train.loss": ["a|b", "c\nd"],
            "x_mean": [12.345, math.nan],
            "x_std": [0.0567, math.nan],
            "low": [-1.0, math.nan],
            "high": [2.5, math.nan],
            "p": [0.0004, 0.0312],
            "empty": [None, None],
            "best": [True, np.bool_(False)],
        }
    )
    assert readable(table).to_dict("records") == [
        {
            **{"loss": "a|b", "x (mean ± std)": "12.345 ± 0.057", "95 % interval": "-1.0 to 2.5"},
            **{"p": "< 0.001", "best": "True"},
        },
        {
            **{"loss": "c\nd", "x (mean ± std)": "—", "95 % interval": "—"},
            **{"p": "0.031", "best": "False"},
        },
    ]
    assert "| a\\|b | 12.345" in markdown(table)
    assert "| c d |" in markdown(table)


def test_a_page_shows_all_and_is_written_last(tmp_path):
    folder = RunFolder(tmp_path / "toy", {})
    tables = {"First": pd.DataFrame({"n": [1]}), "Second": pd.DataFrame({"n": [2]})}
    cells = [{"key": "k"}, {"key": "j", "error": "ValueError: no"}]
    study = Study("A toy", ["Seed 0."], tables, {"lines": ("Two lines.", draw())}, cells)
    study.written(folder)
    page = (folder.path / "README.md").read_text()
    places = [page.index(x) for x in ("# A toy", "1 of 2 cells failed", "j: ValueError: no")]
    places += [page.index(x) for x in ("(lines.png)", "**Second**", "- Seed 0.")]
    assert places == sorted(places)
    assert (folder.path / "table.csv").read_text() == "n\n1\n"
    once = (folder.path / "lines.png").read_bytes()
    study.written(folder)
    assert (folder.path / "lines.png").read_bytes() == once
    (folder.path / "README.md").unlink()
    (folder.path / "lines.png").unlink()
    (folder.path / "lines.png").mkdir()  # so that no file of this name can be written
    with pytest.raises(RunFolderError, match=r"could not be written in .*toy"):
        study.written(folder)
    assert not (folder.path / "README.md").exists()


def test_a_line_looks_the_same_in_all_panels_and_one_legend_holds_all_lines():
    """Also where the first panel has not all of them, or not all seeds of one."""
    rows = [
        {"loss": loss, "size": size, "curve": [0.1, 0.2]}
        for size, losses in ((1, "bc"), (2, "abcc"))
        for loss in losses
    ]
    figure = plot_curves(pd.DataFrame(rows), "loss", ["size"], "curve", "epoch", "accuracy")
    small, large = ([line.get_color() for line in axis.get_lines()] for axis in figure.axes)
    assert large == [large[0], *small]
    assert len({*large}) == 3
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    colors = dict(zip(texts, [line.get_color() for line in legend.get_lines()], strict=True))
    of = dict(zip("abc", large, strict=True))
    two = {"c, n = 1": of["c"], "c, n = 2": of["c"]}
    assert colors == {"b, n = 1": of["b"], "a, n = 1": of["a"], **two}


def test_an_evolution_of_losses_that_are_not_finite_has_a_figure():
    history = {name: np.ones(4) for name in ("best_fitness", "mean_fitness", "step_size")}
    figure = plot_evolution(history, {"generation": np.asarray([1.0, 3.0])})
    (curve,) = figure.axes[1].get_lines()
    assert np.isnan(np.asarray(curve.get_ydata())).all()


def test_lines_differ_by_colour_dash_and_marker():
    looks = line_styles()
    assert len({tuple(map(str, look.values())) for look in looks}) == 28
    for a, b in itertools.pairwise(looks):
        assert all(a[name] != b[name] for name in a)
    assert short_names(["a/x.safetensors", "edl"]) == {"a/x.safetensors": "x", "edl": "edl"}
    assert short_names(["a/edl.safetensors", "edl"]) == {
        "a/edl.safetensors": "a/edl.safetensors"
    } | {"edl": "edl"}


def test_a_training_is_drawn_epoch_by_epoch_with_labels_and_units():
    history = [
        {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.3, "accuracy": 0.4},
        {"epoch": 2, "train_loss": 1.5, "train_accuracy": 0.5, "accuracy": 0.45},
    ]
    loss, accuracy = plot_training([{**row, "evaluated_on": "val"} for row in history]).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.5]])
    learned, held_out = accuracy.lines
    np.testing.assert_array_equal(learned.get_ydata(), [30, 50])
    np.testing.assert_array_equal(held_out.get_ydata(), [40, 45])
    assert held_out.get_label() == "validation: 45 at the end"
    assert learned.get_linestyle() != held_out.get_linestyle()
    for axis, label in ((loss, "mean loss over the epoch"), (accuracy, "accuracy, %")):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", label)
        assert axis.get_legend() is not None


def test_every_setting_that_is_no_default_is_named():
    assert other_settings(TrainConfig()) == "All other settings are the defaults."
    changed = TrainConfig(
        loss="gce",
        width=7,
        augmentation=Augmentation(flip=False, cutout=4),
        optimizer=OptimizerConfig(name="adamw"),
    )
    told = other_settings(changed, but=["loss"])
    assert told == (
        "Settings that are not the defaults: augmentation.flip=False, augmentation.cutout=4, "
        "width=7, optimizer.name='adamw'."
    )
    nested = other_settings(CoverageConfig(train=changed), but=["train.loss"])
    assert "train.augmentation.cutout=4" in nested


def test_demo_runs_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing"))
    name_archive(monkeypatch, "cifar10", NO_SERVER)
    small = dataclasses.replace(
        DIGITS, epochs=1, data=dataclasses.replace(DIGITS.data, train_examples=256)
    )
    monkeypatch.setitem(demo.__globals__, "_small_training", lambda name, directory: small)
    monkeypatch.setitem(demo.__globals__, "compare", functools.partial(compare, executor="1"))
    evolved, study = demo(DemoConfig(num_seeds=2, pretrain=TINY), tmp_path / "run")
    assert "handwritten digits" in study.notes[0]
    assert study.table["train.loss"].tolist() == ["cross_entropy", "evolved"]
    assert study.table["n"].tolist() == [2, 2]
    assert evolved.metrics
    for name in ("evolution", "loss", "compare/accuracy"):
        data = (tmp_path / "run" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 10_000


@pytest.mark.parametrize(
    "study",
    [
        functools.partial(compare, None),
        functools.partial(ablate, None),
        functools.partial(coverage, None),
        functools.partial(card, None),
        functools.partial(demo, DemoConfig()),
    ],
    ids=lambda study: study.func.__name__,
)
def test_a_run_folder_is_a_path(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in ("", 3, "~nobody_of_this_name/run"):
        with pytest.raises(ConfigError, match=f"the path is {wrong!r}"):
            study(run_dir=wrong)
    assert not list(tmp_path.iterdir())


LAST = 2**32 - 1  # the highest seed: jax.random.key takes the next one for 0
pair = functools.partial(PretrainConfig, network="pair", class_counts=(10,))


@pytest.mark.parametrize(
    "make",
    [
        lambda seed, n: CompareConfig(num_seeds=n, train=TrainConfig(seed=seed)),
        lambda seed, n: CompareConfig(
            num_seeds=1,
            tuning_seeds=n,
            learning_rates=(0.1, 0.2),
            train=TrainConfig(seed=seed - 1, data=DataConfig(val_examples=10)),
        ),
        lambda seed, n: AblateConfig(num_seeds=n, pretrain=pair(seed=seed)),
        lambda seed, n: CoverageConfig(num_seeds=n, train=TrainConfig(seed=seed)),
    ],
)
def test_no_seed_of_a_study_wraps(make):
    assert make(LAST - 4, 5)  # the last seed is the highest
    with pytest.raises(ConfigError, match=rf"Config\.seed is {LAST + 1}; .* at most {LAST}"):
        make(LAST - 4, 6)
