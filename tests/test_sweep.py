"""`sweep` with cells that cost nothing: what it runs, keeps and survives."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import SEVERITIES, PretrainConfig, TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.errors import ConfigError, EDLError, RunFolderError
from edl_jax.losses import LOSSES
from edl_jax.runs.folder import RunFolder
from edl_jax.studies import cells, executors
from edl_jax.studies.ablate import AblateConfig
from edl_jax.studies.executors import open_executor
from edl_jax.studies.sweep import CELLS, Grid, points, sweep, with_fields

BASE = TrainConfig(data=DataConfig(name="digits"))
GRID = {"batch_size": (8, 16), "augmentation.cutout": (0, 2)}


def product(config):
    return {"product": config.batch_size * (1 + config.seed), "cutout": config.augmentation.cutout}


def in_order(rows):
    return [(r["batch_size"], r["augmentation.cutout"], r["seed"], r["product"]) for r in rows]


EXPECTED = [
    (size, cutout, seed, size * (1 + seed))
    for size, cutout, seed in itertools.product((8, 16), (0, 2), (3, 4))
]


def test_every_combination_and_seed_is_a_row_in_order():
    rows = sweep(BASE, GRID, (3, 4), product, "1")
    assert in_order(rows) == EXPECTED
    assert [row["cutout"] for row in rows] == [cutout for _, cutout, _, _ in EXPECTED]
    some = sweep(BASE, points(GRID)[1:3], (3,), product, "1")
    assert in_order(some) == [EXPECTED[2], EXPECTED[4]]
    assert [row["seed"] for row in sweep(BASE, {}, (1, 2), product, "1")] == [1, 2]


def test_any_executor_gives_the_same_rows():
    with ThreadPoolExecutor(2) as pool:
        assert in_order(sweep(BASE, GRID, (3, 4), product, pool)) == EXPECTED
    assert in_order(sweep(BASE, GRID, (3, 4), product, Cluster())) == EXPECTED


def test_sweeps_of_other_bases_share_a_folder(tmp_path):
    folder, other = RunFolder(tmp_path, {}), dataclasses.replace(BASE, batch_size=5)
    for base in (BASE, other, BASE):
        (row,) = sweep(base, {"augmentation.cutout": (0,)}, (3,), product, "1", folder=folder)
        assert row["product"] == 4 * base.batch_size
    assert len((tmp_path / CELLS).read_text().splitlines()) == 2


def test_values_may_be_numpy_s():
    rows = sweep(BASE, {"batch_size": np.array([8, 16])}, np.arange(3, 5), product, "1")
    assert [(row["batch_size"], row["seed"], row["product"]) for row in rows] == [
        (8, 3, 32),
        (8, 4, 40),
        (16, 3, 64),
        (16, 4, 80),
    ]


@dataclasses.dataclass(frozen=True)
class Own:
    """A configuration of a user's own, whose fields hold anything."""

    seed: int = 0
    k: Any = 1


@dataclasses.dataclass(frozen=True)
class Later(Own):
    """What `Own` is in a later version."""

    added: Any = None


Later.__qualname__ = "Own"


@pytest.mark.parametrize(
    ("before", "after", "runs"),
    [
        (BASE, dataclasses.replace(BASE, data=DataConfig("digits", data_dir="/elsewhere")), 0),
        (BASE, dataclasses.replace(BASE, data=DataConfig("digits", split_seed=1)), 1),
        (BASE, dataclasses.replace(BASE, epochs=BASE.epochs + 1), 1),
        (Own(), Later(), 0),
        (Own(), Later(added={"x": 1}), 1),
        (Own(k=BASE), Later(k=dataclasses.replace(BASE, data=DataConfig("digits", "/there"))), 0),
        (Own(k=BASE), Own(k=None), 1),
    ],
)
def test_a_cell_is_known_by_what_its_run_folder_is_known_by(before, after, runs, tmp_path):
    """Not by where data lies, nor by fields that are at their defaults, which there may be more."""
    folder, ran = RunFolder(tmp_path, {}), []
    run = lambda config: ran.append(config) or {}  # noqa: E731
    for base in (before, after):
        sweep(base, {}, (3,), run, "1", folder=folder)
    assert len(ran) == 1 + runs


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base": {"k": 1}}, r"base is {'k': 1}; expected a dataclass, such as TrainConfig\(\)"),
        ({"base": Own}, "base is <class .*Own'>; expected a dataclass"),
        ({"grid": None}, "grid is None; expected values by field, such as"),
        ({"grid": {"k": 1}}, "grid is {'k': 1}; expected values by field, such as"),
        ({"grid": ["k"]}, r"grid is \['k'\]; expected values by field, such as .* list of such"),
        ({"grid": {"seed": (1, 2)}}, "'seed' is in the grid; expected its values as `seeds`"),
        ({"grid": [{}, {"seed": 1}]}, "'seed' is in the grid"),
        ({"grid": {"k": (2, 2)}}, r"two cells are Own\(k=2, seed=0\); expected each once"),
        ({"grid": {"k": (lambda: 1, lambda: 2)}}, "functions that differ under different names"),
        ({"base": BASE, "grid": {"learning_rate": (1, 1.0)}}, r"two cells are TrainConfig\("),
        ({"seeds": 3}, r"seeds is 3; expected whole numbers, such as range\(5\)"),
        ({"seeds": ("a",)}, r"seeds is \('a',\); expected whole numbers"),
        ({"seeds": (0, 0)}, r"two cells are Own\(k=1, seed=0\); expected each once"),
        ({"folder": "runs/mine"}, "folder is 'runs/mine'; expected an open RunFolder, or None"),
        ({"executor": True}, "executor is True; expected a number of processes, such as 4"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_before_anything_runs(wrong, message):
    ran = []
    given = {"base": Own(), "grid": {}, "seeds": (0,), "run": ran.append, "executor": 1}
    with pytest.raises(ConfigError, match=message):
        sweep(**{**given, **wrong})
    assert not ran


def test_measures_are_kept_as_json_data_and_columns_are_told_by_text(tmp_path):
    """Whatever holds a number or nothing, as deep as it is; a value that is no data by its name."""

    def measuring(config):
        return {
            "value": jnp.float32(config.k(0.0)),
            "curve": [float("nan"), {"deep": np.float32("inf")}],
            "array": jnp.arange(2),
            "k": "cos" if config.k is math.cos else "sin",  # what the row says already
        }

    folder = RunFolder(tmp_path, {})
    run = functools.partial(sweep, Own(), {"k": (math.sin, math.cos)}, (0,), measuring, "1")
    rows = run(folder=folder)
    assert [(row["k"], row["value"]) for row in rows] == [("sin", 0.0), ("cos", 1.0)]
    assert rows[0]["curve"] == [None, {"deep": None}]
    assert rows[0]["array"] == [0, 1]
    lines = (tmp_path / CELLS).read_text().splitlines()
    refused = mock.Mock(side_effect=AssertionError)
    assert [json.loads(line, parse_constant=refused) for line in lines] == rows
    assert run(folder=folder) == rows


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "run gave None .*; expected a dictionary of JSON data, as {'accuracy': 0.9}"),
        (0.5, "run gave 0.5 .*; expected a dictionary of JSON data"),
        ({"x": object}, "Object of type type is not JSON serializable.*; expected a dictionary"),
        ({"x": Path("a")}, "PosixPath is not JSON serializable"),
        ({"error": 0.1}, "run gave 'error', a column of sweep's own; expected another name"),
        ({"key": 3}, "run gave 'key', a column of sweep's own"),
        ({"x": 1, "seed": 9}, "run gave 'seed', a column of sweep's own"),
        ({"k": 3}, "run gave 'k', a column of sweep's own"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_a_cell_that_gives_what_cannot_be_kept_has_failed_and_the_others_go_on(
    given, message, tmp_path
):
    def giving(config):
        if config.k == 2:
            return {"x": 1}
        if isinstance(given, SystemExit):
            raise given
        return given

    folder = RunFolder(tmp_path, {})
    for _ in range(2):  # the folder can be resumed
        first, second = sweep(Own(), {"k": (1, 2)}, (0,), giving, "1", folder=folder)
        with pytest.raises(EDLError, match=message):
            raise EDLError(first["error"])
        assert (first["k"], first["seed"], second["x"]) == (1, 0, 1)


class Counting(ThreadPoolExecutor):
    """Counts the cells that wait or run, and keeps what they were sent."""

    def __init__(self):
        super().__init__(2)
        self.under_way, self.sent = [], []

    def submit(self, function, /, *packed):
        future = super().submit(function, *packed)
        self.sent.append((future, packed))
        self.under_way.append(sum(not each.done() for each, _ in self.sent))
        return future


def test_few_cells_wait_at_a_time_and_run_is_packed_once():
    """All that `run` refers to would be held, and sent, for each cell that waits."""
    images = np.zeros(100_000, np.uint8)

    def slow(config):
        time.sleep(0.01)
        return {"x": int(images[config.seed])}

    with Counting() as pool:
        assert len(sweep(Own(), {}, range(20), slow, pool)) == 20
    assert max(pool.under_way) == 4
    big = [part for _, packed in pool.sent for part in packed if len(part) > images.nbytes]
    assert len(big) == 20
    assert len({id(part) for part in big}) == 1


class Cluster:
    """An executor as submitit's is: its jobs are no futures of the standard library."""

    def submit(self, function, *packed):
        assert all(isinstance(part, bytes) for part in packed)
        return Job(function, *packed)


class Job:
    def __init__(self, function, *packed):
        self.looks, self.result = iter((False, True)), lambda: function(*packed)

    def done(self):
        return next(self.looks)

    def cancel(self):
        raise AssertionError("it ended")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"no_such": (1,)}, "TrainConfig has no field 'no_such'; expected one of loss, data,"),
        ({"augmentation.no_such": (1,)}, "Augmentation has no field 'no_such'"),
        ({"epochs.deep": (1,)}, "TrainConfig.epochs is {'deep': 1}; expected a whole number"),
        ({"epochs": (1, 0)}, "TrainConfig.epochs is 0"),
        ({"augmentation.cutout": (-1,)}, "cutout is -1"),
        ({"data": (1,), "data.name": ("digits",)}, "values are of data, data.name, seed; expected"),
    ],
)
def test_a_field_that_is_none_or_cannot_be_is_refused_before_anything_runs(values, message):
    ran = []
    with pytest.raises(ConfigError, match=message):
        sweep(BASE, values, (0,), lambda config: ran.append(config) or {}, "1")
    assert not ran


@pytest.mark.parametrize("field", [x.name for x in dataclasses.fields(PretrainConfig)])
def test_every_field_of_the_evolution_can_be_an_axis_of_an_ablation(field):
    """A new field needs no code: its own value is one that it can have."""
    base = AblateConfig().pretrain
    if field == "seed":
        with pytest.raises(ConfigError, match="another field sets it"):
            AblateConfig(grid={"pretrain.seed": (1, 2)})
        return
    config = AblateConfig(grid={f"pretrain.{field}": (getattr(base, field),)})
    (point,) = points(config.grid)
    assert with_fields(config.base(), point) == config.base()


def test_a_grid_on_the_command_line_is_the_one_in_a_file():
    (spec,) = Grid.__metadata__
    grid = {
        "train.loss": ("edl", "poly(epsilon=1,alpha=2.5)"),
        "pretrain.hidden": ((16, 16), (64,)),
        "train.width": (8, None),
        "pretrain.strategy.std_init": (0.1, 1),
        "pretrain.use_crossover": (True, False),
        "train.optimizer.options": ({"momentum": 0.9, "nesterov": True}, None),
    }
    words = spec.str_from_instance(grid)
    assert words[:2] == [
        "train.loss=edl,poly(epsilon=1,alpha=2.5)",
        "pretrain.hidden=[16, 16],[64]",
    ]
    assert json.loads(json.dumps(spec.instance_from_str(words))) == json.loads(json.dumps(grid))
    for wrong in ("train.loss", "=", "train.loss="):
        with pytest.raises(ValueError, match="FIELD=VALUE"):
            spec.instance_from_str([wrong])
    with pytest.raises(ValueError, match=r"train\.width is given twice"):
        spec.instance_from_str(["train.width=4", "train.width=8"])


def test_what_is_registered_anew_counts_in_a_process_that_served_before():
    """In this one: what it kept for the old code is dropped, and only where something changed."""
    name = "registered_for_this_test"

    def packed(value):
        own = [
            {name: lambda c, x=value: x} if table is LOSSES else {} for table in executors._TABLES
        ]
        return executors._packed(*own)

    def kept_after(parts):
        cells.kept(lambda made: object(), pickle.dumps(0), "its identity")
        run, cell = executors._packed(lambda config: {}), executors._packed(0, {})
        assert executors._attempt_packed(run, parts, cell) == {}
        return cells.kept.cache_info().currsize

    cells.kept.cache_clear()
    executors._register.cache_clear()
    first, second = packed(1), packed(2)
    try:
        assert (kept_after(first), LOSSES[name](None)) == (0, 1)
        assert kept_after(first) == 1
        assert (kept_after(second), LOSSES[name](None)) == (0, 2)
    finally:
        del LOSSES[name]


def test_a_cell_that_fails_is_told_the_others_go_on_and_it_is_tried_again(tmp_path):
    folder, ran, broken = RunFolder(tmp_path, {}), [], [True]

    def failing(config):
        ran.append(config.batch_size)
        if config.batch_size == 8 and broken:
            raise ValueError("no eights")
        return {"x": 1.0}

    run = functools.partial(sweep, BASE, {"batch_size": (8, 16)}, (0,), failing, "1", folder=folder)
    first, second = run()
    assert first["error"] == "ValueError: no eights"
    assert "x" not in first
    assert second["x"] == 1.0
    assert "no eights" in (tmp_path / CELLS).read_text()
    broken.clear()
    assert [row["x"] for row in run()] == [1.0, 1.0]
    assert ran == [8, 16, 8]
    run()
    assert ran == [8, 16, 8]
    with pytest.raises(EDLError, match="all 1 cells failed, the first with ZeroDivisionError"):
        sweep(BASE, {}, (0,), lambda config: {"x": 1 / 0}, "1")


class Stop(BaseException):
    """What Ctrl-C is: no failure of a cell."""


@pytest.mark.parametrize("stop_after", [1, 5])
def test_what_had_ended_is_kept_and_never_run_again(tmp_path, stop_after):
    ran = []

    def stopping(config):
        if len(ran) == stop_after:
            raise Stop
        ran.append((config.batch_size, config.augmentation.cutout, config.seed))
        return product(config)

    folder = RunFolder(tmp_path, {})
    with pytest.raises(Stop):
        sweep(BASE, GRID, (3, 4), stopping, "1", folder=folder)
    path = tmp_path / CELLS
    assert len(path.read_text().splitlines()) == stop_after
    path.write_text(path.read_text() + '{"key": "[{')  # cut short by a kill
    again = []

    def recording(config):
        again.append((config.batch_size, config.augmentation.cutout, config.seed))
        return product(config)

    assert in_order(sweep(BASE, GRID, (3, 4), recording, "1", folder=folder)) == EXPECTED
    assert len(again) == 8 - stop_after
    assert not {*ran} & {*again}
    assert len({json.loads(line)["key"] for line in path.read_text().splitlines()}) == 8


@pytest.mark.parametrize(
    "damage",
    ['{"seed": 0, "x": 1}', '{"key": "k", "seed": "0"}', '{"key": 3, "seed": 0, "x": 1}', "{}"],
)
def test_a_damaged_cell_is_refused_in_words(tmp_path, damage):
    folder = RunFolder(tmp_path, {})
    whole = '{"key": "k", "seed": 0, "x": null}\n'
    (tmp_path / CELLS).write_text(f"{damage}\n{whole}")
    with pytest.raises(RunFolderError, match=r"line 1 of 2 of .*cells\.jsonl is damaged"):
        sweep(BASE, {}, (0,), lambda _: {"x": 1.0}, "1", folder=folder)


def test_an_executor_that_is_none_is_refused():
    for wrong in ("0", "-1", "many", "dask:host"):
        with (
            pytest.raises(ConfigError, match=f"executor is {wrong!r}; expected a number"),
            open_executor(wrong),
        ):
            pass


@pytest.mark.slow
def test_processes_have_one_thread_and_the_parts_of_this_one(tmp_path):
    """What a script registers, and functions of its own, reach the other processes."""

    def looking(config):
        value = float(SEVERITIES["mine"](3.0, 0))
        return {"pid": os.getpid(), "value": value, "threads": os.environ["NPROC"]}

    with mock.patch.dict(SEVERITIES):
        SEVERITIES.register("mine")(lambda log_p, labels: log_p * 7)
        rows = sweep(BASE, {"batch_size": (8, 16, 32)}, (0,), looking, "2")
    assert os.getpid() not in {row["pid"] for row in rows}
    assert {(row["value"], row["threads"]) for row in rows} == {(21.0, "1")}


@pytest.mark.slow
def test_a_process_that_dies_ends_the_sweep_and_what_had_ended_is_kept(tmp_path):
    def dying(config):
        if config.batch_size == 16:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": 1}

    folder = RunFolder(tmp_path, {})
    with pytest.raises(EDLError, match=r"a process that ran cells is gone .*resumes from there"):
        sweep(BASE, {"batch_size": (8, 16)}, (0,), dying, "2", folder=folder)
    assert sweep(BASE, {"batch_size": (8,)}, (0,), lambda _: 1 / 0, "1", folder=folder)


SCRIPT = """
import os, sys, time
from tqdm import tqdm
from edl_jax import TrainConfig
from edl_jax.runs.folder import RunFolder
from edl_jax.runs.preemption import stop_once
from edl_jax.studies.sweep import sweep
from pathlib import Path

def slow(config):
    tqdm.get_lock()
    if config.seed >= 2:
        (Path(sys.argv[1]) / f"pid_{os.getpid()}").touch()
        time.sleep(600)
    return {"x": config.seed}

stop_once()
folder = RunFolder(Path(sys.argv[1]), {})
seeds = range(int(sys.argv[3]))
sweep(TrainConfig(), {}, seeds, slow, sys.argv[2], folder=folder)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_loses_no_more_than_the_cells_under_way(tmp_path, number, processes):
    """Nor does it leave processes behind; those told to end do so without a word of others."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), processes, "20"]
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    path, deadline = tmp_path / CELLS, time.monotonic() + 120
    while not (path.exists() and len(path.read_text().splitlines()) == 2) or (
        len([*tmp_path.glob("pid_*")]) < int(processes)
    ):
        assert time.monotonic() < deadline
        assert begun.poll() is None, begun.stderr.read()
        time.sleep(0.1)
    if number == signal.SIGKILL:  # as for lack of memory
        begun.kill()
    else:
        os.killpg(begun.pid, number)  # as a terminal and a batch system do
    try:
        _, error = begun.communicate(timeout=30)  # until the last process that holds stderr ends
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(begun.pid, signal.SIGKILL)
    assert begun.returncode not in (0, -signal.SIGTERM, -signal.SIGHUP)  # in order
    if number != signal.SIGKILL:  # after which loky cleans up, and says so
        assert b"manager thread" not in error
        assert b"leaked" not in error
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_sweep_in_processes_that_succeeds_says_nothing(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "2", "2"]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""


@pytest.mark.slow
def test_a_dask_worker_that_is_killed_costs_no_cell_and_doubles_none(tmp_path):
    pytest.importorskip("distributed")
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler += ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler += ["--scheduler-file", str(tmp_path / "scheduler.json")]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1"]
    worker += ["--scheduler-file", str(tmp_path / "scheduler.json"), "--no-nanny"]
    worker += ["--local-directory", str(tmp_path)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun = [subprocess.Popen(scheduler, **quiet)]
    pids = tmp_path / "pids"
    pids.mkdir()

    def working(config):
        (pids / str(os.getpid())).touch()
        time.sleep(0.5)
        return {"x": config.seed}

    try:
        begun += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        deadline = time.monotonic() + 120
        while not (tmp_path / "scheduler.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        folder = RunFolder(tmp_path / "run", {})
        with ThreadPoolExecutor(1) as pool:
            where = f"dask://{address.removeprefix('tcp://')}"
            rows = pool.submit(sweep, BASE, {}, range(20), working, where, folder=folder)
            while len(list(pids.iterdir())) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            begun[1].kill()
            found = rows.result(timeout=180)
        assert [row["x"] for row in found] == list(range(20))
        kept = [json.loads(line) for line in (tmp_path / "run" / CELLS).read_text().splitlines()]
        assert sorted(row["seed"] for row in kept) == list(range(20))
        assert not any("error" in row for row in kept)
    finally:
        for process in reversed(begun):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_told():
    pytest.importorskip("distributed")
    with (
        pytest.raises(EDLError, match=r"no Dask scheduler at 127\.0\.0\.1:9 "),
        open_executor("dask://127.0.0.1:9"),
    ):
        pass
