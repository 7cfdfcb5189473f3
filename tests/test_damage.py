"""Damage to a run folder: a run resumes, or says what to do; nothing is lost."""

import json
import os
import shutil
from pathlib import Path

import pytest

from edl_jax.studies.ablation.study import check_row
from edl_jax.studies.comparison.runs import check_cell
from edl_jax.studies.transferability import rows
from tests.test_resume import flip, truncate
from tests.toy_runs import STEPS, assert_refused, resumed, run, toy

__all__ = ["run", "toy"]
# Orbax leaves coroutines behind where it meets a damaged file.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


def edit(name, change):
    def damage(path):
        lines = (path / name).read_text().splitlines(keepends=True)
        (path / name).write_text("".join(change(lines)))

    return damage


def remove(name):
    return lambda path: (path / name).unlink()


def lost(number):
    return lambda lines: lines[:number] + lines[number + 1 :]


def doubled(number):
    return lambda lines: lines[: number + 1] + lines[number:]


def cut(lines):
    return [*lines[:-1], lines[-1][:3]]


LEADS_ON = {
    "nothing": (lambda path: None, 6),
    "a row is lost": (edit("metrics.jsonl", lost(3)), 2),
    "the last row is lost": (edit("metrics.jsonl", lost(5)), 4),
    "the last row is cut": (edit("metrics.jsonl", cut), 4),
    "the last row is no JSON": (edit("metrics.jsonl", lambda x: [*x[:-1], "{\n"]), 4),
    "the last row is cut and JSON": (edit("metrics.jsonl", lambda x: [*x[:-1], "{}"]), 4),
    "a row is doubled": (edit("metrics.jsonl", doubled(4)), 4),
    "rows are swapped": (edit("metrics.jsonl", lambda x: [*x[:4], x[5], x[4]]), 4),
    "a save's row is lost": (edit("saves.jsonl", lost(2)), 4),
    "a save's row is cut": (edit("saves.jsonl", cut), 4),
    "a save's row is doubled": (edit("saves.jsonl", doubled(2)), 4),
    "rows after the checkpoint": (edit("metrics.jsonl", lambda x: [*x, '{"n": 6}\n']), 6),
    "a strange folder": (lambda path: (path / "checkpoints" / "²").mkdir(), 6),
    "a strange file": (lambda path: (path / "checkpoints" / "06").write_text("x"), 6),
    "a taken name": (
        lambda path: (
            flip(path / "checkpoints/6/record/metadata"),
            (path / "damaged-checkpoint-6-0").write_text("mine"),
        ),
        4,
    ),
    "a file for a checkpoint": (
        lambda path: (
            shutil.rmtree(path / "checkpoints/6"),
            (path / "checkpoints/6").write_text(""),
        ),
        4,
    ),
    "deep JSON": (
        lambda path: (path / "checkpoints/6/record/metadata").write_text("[" * 99_999),
        4,
    ),
    "a pipe": (
        lambda path: (
            (path / "checkpoints/6/state/_METADATA").unlink(),
            os.mkfifo(path / "checkpoints/6/state/_METADATA"),
        ),
        4,
    ),
    "no environment": (remove("environment.json"), 6),
}


@pytest.mark.parametrize("what", LEADS_ON)
def test_a_damaged_run_resumes_from_the_newest_checkpoint_that_fits(run, what):
    damage, expected = LEADS_ON[what]
    damage(run)
    assert resumed(run) == expected
    assert resumed(run) == min(expected + 2, STEPS)


DEAD_ENDS = {
    "the first row is lost": (edit("metrics.jsonl", lost(0)), "n 6 but metrics of 5 ns"),
    "the first row is doubled": (edit("metrics.jsonl", doubled(0)), "n 6 but metrics of 7 ns"),
    "all rows twice": (edit("metrics.jsonl", lambda x: x + x), "n 6 but metrics of 12 ns"),
    "no rows": (remove("metrics.jsonl"), "n 6 but metrics of 0 ns"),
    "no rows of saves": (remove("saves.jsonl"), "n 6 but saves of 0 ns"),
    "an empty row": (
        edit("metrics.jsonl", lambda x: [*x[:3], "{}\n", *x[4:]]),
        r"line 4 of 6 of .* is damaged \(it has no 'n'\).*remove that line to resume",
    ),
    "the last row is empty": (
        edit("metrics.jsonl", lambda x: [*x[:-1], "{}\n"]),
        r"line 6 of 6 of .* is damaged \(it has no 'n'\)",
    ),
    "the last row of saves is no row": (
        edit("saves.jsonl", lambda x: [*x[:-1], "[5]\n"]),
        r"line 3 of 3 of .* is damaged \(it holds \[5\]\)",
    ),
    "a row without a number": (
        edit("metrics.jsonl", lambda x: [*x[:3], '{"n": "3"}\n', *x[4:]]),
        "its n is '3'",
    ),
    "a deep row": (
        edit("metrics.jsonl", lambda x: [*x[:3], "[" * 99_999 + "\n", *x[4:]]),
        "line 4 of 6 of .* is damaged",
    ),
    "a long row": (
        edit("metrics.jsonl", lambda x: [*x[:3], json.dumps("x" * 99_999) + "\n", *x[4:]]),
        "line 4 of 6 of .* is damaged",
    ),
    "rows in a pipe": (
        lambda path: ((path / "metrics.jsonl").unlink(), os.mkfifo(path / "metrics.jsonl")),
        "is a pipe, socket or device",
    ),
    "rows in a folder": (
        lambda path: ((path / "metrics.jsonl").unlink(), (path / "metrics.jsonl").mkdir()),
        "is a folder; expected a file",
    ),
    "configuration in a pipe": (
        lambda path: ((path / "config.json").unlink(), os.mkfifo(path / "config.json")),
        "is a pipe, socket or device",
    ),
    "deep configuration": (
        lambda path: (path / "config.json").write_text("[" * 99_999),
        "config.json is damaged",
    ),
    "another configuration": (
        lambda path: (path / "config.json").write_text(json.dumps({"toy": list(range(99_999))})),
        "another configuration: toy is .* there and 1 here",
    ),
    "a damaged environment": (
        lambda path: (path / "environment.json").write_text("[" * 99_999),
        "environment.json is damaged .*remove that file to resume",
    ),
    "a lock that is a pipe": (
        lambda path: ((path / ".lock").unlink(missing_ok=True), os.mkfifo(path / ".lock")),
        "is a pipe, socket or device",
    ),
    "every checkpoint is damaged": (
        lambda path: [truncate(x) for x in path.glob("checkpoints/*/record/metadata")],
        r"no checkpoint in .* can be used; that of step 6 is damaged.*left as it is.*rename",
    ),
    "no checkpoints": (
        lambda path: shutil.rmtree(path / "checkpoints"),
        r"6 rows in metrics\.jsonl but no checkpoint.*Nothing was changed.*rename",
    ),
}


@pytest.mark.parametrize("what", DEAD_ENDS)
def test_what_cannot_be_mended_is_said_and_left_as_it_is(run, what):
    damage, match = DEAD_ENDS[what]
    damage(run)
    (run / "checkpoints").mkdir(exist_ok=True)
    assert_refused(run, match)


def test_following_the_advice_to_remove_a_line_leads_on(run):
    edit("metrics.jsonl", lambda x: [*x[:4], "{}\n", *x[5:]])(run)
    assert_refused(run, "line 5 of 6 .*remove that line")
    edit("metrics.jsonl", lost(4))(run)
    assert resumed(run) == 4
    assert (run / "unused-checkpoint-6-0").is_dir()  # it is whole, and may be wanted


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=lambda f: f.__name__)
def test_a_checkpoint_whose_record_is_damaged_is_not_taken_for_another_versions(run, damage):
    record = run / "checkpoints" / "6" / "record" / "metadata"
    if damage is flip:  # a bit that leaves it JSON
        record.write_text(record.read_text().replace("float32[1000]", "float32[1001]"))
    else:
        damage(record)
    assert resumed(run) == 4
    assert (run / "damaged-checkpoint-6-0").is_dir()


CELL = {
    **{"phase": "comparison", "loss": "edl", "model": "resnet8", "dataset": "digits"},
    **{"noise_rate": 0.0, "learning_rate": 0.1, "seed": 0, "chance": 0.1, "diverged": None},
    **{"test_accuracy": 0.5, "test_nll": None, "test_calibration_error": 0.1},
    "epochs": [{"accuracy": 0.5, "evaluated_on": "test"}],
}


@pytest.mark.parametrize(
    "damage",
    [
        *({name: value} for name in ("seed", "chance") for value in (None, "0", True)),
        *({"test_nll": value} for value in ("x", [1], True)),
        *({"epochs": value} for value in (None, "x", [], [1], [{"accuracy": 0.5}])),
        {"epochs": [{"accuracy": 0.5, "evaluated_on": "x"}]},
        {"loss": ["edl"]},
    ],
)
def test_a_damaged_cell_of_a_comparison_is_refused(damage):
    check_cell(CELL)
    with pytest.raises((KeyError, TypeError, ValueError)):
        check_cell(CELL | damage)


ROW = {
    **{"mutation": "gaussian", "severity": "surprisal", "selection": "plus", "strategy": "es"},
    **{"population_size": 8, "seeds": [0, 1], "generations": [1], "curves": [[0.5], [None]]},
    **{"reached": {"0.7": [1, None]}, "area": [0.5, None], "step_sizes": [0.1, 0.1]},
    **{"final": [{"objective": 0.5}, {}], "evaluations": 8, "run_seconds": 0.1},
}


@pytest.mark.parametrize(
    "damage",
    [
        *({name: None} for name in ROW if name in ("seeds", "curves", "reached", "final")),
        *({name: ["x", 1]} for name in ("curves", "area", "step_sizes", "final")),
        {"mutation": {}},
        {"final": [{}]},
        {"reached": {"0.7": [1]}},
        {"run_seconds": 0},
    ],
)
def test_a_damaged_row_of_an_ablation_is_refused(damage):
    check_row(ROW)
    with pytest.raises((KeyError, TypeError, ValueError)):
        check_row(ROW | damage)


COMPARED = {
    **{"loss": "edl", "seed": 0, "epoch": 1, "part": "test"},
    **{"references": {"mixture": {"distance": 0.5}}, "ranking": {"pairwise_accuracy": 0.5}},
}


@pytest.mark.parametrize(
    "damage", [{"loss": {}}, *({x: y} for x in ("references", "ranking") for y in (None, {}, "x"))]
)
def test_a_damaged_comparison_of_outputs_is_refused(damage):
    rows.check_row(COMPARED)
    with pytest.raises((KeyError, TypeError, ValueError)):
        rows.check_row(COMPARED | damage)
