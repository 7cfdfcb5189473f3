"""`compare` with trainings that are made up: what it runs, what it says about them."""

import dataclasses
import gc
import json
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from scipy import stats

from edl_jax.errors import ConfigError, DivergedError, RunFolderError
from edl_jax.losses import LOSSES
from edl_jax.studies import CompareConfig, compare
from edl_jax.studies.compare import LOSS, RATE, best_rate, comparison_table, next_rates
from edl_jax.studies.statistics import Sample
from edl_jax.studies.tables import frame
from tests.test_training import DIGITS

TRAIN = dataclasses.replace(
    DIGITS, epochs=2, data=dataclasses.replace(DIGITS.data, train_examples=256, val_examples=100)
)
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
        monkeypatch.setattr("edl_jax.studies.cells.make_trainer", self.make)
        if not figures:  # which take most of the time
            monkeypatch.setattr("edl_jax.studies.tables.write_page", lambda *_: None)
            module = sys.modules[compare.__module__]  # its name is the function's
            monkeypatch.setattr(module, "plot_curves", lambda *_: None)

    def make(self, config):
        return lambda seeds, **options: [self.train(config, seed, **options) for seed in seeds]

    def train(self, config, seed, *, report, test):
        self.ran.append((config, seed, test))
        for epoch in (1, 2):
            if epoch == 2 and self.diverges(config, seed):
                raise DivergedError("training diverged")
            value = self.accuracy(config, seed)
            report({"accuracy": value, "nll": 2 - value, "calibration_error": 0.05})
        measured = {"test_accuracy": value, "test_nll": 1 - value, "test_calibration_error": 0.03}
        return SimpleNamespace(**measured if test else dict.fromkeys(measured, np.nan))


def run(config, **options):
    return compare(config, executor="1", **options)


def row_of(study, loss, **setting):
    (row,) = [
        x
        for x in study.table.to_dict("records")
        if x[LOSS] == loss and setting.items() <= x.items()
    ]
    return row


def test_the_table_has_every_number_and_a_verdict(monkeypatch, tmp_path):
    Trainings(monkeypatch, figures=True)
    study = run(PLAIN, run_dir=tmp_path)
    row, gce = row_of(study, "edl"), row_of(study, "gce")
    own, baseline, other = (
        100 * np.asarray([planted(dataclasses.replace(TRAIN, loss=name), x) for x in range(5)])
        for name in ("edl", "cross_entropy", "gce")
    )
    differences = own - baseline
    assert row["n"] == 5
    assert row["accuracy_mean"] == pytest.approx(own.mean())
    assert row["accuracy_std"] == pytest.approx(own.std(ddof=1))
    assert row["difference_mean"] == pytest.approx(differences.mean())
    assert row["low"] < differences.mean() < row["high"]
    # Holm's correction of two tests: the smaller p twice.
    assert row["p"] == pytest.approx(2 * stats.ttest_rel(own, baseline).pvalue)
    assert gce["p"] == pytest.approx(stats.ttest_rel(other, baseline).pvalue)
    assert row["nll_mean"] == pytest.approx(1 - own.mean() / 100)
    assert row["calibration_error_mean"] == pytest.approx(3)
    assert row["verdict"] == "higher"
    assert gce["verdict"].startswith("no significant difference, could have found ")
    assert np.isnan(row_of(study, "cross_entropy")["difference_mean"])
    page = (tmp_path / "README.md").read_text()
    for text in ("| higher |", "Seeds 0 to 4", "train_examples=256", f"± {own.std(ddof=1):.2f}"):
        assert text in page
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.csv").read_text().startswith("train.loss,n,accuracy_mean,")


def test_every_loss_takes_its_own_rate_by_validation_images_alone(monkeypatch):
    best = {"cross_entropy": 0.1, "edl": 0.2, "gce": 0.4}

    def accuracy(config, seed):
        return planted(config, seed) - 0.1 * (config.learning_rate != best[config.loss])

    made = Trainings(monkeypatch, accuracy)
    study = run(TUNED)
    tuning = [(config, seed) for config, seed, test in made.ran if not test]
    compared = [(config, seed) for config, seed, test in made.ran if test]
    assert len(tuning) == (3 * 3 + 2) * 2  # cross-entropy and gce: one rate more each
    assert {seed for _, seed in tuning} == {3, 4}
    assert {seed for _, seed in compared} == {0, 1, 2}
    assert {(c.loss, c.learning_rate) for c, _ in compared} == set(best.items())
    assert len(compared) == 9
    assert {row[LOSS]: row[RATE] for row in study.table.to_dict("records")} == best
    rates = study.tables["Learning rates on validation images"]
    tried = rates[rates[LOSS] == "cross_entropy"][RATE]
    assert sorted(tried) == [0.05, 0.1, 0.2, 0.4]
    assert "No test image was looked at" in " ".join(study.notes)


@pytest.mark.parametrize(
    ("best", "bound", "tried", "chosen"),
    [
        (0.2, 9, (), 0.2),  # inside
        (0.9, 9, (0.8, 1.6), 0.8),
        (0.02, 9, (0.05, 0.025, 0.0125), 0.025),
        (99, 9, (0.8, 1.6, 3.2, 6.4), 6.4),  # up to MAX_EXTENSIONS
        (99, 1, (0.8, 1.6), 0.8),  # what diverged counts as guessing
        (99, 0.3, (), 0.2),
        (0.1, 0.05, (0.05, 0.025), 0.05),  # of rates that all diverge, look below
    ],
)
def test_a_grid_is_extended_until_the_best_rate_is_inside(
    monkeypatch, tmp_path, best, bound, tried, chosen
):
    def accuracy(config, seed):
        return planted(config, seed) - 0.1 * abs(np.log(config.learning_rate / best)) / 5

    made = Trainings(
        monkeypatch, accuracy, diverges=lambda config, seed: config.learning_rate > bound
    )
    config = dataclasses.replace(
        TUNED, losses=("cross_entropy",), learning_rates=(0.1, 0.2, 0.4), num_seeds=1
    )
    study = run(config, run_dir=tmp_path)
    rates = [config.learning_rate for config, _, test in made.ran if not test]
    assert list(dict.fromkeys(rates)) == [0.1, 0.2, 0.4, *tried]
    assert len(rates) == 2 * (3 + len(tried))
    assert study.table[RATE].tolist() == [chosen]
    count = len(made.ran)
    assert run(config, run_dir=tmp_path).table.equals(study.table)
    assert len(made.ran) == count == len(study.cells)  # nothing was tried twice


@pytest.mark.parametrize(("diverged", "beyond"), [(False, [0.8]), (True, [])])
def test_no_rate_is_tried_above_one_that_diverged_once(diverged, beyond):
    cells = [
        {RATE: rate, "accuracy": 2 * rate, "diverged": diverged and (rate, seed) == (0.4, 1)}
        for rate in (0.1, 0.2, 0.4)
        for seed in (0, 1)
    ]
    assert best_rate(cells) == 0.4
    assert next_rates(cells) == beyond
    assert best_rate([{RATE: 0.1, "error": "x"}, {RATE: 0.2, "accuracy": 0.1}]) == 0.2


def test_each_loss_extends_its_grid_in_the_setting_where_it_must(monkeypatch):
    def accuracy(config, seed):
        wants_more = (config.loss, config.width) == ("edl", 8)
        return 0.5 - abs(np.log(config.learning_rate / (0.5 if wants_more else 0.2))) / 50

    Trainings(monkeypatch, accuracy)
    study = run(dataclasses.replace(TUNED, grid={"train.width": (4, 8)}))
    rows = study.table.to_dict("records")
    rates = {(row[LOSS], row["train.width"]): row[RATE] for row in rows}
    assert rates.pop(("edl", 8)) == 0.4
    assert set(rates.values()) == {0.2}


def test_on_the_validation_split_no_test_image_is_looked_at(monkeypatch):
    made = Trainings(monkeypatch)
    study = run(dataclasses.replace(TUNED, split="val"))
    assert not any(test for _, _, test in made.ran)
    row = row_of(study, "edl")
    values = [planted(dataclasses.replace(TRAIN, loss="edl"), seed) for seed in range(3)]
    assert row["accuracy_mean"] == pytest.approx(100 * np.mean(values))
    assert row["nll_mean"] == pytest.approx(2 - np.mean(values))
    assert row["calibration_error_mean"] == pytest.approx(5)
    assert next(iter(study.tables)).startswith("Validation accuracy")


def test_any_fields_are_crossed_and_corrected_for_together(monkeypatch):
    grid = {"train.model": ("tiny", "resnet8"), "train.augmentation.cutout": (0, 2)}
    config = dataclasses.replace(PLAIN, grid=grid, num_seeds=3)
    made = Trainings(monkeypatch, figures=True)
    study = run(config)
    assert len(made.ran) == len(study.cells) == 2 * 2 * 3 * 3
    assert {(c.model, c.augmentation.cutout) for c, _, _ in made.ran} == {
        (model, cutout) for model in ("tiny", "resnet8") for cutout in (0, 2)
    }
    rows = study.table.to_dict("records")
    assert len(rows) == 12
    own, baseline = (
        [planted(dataclasses.replace(TRAIN, loss=name), x) for x in range(3)]
        for name in ("edl", "cross_entropy")
    )
    smallest = stats.ttest_rel(own, baseline).pvalue
    # The same in four settings, of eight tests: all four are corrected by the first one's factor.
    assert row_of(study, "edl", **{"train.model": "resnet8", "train.augmentation.cutout": 2})[
        "p"
    ] == pytest.approx(8 * smallest)
    titles = [axis.get_title() for axis in study.figures["accuracy"][1].axes]
    assert titles[:2] == ["model tiny, cutout 0", "model tiny, cutout 2"]


def test_a_diverged_training_counts_as_guessing_and_is_shown(monkeypatch, tmp_path):
    made = Trainings(monkeypatch, diverges=lambda config, seed: (config.loss, seed) == ("gce", 1))
    study = run(PLAIN, run_dir=tmp_path)
    row = row_of(study, "gce")
    own = [planted(dataclasses.replace(TRAIN, loss="gce"), seed) for seed in (0, 2, 3, 4)]
    assert (row["n"], row["diverged"]) == (5, 1)
    assert row["accuracy_mean"] == pytest.approx(100 * (sum(own) + 0.1) / 5)
    assert row["nll_mean"] == pytest.approx(1 - np.mean(own))
    (cell,) = [cell for cell in study.cells if cell["diverged"]]
    assert (cell["nll"], cell["epochs"][1:]) == (None, [0.1])
    count = len(made.ran)
    assert run(PLAIN, run_dir=tmp_path).table.equals(study.table)
    assert len(made.ran) == count  # nor is it tried again


def test_a_training_that_fails_is_told_and_its_seed_is_left_out_of_the_pairs(monkeypatch, tmp_path):
    def failing(config, seed):
        if (config.loss, seed) == ("edl", 1):
            raise MemoryError("no room")
        return planted(config, seed)

    Trainings(monkeypatch, failing, figures=True)
    study = run(PLAIN, run_dir=tmp_path)
    assert row_of(study, "edl")["n"] == 4
    (told,) = study.failed
    assert "MemoryError: no room" in told
    assert "1 of 15 cells failed" in (tmp_path / "README.md").read_text()
    own, baseline = (
        np.asarray([planted(dataclasses.replace(TRAIN, loss=x), s) for s in (0, 2, 3, 4)])
        for x in ("edl", "cross_entropy")
    )
    difference = row_of(study, "edl")["difference_mean"]
    assert difference == pytest.approx(100 * (own - baseline).mean())


def test_without_an_effect_studies_find_one_no_oftener_than_stated(monkeypatch):
    """In at most 5 % of the studies any of three losses differs."""
    for module in ("tables", "statistics"):  # intervals and power take most of the time
        short = lambda x: Sample(len(x), x.mean(), x.std(ddof=1), 0, 0)  # noqa: E731
        monkeypatch.setattr(f"edl_jax.studies.{module}.describe", short, raising=False)
    monkeypatch.setattr("edl_jax.studies.statistics.minimum_detectable_effect", lambda *_: 1.0)
    rng, count, found = np.random.default_rng(0), 100, 0
    for _ in range(count):
        shared = rng.normal(size=6)  # what the losses have in common at a seed
        rows = [
            {LOSS: name, "seed": seed, "accuracy": shared[seed] + rng.normal()}
            | {"nll": 1.0, "calibration_error": 1.0, "diverged": False}
            for name in ("cross_entropy", "edl", "gce", "poly")
            for seed in range(6)
        ]
        verdicts = comparison_table(frame(rows, [LOSS]), [LOSS])["verdict"].iloc[1:]
        found += verdicts.isin(["higher", "lower"]).any()
    assert found <= stats.binom(count, 0.05).ppf(0.999)


def test_a_folder_of_another_comparison_is_refused(monkeypatch, tmp_path):
    Trainings(monkeypatch)
    run(PLAIN, run_dir=tmp_path)
    with pytest.raises(RunFolderError, match="num_seeds is 5 there and 4 here"):
        run(dataclasses.replace(PLAIN, num_seeds=4), run_dir=tmp_path)


def test_a_loss_of_the_same_name_that_is_another_now_is_trained_anew(monkeypatch):
    """Trainers are kept for the seeds of a comparison, not for the next one."""
    made = Trainings(monkeypatch)
    built = []
    make = lambda x: built.append(x) or made.make(x)  # noqa: E731
    monkeypatch.setattr("edl_jax.studies.cells.make_trainer", make)
    with mock.patch.dict(LOSSES):
        for factor in (1.0, 2.0):

            @LOSSES.register("mine")
            def mine(logits, labels, factor=factor):
                return factor * logits.sum(axis=-1)

            run(dataclasses.replace(PLAIN, losses=("cross_entropy", "mine"), num_seeds=2))
            assert [x.loss for x in built] == ["cross_entropy", "mine"] * int(factor)


def test_static_stands_for_the_losses_without_parameters_and_margins():
    names = CompareConfig(losses=("cross_entropy", "edl", "static")).loss_names()
    assert names[:2] == ("cross_entropy", "edl")
    assert len(names) == len({*names})
    assert {*LOSSES} - {*names} == {"ldam"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": ()}, "losses is"),
        ({"losses": ("edl", "edl")}, "not empty and all different"),
        ({"losses": ("hinge",)}, "loss is 'hinge'; expected one of .*, static, or a file"),
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"grid": {"train.model": ("resnet9",)}}, "model is 'resnet9'"),
        ({"grid": {"train.model": ("tiny", "tiny")}}, "different values"),
        ({"grid": {"train.model": ()}}, "at least one"),
        ({"grid": {"model": ("tiny",)}}, "no field 'model'"),
        ({"grid": {"train.loss": ("edl",)}}, "another field sets it"),
        (
            {"grid": {"train.data.label_noise": ("symmetric",), "train.data.noise_rate": (1.5,)}},
            "rate is 1",
        ),
        ({"learning_rates": (0.1,)}, "expected two or more"),
        ({"learning_rates": (0.1, -0.1)}, r"learning_rate is -0\.1"),
        (
            {"learning_rates": (0.1, 0.2), "train": DIGITS},
            r"val_examples is 0; expected",
        ),
        ({"tuning_seeds": 0}, "tuning_seeds is 0"),
        ({"split": "train"}, "split is 'train'; expected one of test, val"),
        ({"split": "val", "train": DIGITS}, r"val_examples is 0; expected"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_a_training_of_a_cell_is_the_training_itself(tmp_path):
    """Without stand-ins: a comparison's rows are what `train` gives with the same seed."""
    from edl_jax import train

    config = CompareConfig(
        losses=("cross_entropy",), num_seeds=2, train=dataclasses.replace(TRAIN, epochs=1)
    )
    study = run(config, run_dir=tmp_path)
    alone = train(dataclasses.replace(config.train, loss="cross_entropy", seed=1))
    kept = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert kept[1]["accuracy"] == study.cells[1]["accuracy"] == alone.test_accuracy
    assert kept[0]["accuracy"] != kept[1]["accuracy"]
