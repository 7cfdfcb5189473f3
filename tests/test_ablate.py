"""`ablate`: what it evolves, and with made-up cells what it says about them."""

import dataclasses

import jax
import numpy as np
import pytest

from edl_jax import Mixture, PretrainConfig, RankingProblem, pretrain
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.strategies import StrategyConfig
from edl_jax.studies import AblateConfig, ablate
from edl_jax.studies.ablate import ACCURACY, MUTATION, contrasts, correlations, is_of_objective
from edl_jax.studies.cells import AREA, FINAL, GRADIENT, RANKING, Cell
from edl_jax.studies.executors import jsonable
from edl_jax.studies.tables import frame
from tests.test_evolution import TINY
from tests.test_training import DIGITS

SMALL = AblateConfig(
    grid={MUTATION: ("logistic", "gaussian")},
    num_seeds=2,
    pretrain=dataclasses.replace(
        TINY, network="pair", class_counts=(10,), mixture=Mixture(uniform=0, sparse=0)
    ),
    train=dataclasses.replace(
        DIGITS,
        epochs=1,
        data=dataclasses.replace(DIGITS.data, train_examples=256, val_examples=100),
    ),
)
PLANTED = dataclasses.replace(SMALL, num_seeds=20, grid=AblateConfig().grid)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("edl_jax.studies.statistics._RANK_RESAMPLES", 99)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation") / "run"
    return folder, ablate(SMALL, run_dir=folder, executor="1")


def test_a_cell_is_an_evolution_of_its_seed(run):
    study = run[1]
    assert [(row[MUTATION], row["seed"]) for row in study.cells] == [
        (name, seed) for name in ("logistic", "gaussian") for seed in (0, 1)
    ]
    alone = pretrain(
        dataclasses.replace(SMALL.pretrain, seed=1, strategy=StrategyConfig(mutation="gaussian"))
    )
    row = study.cells[3]
    for name in RANKING:
        assert row[name] == alone.metrics[name]
    for name in GRADIENT:
        assert row[name] == alone.metrics.get(f"10 classes: {name}")
    assert row["curve"] == alone.held_out[FINAL].tolist()
    assert row[AREA] == pytest.approx(alone.held_out[FINAL].mean())
    first, other = study.cells[0], study.cells[2]  # of one seed: the same first generation
    assert first["curve"] != other["curve"]


def test_writes_its_page_and_runs_nothing_twice(run, monkeypatch):
    folder, study = run
    page = (folder / "README.md").read_text()
    assert "| logistic | 2 |" in page
    assert "generations=5" in page
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (
        (folder / "table.csv")
        .read_text()
        .startswith("pretrain.strategy.mutation,n,violated_margins_mean")
    )
    monkeypatch.setattr(Cell, "run", None)  # would fail
    again = ablate(SMALL, run_dir=folder, executor="1")
    assert again.table.equals(study.table)
    with pytest.raises(RunFolderError, match="num_seeds is 2 there and 3 here"):
        ablate(dataclasses.replace(SMALL, num_seeds=3), run_dir=folder)


def planted(monkeypatch, config, effects, *, noise=0.01):
    """The study of made-up cells: of each value that has an effect, a shift of what is missed."""

    def made(cell):
        rng = np.random.default_rng(cell.pretrain.seed)
        shared = 0.4 + 0.05 * rng.normal()  # of a seed, in all cells
        named = {name: getattr(cell.pretrain.strategy, name) for name in ("mutation", "selection")}
        shift = sum(effects.get(value, 0.0) for value in named.values())
        own = np.random.default_rng([cell.pretrain.seed, *map(ord, "".join(named.values()))])
        value = shared + shift + noise * own.normal()
        row = {name: value for name in (*RANKING, *GRADIENT)}
        row |= {AREA: value + 0.2, "curve": [1.0, value]}
        return row | ({ACCURACY: 0.9 - value / 2} if config.downstream else {})

    monkeypatch.setattr(Cell, "run", made)
    return ablate(config, executor="1")


def verdicts(study, measure=FINAL):
    table = study.tables["Differences, paired by seed"]
    rows = table[table["measure"] == measure].to_dict("records")
    return {(row["value"], row["baseline"]): row["verdict"].split(",")[0] for row in rows}


def test_planted_differences_are_found_and_told(monkeypatch):
    study = planted(monkeypatch, PLANTED, {"logistic": -0.1, "arcsine": -0.1})
    assert verdicts(study) == {
        ("logistic", "gaussian"): "lower",
        ("logistic", "arcsine"): "no significant difference",
        ("logistic_gaussian", "gaussian"): "no significant difference",
        ("arcsine", "gaussian"): "lower",
        ("uniform", "gaussian"): "no significant difference",
    }
    assert verdicts(study, AREA) == verdicts(study)
    worse = planted(monkeypatch, PLANTED, {"logistic": 0.1})
    assert verdicts(worse)["logistic", "gaussian"] == "higher"
    assert set(verdicts(planted(monkeypatch, PLANTED, {})).values()) == {
        "no significant difference"
    }


def test_settings_are_compared_within_the_others_and_what_ranks_otherwise_is_not(monkeypatch):
    grid = {
        MUTATION: ("gaussian", "tent"),  # no contrast of ours
        "pretrain.strategy.selection": ("plus", "comma"),
        "pretrain.severity": ("surprisal", "brier"),
        "pretrain.hidden": ((4, 4), (8,)),
    }
    config = dataclasses.replace(SMALL, grid=grid, num_seeds=5)
    study = planted(monkeypatch, config, {"comma": 0.2})
    assert len(study.cells) == 2**4 * 5
    table = study.tables["Differences, paired by seed"]
    finals = table[table["measure"] == FINAL]
    assert finals["axis"].value_counts().to_dict() == {"mutation": 8, "selection": 8, "hidden": 8}
    assert set(finals[finals["axis"] == "selection"]["verdict"]) == {"higher"}
    of_layers = finals[finals["axis"] == "hidden"]
    assert set(of_layers["value"]) == {"8"}
    assert set(of_layers["baseline"]) == {"4, 4"}
    cells = frame(study.cells, list(grid))
    assert contrasts(cells, grid)["pretrain.severity"] == [("brier", "surprisal")]
    figure = study.figures["curves"][1]
    assert figure.axes[0].get_title() == "selection plus, severity surprisal, hidden 4, 4"


@pytest.mark.parametrize(
    ("axis", "asked", "failed", "expected"),
    [
        (MUTATION, ("logistic", "tent", "gaussian"), (), [("logistic", "gaussian")]),
        (
            MUTATION,
            ("chebyshev", "tent", "sine"),
            (),
            [("tent", "chebyshev"), ("sine", "chebyshev")],
        ),
        (
            MUTATION,
            ("chebyshev", "tent", "sine"),
            ("chebyshev",),
            [("tent", "chebyshev"), ("sine", "chebyshev")],
        ),
        (MUTATION, ("chebyshev", "tent", "sine"), ("tent",), [("sine", "chebyshev")]),
        ("pretrain.hidden", ((4, 4), (8,)), (), [("8", "4, 4")]),
        ("pretrain.hidden", ((4, 4), (8,)), ((4, 4),), [("8", "4, 4")]),
        ("train.width", (None, 8), (), [(8, "None")]),
    ],
)
def test_the_contrasts_of_mutations_that_are_there_are_kept_else_with_the_first_asked_for(
    axis, asked, failed, expected
):
    rows = [{"seed": 0, axis: jsonable(value)} for value in asked if value not in failed]
    assert contrasts(frame(rows, [axis]), {axis: asked}) == {axis: expected}


# Of each field of `PretrainConfig` another value, but of those that set sizes.
OTHER = {
    "class_counts": (4,),
    "mixture": Mixture(uniform=0),
    "severity": "brier",
    "margin": "constant",
    "num_opponents": 2,
    "task_weight": 1.0,
    "strategy": StrategyConfig("SNES"),
    "population_size": 8,
    "generations": 7,
    "generations_per_chunk": 7,
    "held_out_pairs": 7,
    "networks_at_a_time": 7,
    "seed": 7,
}
SIZES = ("network", "hidden", "activation", "pairs_per_generation")


def test_the_fields_of_the_objective_are_marked():
    """Those, and only those, change which pairs are drawn or which margins are asked for."""

    def program(change):
        config = PretrainConfig(class_counts=(10,), pairs_per_generation=16)
        problem = RankingProblem(dataclasses.replace(config, **change))

        def margins(key):
            severities = problem.draw(key).severities
            return problem.margin(severities, severities[::-1])

        return jax.jit(margins).lower(jax.random.key(0)).as_text()

    config = PretrainConfig(task_weight=1)  # whose `tasks` may be set
    fields = {field.name for field in dataclasses.fields(config)}
    assert fields == {*OTHER, *SIZES, "tasks"}, "add the new field to OTHER"
    plain = program({})
    for name, value in OTHER.items():
        assert is_of_objective(f"pretrain.{name}") == (program({name: value}) != plain), name
    assert is_of_objective("pretrain.mixture.uniform")
    assert not any(map(is_of_objective, ("train.width", "pretrain.strategy.mutation")))


def test_downstream_trainings_are_of_the_evolved_loss_and_correlated(monkeypatch):
    config = dataclasses.replace(
        SMALL, grid={"pretrain.generations": (1, 3), "train.width": (4, 8)}, downstream=True
    )
    trained = []

    def evolve(pretrain):  # the loss is known by what it was evolved with
        row = dict.fromkeys((*RANKING, *GRADIENT, AREA), 0.5) | {"curve": [0.5]}
        return row, pretrain.generations

    def measure(train, *, test, loss):
        assert not test
        trained.append((train.width, loss))
        return {"accuracy": 0.5, "diverged": False, "epochs": [0.5]}

    monkeypatch.setattr("edl_jax.studies.cells.evolve_once", evolve)
    monkeypatch.setattr("edl_jax.studies.cells.train_once", measure)
    ablate(config, executor="1")
    assert sorted({*trained}) == [(4, 1), (4, 3), (8, 1), (8, 3)]
    study = planted(monkeypatch, dataclasses.replace(config, num_seeds=6), {})
    table = study.tables["Rank correlations with validation accuracy"].set_index("metric")
    assert table.loc[FINAL, "spearman"] == pytest.approx(-1)
    assert table.loc[FINAL, "n"] == 24
    assert {"accuracy"} <= set(study.tables["Differences, paired by seed"]["measure"])


def test_correlations_leave_out_what_is_not_defined():
    rows = [
        {"seed": seed, ACCURACY: 0.1 * seed, **dict.fromkeys((*RANKING, *GRADIENT), float(seed))}
        for seed in range(8)
    ]
    rows[0][FINAL] = None
    table = correlations(frame(rows)).set_index("metric")
    assert table.loc[FINAL, "n"] == 7
    assert table.loc["kendall_tau", "spearman"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {MUTATION: ("logistic", "logistic")}}, "different values"),
        ({"grid": {MUTATION: ("no_such",)}}, "mutation is 'no_such'"),
        ({"grid": {"pretrain.population_size": (1,)}}, "population_size is 1"),
        ({"grid": {"pretrain.no_such": (1,)}}, "PretrainConfig has no field 'no_such'"),
        (
            {"grid": {"mutation": ("tent",)}},
            "Cell has no field 'mutation'; expected one of pretrain",
        ),
        ({"grid": {"train.width": (4,)}}, "Cell.train is {'width': 4}; expected .*None"),
        ({"grid": {"pretrain.strategy.name": ("CMA_ES",), MUTATION: ("gaussian",)}}, "CMA_ES"),
        ({"num_seeds": 1}, "num_seeds is 1"),
        ({"downstream": True, "train": DIGITS}, "val_examples is 0"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_refuses_data_of_another_class_count():
    other = dataclasses.replace(SMALL.pretrain, class_counts=(4,))
    config = dataclasses.replace(SMALL, pretrain=other, downstream=True)
    with pytest.raises(ConfigError, match=r"class_counts is \(4,\).*digits.* has 10 classes"):
        ablate(config)
