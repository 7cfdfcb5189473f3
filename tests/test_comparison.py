"""`compare` with trainings that are made up: what it runs, what it says about them."""

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from edl_jax.errors import ConfigError, DivergedError, EDLError, Preempted
from edl_jax.losses import LOSSES, MARGIN_LOSSES
from edl_jax.studies import CompareConfig, compare
from edl_jax.studies.comparison import results as comparison_results, study as comparison
from edl_jax.studies.comparison.config import Setting
from edl_jax.studies.comparison.rows import (
    best_learning_rates,
    comparison_rows,
    next_learning_rates,
)
from edl_jax.studies.comparison.runs import COMPARISON, TUNING, _num_side_by_side, work_of
from edl_jax.studies.statistics import Sample
from tests.test_training import DIGITS

TRAIN = dataclasses.replace(DIGITS, epochs=2, train_examples=256, val_examples=100)
THREE = ("cross_entropy", "edl", "gce")
PLAIN = CompareConfig(losses=THREE, train=TRAIN)
TUNED = dataclasses.replace(PLAIN, learning_rates=(0.1, 0.2, 0.4), num_seeds=3, tuning_seeds=2)
NOISE = np.asarray([0.0, 0.01, -0.01, 0.005, -0.004])  # of a seed, the same for all losses


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """What statsmodels corrects for Holm's way, it collects garbage after: half a second of it."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def wobble(loss, seed):
    """Deviates by 0.4 points, in another way for each loss; without a mean over seeds 0 to 4."""
    deviations = np.random.default_rng([len(loss), seed // 5]).normal(size=5)
    return 0.004 * (deviations - deviations.mean())[seed % 5]


def planted(config, seed):
    """An accuracy: edl is 4 points above cross-entropy, gce as good."""
    effect = 0.04 if config.loss == "edl" else 0.0
    return 0.5 + effect + NOISE[seed % 5] + wobble(config.loss, seed)


class Trainings:
    """Stands for `make_trainer`; `ran` has every training that was begun."""

    def __init__(
        self, monkeypatch, accuracy=planted, diverges=lambda config, seed: False, figures=False
    ):
        self.ran, self.accuracy, self.diverges = [], accuracy, diverges
        monkeypatch.setattr(comparison, "make_trainer", self.make)
        if not figures:  # which take most of the time
            for name in ("accuracy", "differences", "learning_rates"):
                monkeypatch.setattr(comparison_results, f"plot_{name}", lambda *cells: None)
            monkeypatch.setattr("edl_jax.studies.results.save", lambda figure, path: None)
            monkeypatch.setattr("edl_jax.studies.results.add_results", lambda *_, **__: None)

    def make(self, config, *, loss, dataset):
        return lambda seeds, **options: [self.train(config, seed, **options) for seed in seeds]

    def train(self, config, seed, *, report, test):
        self.ran.append((config, seed, test))
        rows = []
        for epoch in (1, 2):
            if epoch == 2 and self.diverges(config, seed):
                raise DivergedError("training diverged")
            value = self.accuracy(config, seed)
            rows.append({"epoch": epoch, "accuracy": value, "evaluated_on": "val"})
            rows[-1] |= {"nll": 2 - value, "calibration_error": 0.05}
            report(rows[-1])
        measured = {"test_accuracy": value, "test_nll": 1 - value, "test_calibration_error": 0.03}
        if not test:
            measured = dict.fromkeys(measured, np.nan)
        return SimpleNamespace(**measured, history=rows)


def row_of(result, loss, **setting):
    (row,) = [x for x in result.rows if x["loss"] == loss and setting.items() <= x.items()]
    return row


def test_rows_have_every_number_and_the_paragraph_follows_them(monkeypatch, tmp_path):
    Trainings(monkeypatch, figures=True)
    result = compare(PLAIN, run_dir=tmp_path)
    row = row_of(result, "edl")
    accuracies = {
        name: 100
        * np.asarray([planted(dataclasses.replace(TRAIN, loss=name), x) for x in range(5)])
        for name in THREE
    }
    own, baseline = accuracies["edl"], accuracies["cross_entropy"]
    differences = own - baseline
    assert row["n"] == 5
    assert row["accuracy_mean"] == pytest.approx(own.mean())
    assert row["accuracy_standard_error"] == pytest.approx(own.std(ddof=1) / np.sqrt(5))
    assert row["difference_mean"] == pytest.approx(differences.mean())
    assert row["difference_low"] < differences.mean() < row["difference_high"]
    assert row["effect_size"] == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert row["p_t"] == pytest.approx(stats.ttest_rel(own, baseline).pvalue)
    assert row["p_wilcoxon"] == pytest.approx(1 / 16)
    assert row["p_welch"] == pytest.approx(stats.ttest_ind(own, baseline, equal_var=False).pvalue)
    assert row["p_t_holm"] == pytest.approx(2 * row["p_t"])  # the smaller one of two tests
    assert row_of(result, "gce")["p_t_holm"] == pytest.approx(row_of(result, "gce")["p_t"])
    assert row["nll_mean"] == pytest.approx(1 - own.mean() / 100)
    assert row["calibration_error_mean"] == pytest.approx(3)

    said = result.results.finding
    assert f"cross_entropy reaches a test accuracy of {baseline.mean():.2f} %" in said
    assert "Holm's correction for 2 tests" in said
    above, undecided = said.split("Significantly above it: ")[1].split("Not told apart from it: ")
    assert above.startswith(f"edl by {differences.mean():+.2f} points (95 % interval")
    assert "gce" not in above
    gce = row_of(result, "gce")
    assert undecided.startswith(f"gce ({gce['difference_mean']:+.2f} points). With 5 seeds")
    assert f"true difference of {gce['detectable']:.2f} points" in undecided
    assert "below" not in said
    assert "lowest negative log-likelihood is that of edl" in said

    for name in ("comparison.md", "comparison.csv", "comparison.json", "README.md", "study.json"):
        assert (tmp_path / name).stat().st_size > 100
    for name in ("accuracy", "differences"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert said in (tmp_path / "README.md").read_text()
    assert "Exclusions: none" in (tmp_path / "README.md").read_text()


def test_every_loss_takes_its_own_rate_by_validation_images_alone(monkeypatch):
    best = {"cross_entropy": 0.1, "edl": 0.2, "gce": 0.4}

    def accuracy(config, seed):
        return planted(config, seed) - 0.1 * (config.learning_rate != best[config.loss])

    trainings = Trainings(monkeypatch, accuracy)
    result = compare(TUNED)
    tuning = [(config, seed) for config, seed, test in trainings.ran if not test]
    compared = [(config, seed) for config, seed, test in trainings.ran if test]
    assert len(tuning) == (3 * 3 + 2) * 2  # cross-entropy and gce: one rate more each
    assert {seed for _, seed in tuning} == {3, 4}
    assert {seed for _, seed in compared} == {0, 1, 2}
    assert {(c.loss, c.learning_rate) for c, _ in compared} == set(best.items())
    assert len(compared) == 9
    for cell in result.cells:
        assert (cell["test_accuracy"] is None) == (cell["phase"] == TUNING)
    assert {row["loss"]: row["learning_rate"] for row in result.rows} == best
    assert "0.1 for cross_entropy; 0.2 for edl; 0.4 for gce" in result.results.finding
    protocol = " ".join(result.results.protocol)
    assert "No test image was looked at" in protocol
    assert "none above a rate that diverged: 0.05 for cross_entropy; 0.8 for gce." in protocol


@pytest.mark.parametrize(
    ("best", "bound", "tried", "chosen", "edge"),
    [
        (0.2, 9, (), 0.2, False),  # inside
        (0.9, 9, (0.8, 1.6), 0.8, False),
        (0.02, 9, (0.05, 0.025, 0.0125), 0.025, False),
        (99, 9, (0.8, 1.6, 3.2, 6.4), 6.4, True),  # up to MAX_EXTENSIONS
        (99, 1, (0.8, 1.6), 0.8, False),  # what diverged counts as guessing
        (99, 0.3, (), 0.2, False),
        (0.1, 0.05, (0.05, 0.025), 0.05, False),  # of rates that all diverge, look below
    ],
)
def test_a_grid_is_extended_until_the_best_rate_is_inside(
    monkeypatch, tmp_path, best, bound, tried, chosen, edge
):
    def accuracy(config, seed):
        return planted(config, seed) - 0.1 * abs(np.log(config.learning_rate / best)) / 5

    trainings = Trainings(
        monkeypatch, accuracy, diverges=lambda config, seed: config.learning_rate > bound
    )
    config = dataclasses.replace(
        TUNED, losses=("cross_entropy",), learning_rates=(0.1, 0.2, 0.4), num_seeds=1
    )
    result = compare(config, run_dir=tmp_path)
    rates = [config.learning_rate for config, _, test in trainings.ran if not test]
    assert list(dict.fromkeys(rates)) == [0.1, 0.2, 0.4, *tried]
    assert len(rates) == 2 * (3 + len(tried))
    assert result.rows[0]["learning_rate"] == chosen
    listed = ", ".join(f"{rate:g}" for rate in sorted(tried))
    said = f"{listed} for cross_entropy" if tried else "nowhere"
    assert f"none above a rate that diverged: {said}." in " ".join(result.results.protocol)
    assert ("grid's edge" in result.results.finding) == edge
    table = result.results.tables[1]
    assert [row["learning_rate"] for row in table.rows] == sorted([0.1, 0.2, 0.4, *tried])
    bars = []
    monkeypatch.setattr(
        comparison, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[0]
    )
    assert compare(config, run_dir=tmp_path).cells == result.cells
    assert len(trainings.ran) == len(result.cells)  # nothing was tried twice
    assert (bars[0].said, bars[0].total) == ("0 trainings", 0)


class Bar(contextlib.nullcontext):
    """Stands for a progress bar."""

    def __init__(self, *, total, desc, **_):
        super().__init__()
        self.total, self.said = total, desc


@pytest.mark.parametrize(("diverged", "beyond"), [(None, {"edl": 0.8}), ("it did", {})])
def test_no_rate_is_tried_above_one_that_diverged_once(diverged, beyond):
    setting = Setting("tiny", "digits", 0.0)
    cells = [
        {
            **setting._asdict(), "loss": "edl", "learning_rate": rate, "chance": 0.1,
            "diverged": diverged if (rate, seed) == (0.4, 1) else None,
            "epochs": [{"accuracy": 2 * rate}],
        }
        for rate in (0.1, 0.2, 0.4)
        for seed in (0, 1)
    ]  # fmt: skip
    assert best_learning_rates(cells, setting) == {"edl": 0.4}
    assert next_learning_rates(cells, setting) == beyond


def test_each_loss_extends_its_grid_in_the_setting_where_it_must(monkeypatch):
    def accuracy(config, seed):
        wants_more = (config.loss, config.noise_rate) == ("edl", 0.4)
        return 0.5 - abs(np.log(config.learning_rate / (0.5 if wants_more else 0.2))) / 50

    Trainings(monkeypatch, accuracy)
    result = compare(dataclasses.replace(TUNED, noise_rates=(0.0, 0.4)))
    said = "none above a rate that diverged: 0.8 for edl (tiny on digits, noise rate 40 %)."
    assert said in " ".join(result.results.protocol)
    rates = {(row["loss"], row["noise_rate"]): row["learning_rate"] for row in result.rows}
    assert rates.pop(("edl", 0.4)) == 0.4
    assert set(rates.values()) == {0.2}


def test_on_the_validation_split_no_test_image_is_looked_at(monkeypatch):
    trainings = Trainings(monkeypatch, figures=True)
    result = compare(dataclasses.replace(TUNED, split="val"))
    assert not any(test for _, _, test in trainings.ran)
    row = row_of(result, "edl")
    values = [planted(dataclasses.replace(TRAIN, loss="edl"), seed) for seed in range(3)]
    assert row["accuracy_mean"] == pytest.approx(100 * np.mean(values))
    assert row["nll_mean"] == pytest.approx(2 - np.mean(values))
    assert row["calibration_error_mean"] == pytest.approx(5)
    assert all(cell["test_accuracy"] is None for cell in result.cells)
    assert "cross_entropy reaches a validation accuracy of" in result.results.finding
    assert result.results.title.startswith("Validation accuracy by loss")
    protocol = " ".join(result.results.protocol)
    assert "on which their learning rates were chosen too: no test image was looked at" in protocol
    assert "test images" not in protocol
    (axis,) = result.results.figures[0].drawn.axes
    assert axis.get_xlabel().startswith("difference of validation accuracy")


def test_figures_of_several_settings_and_a_loss_that_does_not_learn(monkeypatch):
    trainings = Trainings(
        monkeypatch,
        lambda config, seed: planted(config, seed) - 0.3 * (config.loss == "gce"),
        diverges=lambda config, seed: (config.loss, seed) == ("edl", 1),
        figures=True,
    )
    several = {"losses": ("cross_entropy", "edl", "gce", "mae", "focal"), "noise_rates": (0.0, 0.4)}
    results = compare(dataclasses.replace(TUNED, **several)).results
    figures = results.figures
    assert trainings.ran
    assert [figure.name for figure in figures] == ["differences", "accuracy", "learning_rates"]
    differences, accuracy, rates = (figure.drawn for figure in figures)
    for drawn in (differences, accuracy, rates):
        assert [axis.get_title() for axis in drawn.axes] == [
            "tiny on digits",
            "tiny on digits, noise rate 40 %",
        ]
    shown = [text.get_text() for text in accuracy.legends[0].get_texts()]
    assert shown == [f"{name}, n = 3" for name in several["losses"]]
    ticks = [text.get_text() for text in differences.axes[0].get_yticklabels()]
    assert ticks == shown[1:]
    assert differences.axes[0].get_xscale() == "symlog"
    assert "validation accuracy, %" in {axis.get_ylabel() for axis in rates.axes}


def test_without_an_effect_studies_find_one_no_oftener_than_stated(monkeypatch):
    """In at most 5 % of the studies any of three losses differs; uncorrected, oftener."""
    for module in ("comparison.rows", "statistics"):  # intervals take most of the time
        short = lambda x: Sample(len(x), x.mean(), x.std(ddof=1), 0, 0, 0)  # noqa: E731
        monkeypatch.setattr(f"edl_jax.studies.{module}.describe", short)
    monkeypatch.setattr("edl_jax.studies.statistics.detectable_difference", lambda *_: 1.0)
    rng, count = np.random.default_rng(0), 200
    found = {"p_t": 0, "p_t_holm": 0}
    same = {"model": "tiny", "dataset": "digits", "noise_rate": 0.0, "learning_rate": 0.1}
    same |= {"diverged": None, "test_nll": 1.0, "test_calibration_error": 0.1, "chance": 0.1}
    for _ in range(count):
        shared = rng.normal(size=6)  # what the losses have in common at a seed
        cells = [
            {**same, "loss": name, "test_accuracy": 0.5 + 0.01 * (shared[seed] + rng.normal())}
            for name in ("cross_entropy", "edl", "gce", "poly")
            for seed in range(6)
        ]
        rows = comparison_rows(cells)
        for name in found:
            found[name] += any(row[name] < 0.05 for row in rows)
    bound = stats.binom(count, 0.05).ppf(0.999)
    assert 0 < found["p_t_holm"] <= bound < found["p_t"]


@pytest.mark.parametrize(
    ("backend", "num_devices", "expected"), [("cpu", 1, 3), ("cpu", 2, 1), ("gpu", 1, 1)]
)
def test_trainings_run_side_by_side_on_one_cpu_device_alone(
    monkeypatch, backend, num_devices, expected
):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("jax.device_count", lambda: num_devices)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert _num_side_by_side() == expected


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [4, 20])  # in the tuning, and in the comparison
def test_a_finished_cell_is_never_run_twice(monkeypatch, tmp_path, stop_after):
    monkeypatch.setattr("edl_jax.studies.comparison.runs._num_side_by_side", lambda: 1)
    count = iter(range(100))

    def stopping(config, seed):
        if next(count) >= 2 * stop_after:  # two epochs each
            raise Stop
        return planted(config, seed)

    first = Trainings(monkeypatch, stopping)
    with pytest.raises(Stop):
        compare(TUNED, run_dir=tmp_path / "run")
    path = tmp_path / "run" / "cells.jsonl"
    assert len(path.read_text().splitlines()) == stop_after
    path.write_text(path.read_text() + '{"phase": "tun')  # cut short by a kill
    second = Trainings(monkeypatch)
    result = compare(TUNED, run_dir=tmp_path / "run")
    finished = [(c.loss, c.learning_rate, seed, test) for c, seed, test in first.ran[:stop_after]]
    later = [(c.loss, c.learning_rate, seed, test) for c, seed, test in second.ran]
    assert not {*finished} & {*later}
    # Six more than the grid: all rates are equally good, so that the first is not inside.
    assert len(later) == len({*later}) == 33 - stop_after
    third = Trainings(monkeypatch)
    again = compare(TUNED, run_dir=tmp_path / "run")
    assert not third.ran
    whole = compare(TUNED)
    for other in (again, whole):
        assert other.table == result.table
        assert other.results.finding == result.results.finding
        assert other.cells == result.cells


def test_sigterm_stops_a_comparison_and_what_had_ended_is_kept(monkeypatch, tmp_path):
    run_dir, calls = tmp_path / "run", itertools.count()

    def terminating(config, seed):
        if next(calls) == 8:  # four trainings have ended, whichever run side by side
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # until the main thread has taken it
        return planted(config, seed)

    first = Trainings(monkeypatch, terminating)
    with pytest.raises(Preempted, match=r"told to stop by SIGTERM.*The same command resumes"):
        compare(PLAIN, run_dir=run_dir)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    kept = len((run_dir / "cells.jsonl").read_text().splitlines())
    assert len(first.ran) - _num_side_by_side() <= kept < len(first.ran) < 15
    second = Trainings(monkeypatch)
    result = compare(PLAIN, run_dir=run_dir)
    assert len(second.ran) == 15 - kept
    assert result.table == compare(PLAIN).table


def test_models_data_and_noise_are_crossed_and_corrected_for_together(monkeypatch):
    config = dataclasses.replace(
        PLAIN, models=("tiny", "resnet8"), noise_rates=(0.0, 0.4), num_seeds=3
    )
    trainings = Trainings(monkeypatch)
    result = compare(config)
    assert len(trainings.ran) == len(result.cells) == 2 * 2 * 3 * 3
    assert {(c.model, c.label_noise, c.noise_rate) for c, _, _ in trainings.ran} == {
        (model, *noise) for model in config.models for noise in (("none", 0.0), ("symmetric", 0.4))
    }
    assert len(result.rows) == 12
    ps = sorted(row["p_t"] for row in result.rows if row["loss"] != "cross_entropy")
    smallest = min(result.rows, key=lambda row: row["p_t"] if row["p_t"] >= 0 else 1)
    assert smallest["p_t_holm"] == pytest.approx(8 * ps[0])
    assert "study (8, 8, 8)" in " ".join(result.results.protocol)
    assert "tiny on digits, noise rate 40 %: Over 3 seeds" in result.results.finding
    assert "| resnet8 | 40 | gce | 3 |" in result.table


def test_a_diverged_training_counts_as_guessing_and_is_shown(monkeypatch, tmp_path):
    trainings = Trainings(
        monkeypatch, diverges=lambda config, seed: (config.loss, seed) == ("gce", 1)
    )
    result = compare(PLAIN, run_dir=tmp_path)
    row = row_of(result, "gce")
    own = [planted(dataclasses.replace(TRAIN, loss="gce"), seed) for seed in (0, 2, 3, 4)]
    assert (row["n"], row["diverged"]) == (5, 1)
    assert row["accuracy_mean"] == pytest.approx(100 * (sum(own) + 0.1) / 5)
    assert row["nll_mean"] == pytest.approx(1 - np.mean(own))
    (cell,) = [cell for cell in result.cells if cell["diverged"]]
    assert cell["test_accuracy"] is None
    assert len(cell["epochs"]) == 1
    assert "gce (1 of 5)" in result.results.finding
    assert "Diverged: 1 of 15." in " ".join(result.results.protocol)
    assert "| gce | 5 | 1 |" in result.table
    count = len(trainings.ran)
    assert compare(PLAIN, run_dir=tmp_path).table == result.table
    assert len(trainings.ran) == count  # nor is it tried again


def test_a_rate_that_diverges_is_not_chosen(monkeypatch):
    Trainings(monkeypatch, diverges=lambda config, seed: config.learning_rate > 0.1)
    result = compare(dataclasses.replace(TUNED, num_seeds=1))
    assert {row["learning_rate"] for row in result.rows} == {0.1}
    assert "No test is defined for edl, gce" in result.results.finding


def test_on_an_accelerator_trainings_follow_one_another_and_outlive_one_that_diverges(monkeypatch):
    monkeypatch.setattr("edl_jax.studies.comparison.runs.jax.default_backend", lambda: "gpu")
    trainings = Trainings(monkeypatch, diverges=lambda config, seed: seed == 1)
    config = dataclasses.replace(PLAIN, losses=("edl", "cross_entropy"), num_seeds=3)
    result = compare(config)
    assert [seed for _, seed, _ in trainings.ran] == [0, 1, 2, 0, 1, 2]
    assert [bool(cell["diverged"]) for cell in result.cells] == [False, True, False] * 2


def test_another_failure_ends_the_comparison(monkeypatch):
    def failing(config, seed):
        raise EDLError("no room")

    Trainings(monkeypatch, failing)
    with pytest.raises(EDLError, match="no room"):
        compare(PLAIN)


def test_static_stands_for_the_baselines_without_parameters_and_margins():
    names = CompareConfig(losses=("cross_entropy", "edl", "static")).loss_names()
    assert names[:2] == ("cross_entropy", "edl")
    assert len(names) == len({*names})
    assert {*LOSSES} - {*names} == {*MARGIN_LOSSES, "adaptive_barron"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ()}, "losses is"),
        ({"losses": ("edl", "edl")}, "expected a tuple of different losses"),
        ({"losses": ("hinge",)}, "loss is 'hinge'; expected one of .*, static, or a file"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"models": ("resnet9",)}, "model is 'resnet9'"),
        ({"models": ("tiny", "tiny")}, "different models"),
        ({"noise_rates": (1.5,)}, r"noise_rate is 1\.5"),
        ({"learning_rates": (0.1,)}, "expected two or more"),
        ({"learning_rates": (0.1, -0.1)}, r"learning_rate is -0\.1"),
        ({"learning_rates": (0.1, 0.2), "train": DIGITS}, r"expected train\.val_examples"),
        ({"tuning_seeds": 0}, "tuning_seeds is 0"),
        ({"split": "train"}, "split is 'train'; expected one of test, val"),
        ({"split": "val", "train": DIGITS}, "split is 'val' without validation images"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_cells_are_found_by_all_that_tells_trainings_apart():
    cell = json.loads(
        '{"phase": "comparison", "loss": "edl", "model": "tiny", "dataset": "digits", '
        '"noise_rate": 0.1, "learning_rate": 0.2, "seed": 3, "diverged": null}'
    )
    assert work_of(cell) == (COMPARISON, "edl", "tiny", "digits", 0.1, 0.2, 3)
