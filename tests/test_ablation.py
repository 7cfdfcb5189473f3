import csv
import dataclasses
import json
import os
import shutil
import signal
from collections import Counter
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import Mixture, load_pretrained, pretrain
from edl_jax.errors import ConfigError, DivergedError, Preempted, RunFolderError
from edl_jax.losses import Provenance
from edl_jax.networks import Architecture
from edl_jax.runs.folder import RunFolder
from edl_jax.studies import AblateConfig, ablate
from edl_jax.studies.ablation import downstream, downstream_results, study as ablation
from edl_jax.studies.ablation.axes import AXES, Cell
from edl_jax.studies.ablation.downstream_results import downstream_tables
from edl_jax.studies.ablation.effects import FINAL, compare_cells, settings_of, times_of
from edl_jax.studies.ablation.results import ablation_results, summary_table
from edl_jax.studies.ablation.seeds import WATCHED_PAIRS, keys_of, make_seed_runs
from edl_jax.studies.ablation.study import cell_of, first_reached
from edl_jax.studies.results import StudyResults
from edl_jax.studies.statistics import Correlation
from edl_jax.training import TrainResult
from tests.test_evolution import TINY
from tests.test_training import DIGITS

SMALL = AblateConfig(
    mutations=("logistic", "gaussian"),
    num_seeds=2,
    thresholds=(0.01,),
    pretrain=dataclasses.replace(
        TINY, network="pair", class_counts=(10,), mixture=Mixture(uniform=0, sparse=0)
    ),
    downstream_losses=3,
    downstream_generations=(0, 2),
    train=dataclasses.replace(DIGITS, epochs=1, train_examples=256, val_examples=100),
)
PLANTED = AblateConfig(thresholds=(0.5,), num_seeds=20)


def stand_in(config, *, loss, dataset):
    """A trainer that takes no time; its accuracy depends on the loss."""
    value = float(loss(jnp.eye(2, 10), jnp.asarray([0, 5])).sum())

    def train(seeds, *, test, report):
        assert not test
        rows = [{"accuracy": value % 1, "evaluated_on": "val"}]
        assert (config, seeds) == (SMALL.train, [0])
        return [TrainResult(0.0, 0.0, 0.0, rows, "digits", None, None, None, None)]

    return train


def without_interval(x, y, *, method):
    """Drawing thousands of times takes long."""
    value = method(x, y).statistic
    return Correlation(value, value, value, 0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downstream, "make_trainer", stand_in)
        patch.setattr(downstream_results, "rank_correlation", without_interval)
        patch.setattr(downstream_results, "METRICS", {"pairwise_accuracy": "", "descent_rate": ""})
        return folder, ablate(SMALL, run_dir=folder)


def test_a_seed_in_a_cell_is_that_seed_alone(run):
    cell = run[1].cells[0]
    alone = pretrain(dataclasses.replace(SMALL.pretrain, seed=cell["seeds"][1]))
    for name in ("pairwise_accuracy", "kendall_tau"):
        assert cell["final"][1][name] == pytest.approx(alone.metrics[name], abs=1e-5)
    assert cell["step_sizes"][1] == pytest.approx(alone.history["step_size"][-1], rel=1e-5)
    assert len({metrics["objective"] for metrics in cell["final"]}) == 2


def test_cells_share_seeds_and_first_generation(run):
    first, second = run[1].cells
    assert (first["mutation"], second["mutation"]) == ("logistic", "gaussian")
    one, other = (np.asarray(cell["curves"]) for cell in (first, second))
    np.testing.assert_allclose(one[:, 0], other[:, 0], rtol=1e-6)  # nothing is mutated yet
    assert (one[:, -1] != other[:, -1]).all()
    assert first["generations"] == [1, 2, 3, 4, 5]
    assert first["evaluations"] == 5 * 16


def test_writes_all_its_files(run):
    folder, result = run
    index = json.loads((folder / "study.json").read_text())
    assert index["study"] == "ablate"
    assert index["finding"] == result.results.finding
    names = [table["name"] for table in index["tables"]]
    assert names == ["cells", "comparisons", "regimes", "correlations", "losses"]
    for name in names:
        rows = json.loads((folder / f"{name}.json").read_text())
        lines = (folder / f"{name}.csv").read_text().splitlines()
        assert len(list(csv.DictReader(lines))) == len(rows) > 0
        assert (folder / f"{name}.md").read_text().startswith("|")
    figures = [figure["name"] for figure in index["figures"]]
    assert figures == ["objective", "final", "downstream"]  # nobody reached 0.01
    for name in figures:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()
    assert "n = 2 pairs" in result.results.finding


def test_what_is_finished_is_never_run_again(run, tmp_path, monkeypatch):
    folder, whole = run
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "config.json").write_text((folder / "config.json").read_text())
    cells = (folder / "cells.jsonl").read_text().splitlines()
    # Stopped in the second cell, and in the second training of another time.
    (stopped / "cells.jsonl").write_text(cells[0] + "\n" + cells[1][:50])
    trainings = (folder / "downstream.jsonl").read_text().splitlines()
    (stopped / "downstream.jsonl").write_text("\n".join([trainings[0], trainings[1][:20]]))
    ran, trained = [], []
    run_cell = ablation.run_cell
    monkeypatch.setattr(
        ablation, "run_cell", lambda config, *a: ran.append(config.mutation) or run_cell(config, *a)
    )
    monkeypatch.setattr(
        downstream, "make_trainer", lambda *a, **k: trained.append(1) or stand_in(*a, **k)
    )
    monkeypatch.setattr(downstream_results, "rank_correlation", without_interval)
    monkeypatch.setattr(StudyResults, "write", lambda self, folder: None)  # drawing takes long
    resumed = ablate(SMALL, run_dir=stopped)
    assert ran == ["gaussian"]
    assert len(trained) == 2
    for cell, other in zip(resumed.cells, whole.cells, strict=True):
        for name in ("curves", "reached", "area", "final"):
            assert cell[name] == other[name]
    assert resumed.downstream == whole.downstream
    ablate(SMALL, run_dir=stopped)
    assert len(ran) == 1
    assert len(trained) == 2
    with pytest.raises(RunFolderError, match="num_seeds is 2 there and 3 here"):
        ablate(dataclasses.replace(SMALL, num_seeds=3), run_dir=stopped)


def test_sigterm_stops_an_ablation_and_what_had_ended_is_kept(run, tmp_path, monkeypatch):
    folder, _ = run
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "config.json").write_text((folder / "config.json").read_text())
    cells = folder / "cells.jsonl"

    def run_cell(config, seeds, thresholds, advanced):
        if config.mutation == "gaussian":
            os.kill(os.getpid(), signal.SIGTERM)
        advanced(1)
        return {**json.loads(cells.read_text().splitlines()[0])}

    with monkeypatch.context() as patch:
        patch.setattr(ablation, "run_cell", run_cell)
        with pytest.raises(Preempted, match="told to stop by SIGTERM"):
            ablate(SMALL, run_dir=stopped)
    assert (stopped / "cells.jsonl").read_text() == cells.read_text().splitlines(True)[0]

    loss = load_pretrained().replace(provenance=Provenance({}, {"objective": 0.5}, {}))
    trained = []

    def make_trainer(*_, **__):
        def train(seeds, *, test, report):
            trained.append(seeds)
            if len(trained) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            report({})
            return [SimpleNamespace(history=[{"accuracy": 0.5}])]

        return train

    shutil.copy(cells, stopped)
    sources = downstream.sources(SMALL)
    monkeypatch.setattr(downstream, "_losses", lambda *_: ((source, loss) for source in sources))
    monkeypatch.setattr(downstream, "make_trainer", make_trainer)
    with pytest.raises(Preempted, match="told to stop by SIGTERM"):
        ablate(SMALL, run_dir=stopped)
    (row,) = map(json.loads, (stopped / "downstream.jsonl").read_text().splitlines())
    assert (row["seed"], row["generation"]) == (sources[0].seed, sources[0].generation)


def test_the_objective_is_watched_on_as_many_pairs_whatever_the_selection_is_on():
    few = dataclasses.replace(SMALL.pretrain, pairs_per_generation=64)
    for config in (few, dataclasses.replace(few, pairs_per_generation=256)):
        watched = make_seed_runs(config, 1).init(keys_of([0])).watched
        assert watched.severities.shape == (1, WATCHED_PAIRS)


def test_losses_to_train_with_come_from_an_evolution_each(run):
    rows = run[1].downstream
    assert [(row["seed"], row["generation"]) for row in rows] == [(0, 0), (1, 2), (2, 0)]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[0]["metrics"] != rows[2]["metrics"]
    # The second is what evolves from its seed alone.
    settings = dataclasses.replace(SMALL.pretrain, seed=1, generations=2)
    runs, keys = make_seed_runs(settings, 1), keys_of([1])
    progress = runs.advance(keys, runs.init(keys), np.int32(0), np.int32(2))
    (alone,) = runs.measure(keys, runs.leaders(progress))
    assert rows[1]["metrics"]["pairwise_accuracy"] == pytest.approx(alone["pairwise_accuracy"])
    mixed = dataclasses.replace(SMALL, severities=("surprisal", "brier"), downstream_losses=6)
    found = [(x.severity, x.seed, x.generation) for x in downstream.sources(mixed)]
    assert found[1:4] == [("surprisal", 1, 2), ("brier", 2, 0), ("brier", 3, 2)]
    assert found[4] == ("surprisal", 4, 0)


def test_a_severity_whose_losses_are_all_there_is_not_evolved_again(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, severities=("surprisal", "brier"), downstream_losses=6)
    evolved = []

    def evolve(config, wanted):
        evolved.append(wanted[0].severity)
        yield from ((source, load_pretrained()) for source in wanted)

    monkeypatch.setattr(downstream, "_evolved", evolve)
    folder = RunFolder(tmp_path, {})
    found = dict(downstream._losses(config, folder))
    assert sorted(found) == sorted(downstream.sources(config))
    assert evolved == ["surprisal", "brier"]
    for missing, again in (("brier", ["brier"]), ("surprisal", ["surprisal"])):
        evolved.clear()
        next((tmp_path / "losses").glob(f"{missing}-*")).unlink()
        assert len(dict(downstream._losses(config, folder))) == 6
        assert evolved == again


def test_a_training_that_diverges_counts_as_guessing(run, tmp_path, monkeypatch):
    def make_trainer(*_, **__):
        raise DivergedError("training diverged")

    monkeypatch.setattr(downstream, "make_trainer", make_trainer)
    folder = RunFolder(tmp_path, {})
    shutil.copytree(run[0] / "losses", tmp_path / "losses")
    rows = downstream.train_downstream(SMALL, folder)
    assert [(row["accuracy"], row["diverged"]) for row in rows] == [(0.1, True)] * 3


def test_first_reached_of_planted_curves():
    assert first_reached(np.asarray([0.9, 0.5, 0.7, 0.2]), 0.5) == 2
    assert first_reached(np.asarray([0.9, 0.8]), 0.9) == 1
    assert first_reached(np.asarray([0.9, np.nan, 0.8]), 0.5) is None


def planted(config, finals, generation, *, noise=0.01, reached_by=1.0):
    """Rows of cells: final objective and generation of arrival by mutation, over paired seeds."""
    rng, rows, n = np.random.default_rng(0), [], config.num_seeds
    common = rng.normal(0, 0.05, n)  # what the seeds of all cells share
    for cell in config.cells():
        values = finals.get(cell.mutation, 0.4) + common + rng.normal(0, noise, n)
        times = rng.integers(-8, 9, n) + generation.get(cell.mutation, 60)
        arrived = np.arange(n) < reached_by * n
        rows.append(
            {
                **cell._asdict(),
                "seeds": list(range(n)),
                "generations": [1, 200],
                "curves": [[1.0, value] for value in values],
                "reached": {
                    "0.5": [int(t) if a else None for t, a in zip(times, arrived, strict=True)]
                },
                "area": (values + 0.2).tolist(),
                "final": [{"objective": value, "pairwise_accuracy": 0.9} for value in values],
                "step_sizes": [0.1] * n,
                "evaluations": 200 * cell.population_size,
                "compile_seconds": 1.0,
                "run_seconds": 2.0,
                "measure_seconds": 0.5,
            }
        )
    return rows


def verdicts(config, rows, measure=FINAL):
    cells = dict(zip(config.cells(), rows, strict=True))
    found = [row for row in compare_cells(config, cells) if row["measure"] == measure]
    return {(row["name"], row["baseline"]): row["verdict"] for row in found}


def test_planted_differences_are_found_and_told():
    rows = planted(PLANTED, {"logistic": 0.3, "arcsine": 0.3}, {"logistic": 20})
    told = verdicts(PLANTED, rows)
    assert told == {
        ("logistic", "gaussian"): "better",
        ("logistic", "arcsine"): "not told apart",
        ("logistic_gaussian", "gaussian"): "not told apart",
        ("arcsine", "gaussian"): "better",
        ("uniform", "gaussian"): "not told apart",
    }
    times = verdicts(PLANTED, rows, "evaluations to 0.5")
    assert times["logistic", "arcsine"] == "better"
    assert times["arcsine", "gaussian"] == "not told apart"
    text = ablation_results(PLANTED, rows).finding
    by_mutation = {row["mutation"]: row["final"] for row in rows}
    means = [
        np.mean([final["objective"] for final in by_mutation[name]])
        for name in ("logistic", "gaussian")
    ]
    assert f"lower than gaussian (final objective {means[0]:.4f} against {means[1]:.4f}" in text
    assert "logistic and arcsine are not told apart" in text
    assert "n = 20 pairs" in text
    assert "In area and times to the thresholds it is better in 2 of 2 tests" in text
    assert "reached 0.5 within 1,152 evaluations" in text  # 18 generations of 64
    conclusion = text[text.index("So in the final objective") :]
    assert "chaos beats Gaussian mutation, the dynamics is not shown to matter" in conclusion
    assert "the marginal matters in 1 of 2 tests" in conclusion


def test_where_nothing_was_planted_nothing_is_found():
    rows = planted(PLANTED, {}, {})
    assert set(verdicts(PLANTED, rows).values()) == {"not told apart"}
    text = ablation_results(PLANTED, rows).finding
    assert "no benefit of chaos over Gaussian mutation is shown" in text
    assert "four times in five" in text


def test_a_worse_mutation_is_called_worse():
    rows = planted(PLANTED, {"logistic": 0.5}, {})
    told = verdicts(PLANTED, rows)
    assert told["logistic", "gaussian"] == told["logistic", "arcsine"] == "worse"
    text = ablation_results(PLANTED, rows).finding
    assert "chaos is beaten by Gaussian mutation, the dynamics matters in 1 of 2 tests" in text


def test_seeds_that_never_arrive_are_censored():
    rows = planted(PLANTED, {}, {}, reached_by=0.4)
    times, reached = times_of(rows[0], 0.5)
    assert reached.sum() == 8
    assert (times[~reached] == 200 * 64).all()
    table = ablation_results(PLANTED, rows).tables[0]
    assert table.rows[0]["reached_0.5"] == "8 of 20"
    assert table.rows[0]["generations_0.5_median"] is None
    assert "not by half" in table.markdown()
    rows = planted(PLANTED, {}, {}, reached_by=0.7)
    early = [t for t in rows[0]["reached"]["0.5"] if t is not None]
    found = ablation_results(PLANTED, rows).tables[0].rows[0]
    assert found["generations_0.5_median"] == np.sort(early)[9]
    assert found["evaluations_0.5_median"] == np.sort(early)[9] * 64


def test_a_threshold_that_nobody_reached_has_no_figure_and_is_said_to_be_untested():
    config = dataclasses.replace(PLANTED, thresholds=(0.5, 0.01))
    rows = planted(PLANTED, {}, {})
    for row in rows:
        row["reached"]["0.01"] = [None] * config.num_seeds
    results = ablation_results(config, rows)
    assert [figure.name for figure in results.figures] == ["objective", "reached_0.5", "final"]
    assert "(1 of them could not be tested)" in results.finding


def test_times_of_two_sizes_are_compared_over_what_both_were_watched():
    config = AblateConfig(
        mutations=("gaussian",), population_sizes=(64, 128), thresholds=(0.5,), num_seeds=30
    )
    small, large = planted(config, {}, {})
    small["reached"]["0.5"] = [100] + [None] * 29  # generations, of 200
    large["reached"]["0.5"] = list(range(45, 60)) + [None] * 15
    rows = compare_cells(config, dict(zip(config.cells(), [small, large], strict=True)))
    (row,) = [row for row in rows if row["measure"] == "evaluations to 0.5"]
    assert row["verdict"] == "better"
    # The larger had more evaluations to fail in: those are not held against it.
    watched = 200 * 64
    times = [64 * 100] + [watched] * 29
    others = [128 * generation for generation in range(45, 60)] + [watched] * 15
    assert row["difference"] == pytest.approx(np.mean(others) - np.mean(times))


def test_what_cannot_be_tested_is_said_without_numbers():
    rows = planted(PLANTED, {}, {})
    for row in rows:
        row["final"] = [{"objective": None}] * PLANTED.num_seeds
        row["curves"][0] = [None, None]
    results = ablation_results(PLANTED, rows)
    assert "logistic against gaussian could not be tested (n = 0 pairs)" in results.finding
    assert "nan" not in results.finding
    assert results.tables[0].rows[0]["n"] == 0
    assert any("no finite objective: 160;" in sentence for sentence in results.protocol)
    drawn = results.figures[0].drawn.axes[0].lines[0].get_ydata()
    assert np.isfinite(drawn).all()  # a seed that failed is left out of the curve


def test_the_conclusion_says_in_how_many_settings():
    config = dataclasses.replace(PLANTED, severities=("surprisal", "brier"))
    rows = planted(config, {}, {})
    better = planted(config, {"logistic": 0.2}, {})
    index = config.cells().index(config.cells()[0]._replace(mutation="logistic"))
    rows[index] = better[index]
    conclusion = ablation_results(config, rows).finding.split("So in the final")[1]
    assert (
        "chaos beats Gaussian mutation in 1 of 2 tests, the dynamics matters in 1 of 4"
        in conclusion
    )


def test_selections_and_sizes_are_compared_within_a_setting():
    config = AblateConfig(
        mutations=("gaussian",),
        selections=("plus", "comma"),
        population_sizes=(64, 128),
        thresholds=(0.5,),
        num_seeds=5,
    )
    cells = dict(zip(config.cells(), planted(config, {}, {}), strict=True))
    found = [row for row in compare_cells(config, cells) if row["measure"] == FINAL]
    assert [(row["effect"], row["name"], row["setting"]) for row in found] == [
        ("selection", "comma", "gaussian, surprisal, population 64"),
        ("selection", "comma", "gaussian, surprisal, population 128"),
        ("population size", "128", "gaussian, surprisal, plus selection"),
        ("population size", "128", "gaussian, surprisal, comma selection"),
    ]
    # With one mutation the selections are the series of a panel.
    assert list(settings_of(cells)) == [f"gaussian, surprisal, population {n}" for n in (64, 128)]


def test_step_sizes_elites_and_pairs_are_compared_where_they_are_given():
    config = AblateConfig(
        mutations=("logistic", "gaussian"),
        elite_ratios=(0.25, 0.5),
        step_sizes=("success_rule", "constant"),
        std_inits=(0.1, 1.0),
        pair_numbers=(64, 1024),
        thresholds=(0.5,),
        num_seeds=5,
    )
    cells = dict(zip(config.cells(), planted(config, {}, {}), strict=True))
    assert len(cells) == 32
    last = config.config_of(config.cells()[-1])
    assert (last.elite_ratio, last.step_size, last.std_init) == (0.5, "constant", 1.0)
    assert last.pairs_per_generation == 1024
    rows = summary_table(config, cells).rows
    assert Counter(row["step_size"] for row in rows) == {"success_rule": 16, "constant": 16}
    assert {row["last_step_size"] for row in rows} == {0.1}
    found = [row for row in compare_cells(config, cells) if row["measure"] == FINAL]
    assert Counter(row["effect"] for row in found) == dict.fromkeys(
        ("chaos", "elite ratio", "step size", "std init", "pairs per generation"), 16
    )
    assert found[0]["setting"] == (
        "surprisal, plus selection, population 64, elites 0.25, step size success_rule, "
        "first step 0.1, 64 pairs"
    )
    results = ablation_results(config, list(cells.values()))
    headings = [column.heading for column in results.tables[0].columns]
    assert headings[3:8] == ["population", "elites", "step size", "first step", "pairs"]
    assert "First step size: the final objective of 1.0 against 0.1 is" in results.finding


def test_networks_layers_and_class_counts_are_compared_where_they_are_given(tmp_path):
    config = AblateConfig(
        mutations=("gaussian",),
        strategies=("ChaoticES",),
        hidden_layers=((16, 16), (8,)),
        class_count_sets=((2,), (10,)),
        thresholds=(0.5,),
        num_seeds=5,
    )
    rows = planted(config, {}, {})
    assert [cell_of(json.loads(json.dumps(row))) for row in rows] == config.cells()
    assert config.config_of(config.cells()[-1]).architecture() == Architecture(
        "pair", (8,), "silu", 10
    )
    results = ablation_results(config, rows)
    assert "Hidden layers: the final objective of 8 against 16, 16 is" in results.finding
    assert results.tables[0].rows[1]["class_counts"] == (10,)  # told, not tested
    left, right = results.figures[0].drawn.axes
    assert (
        left.get_title()
        == "gaussian, surprisal, plus selection, population 64, ChaoticES, 2 classes"
    )
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert names == ["16, 16, n = 5", "8, n = 5"]  # with one mutation, the layers are the series
    with pytest.raises(ConfigError, match=r"tuple of tuples of whole numbers.*\(\(1,\), \(2,\)\)"):
        AblateConfig(hidden_layers=(16, 16))
    strategies = dataclasses.replace(config, mutations=("logistic",), strategies=("CMA_ES",))
    assert strategies.config_of(strategies.cells()[0]).strategy == "CMA_ES"
    with pytest.raises(ConfigError, match="mutation is 'gaussian' with strategy 'CMA_ES'"):
        dataclasses.replace(config, strategies=("CMA_ES",))
    with pytest.raises(ConfigError, match="network is 'no_such'"):
        AblateConfig(networks=("no_such",))


def test_every_axis_is_a_field_of_all_that_it_names():
    assert tuple(axis.field for axis in AXES) == Cell._fields
    for axis in AXES:
        assert hasattr(PLANTED, axis.given)
        assert hasattr(PLANTED.pretrain, axis.field)


def test_correlations_of_planted_accuracies(monkeypatch):
    monkeypatch.setattr(downstream_results, "_MEASURES", {"spearman": "spearmanr"})
    rng = np.random.default_rng(0)
    good = np.sort(rng.uniform(0.4, 1, 24))
    rows = [
        {
            "severity": "surprisal",
            "seed": 0,
            "generation": 0,
            "accuracy": 0.1 + 0.8 * x,
            "diverged": False,
            "metrics": {
                "pairwise_accuracy": x,
                "descent_rate": float(rng.uniform()),
                "gradient_ratio/0.0-0.1": 2.0,
                "gradient_ratio/0.5-0.6": 0.5,
            },
        }
        for x in good
    ]
    correlations, tables = downstream_tables(rows)
    by_metric = {row["metric"]: row for row in correlations}
    assert by_metric["pairwise_accuracy"]["spearman"] == pytest.approx(1)
    assert abs(by_metric["descent_rate"]["spearman"]) < 0.5
    assert by_metric["descent_rate"]["spearman_p_holm"] > 0.05
    assert by_metric["kendall_tau"]["n"] == 0
    assert tables[1].rows[0]["gradient_deviation"] == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mutations": ("logistic", "logistic")}, "different values"),
        ({"mutations": ("no_such",)}, "mutation is 'no_such'"),
        ({"population_sizes": (1,)}, "population_size is 1"),
        ({"num_seeds": 1}, "num_seeds is 1"),
        ({"thresholds": (0.5, 1.5)}, "thresholds is"),
        ({"thresholds": (0.5, 0.50000001)}, "differ in their first six digits"),
        ({"downstream_losses": 2}, "downstream_losses is 2"),
        ({"downstream_generations": (0, 6)}, "at most the 5 generations"),
        ({"train": DIGITS}, "val_examples is 0"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_refuses_data_of_another_class_count():
    config = dataclasses.replace(
        SMALL, pretrain=dataclasses.replace(SMALL.pretrain, class_counts=(4,))
    )
    with pytest.raises(ConfigError, match=r"class_counts is \(4,\).*digits.* has 10 classes"):
        downstream.train_downstream(config)
