"""`sweep` with cells that cost nothing: what it runs, keeps and survives."""

import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest

from edl_jax import SEVERITIES, PretrainConfig, TrainConfig
from edl_jax.data.config import DataConfig
from edl_jax.errors import ConfigError, EDLError, RunFolderError
from edl_jax.runs.folder import RunFolder
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


class Cluster:
    """An executor as submitit's is: its jobs are no futures of the standard library."""

    def submit(self, function, packed):
        assert isinstance(packed, bytes)
        return Job(function, packed)


class Job:
    def __init__(self, function, packed):
        self.looks, self.result = iter((False, True)), lambda: function(packed)

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
import sys, time
from edl_jax import TrainConfig
from edl_jax.runs.folder import RunFolder
from edl_jax.runs.preemption import stop_once
from edl_jax.studies.sweep import sweep
from pathlib import Path

def slow(config):
    if config.seed >= 2:
        time.sleep(600)
    return {"x": config.seed}

stop_once()
folder = RunFolder(Path(sys.argv[1]), {})
sweep(TrainConfig(), {}, range(6), slow, sys.argv[2], folder=folder)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_loses_no_more_than_the_cells_under_way(tmp_path, number, processes):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), processes]
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    path, deadline = tmp_path / CELLS, time.monotonic() + 120
    while not (path.exists() and len(path.read_text().splitlines()) == 2):
        assert time.monotonic() < deadline
        assert begun.poll() is None, begun.stderr.read()
        time.sleep(0.1)
    os.killpg(begun.pid, number)  # as a terminal and a batch system do
    begun.communicate(timeout=60)
    assert begun.returncode != 0
    assert len(path.read_text().splitlines()) == 2


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
