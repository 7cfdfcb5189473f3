"""Damage to a run folder: a run resumes, or says what to do; nothing is lost."""

import json
import os
import shutil
from pathlib import Path

import pytest

from edl_jax.runs.folder import RunFolder
from tests.test_resume import flip, truncate
from tests.toy_runs import FILES, STEPS, assert_refused, resumed, run, toy

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
    "the last row is empty": (edit("metrics.jsonl", lambda x: [*x[:-1], "{}\n"]), 4),
    "a row is doubled": (edit("metrics.jsonl", doubled(4)), 4),
    "a row is empty": (edit("metrics.jsonl", lambda x: [*x[:3], "{}\n", *x[4:]]), 2),
    "a row is another": (edit("metrics.jsonl", lambda x: [*x[:3], '{"n": 4}\n', *x[4:]]), 2),
    "a row is deep": (edit("metrics.jsonl", lambda x: [*x[:3], "[" * 99_999 + "\n", *x[4:]]), 2),
    "the last row of saves is no row": (edit("saves.jsonl", lambda x: [*x[:-1], "[5]\n"]), 4),
    "all rows twice": (edit("metrics.jsonl", lambda x: x + x), 6),
    "rows are swapped": (edit("metrics.jsonl", lambda x: [*x[:4], x[5], x[4]]), 4),
    "a save's row is lost": (edit("saves.jsonl", lost(2)), 4),
    "a save's row is cut": (edit("saves.jsonl", cut), 4),
    "a save's row is doubled": (edit("saves.jsonl", doubled(2)), 6),
    "rows after the checkpoint": (edit("metrics.jsonl", lambda x: [*x, '{"n": 6}\n']), 6),
    "a strange folder": (lambda path: (path / "checkpoints" / "²").mkdir(), 6),
    "a strange file": (lambda path: (path / "checkpoints" / "06").write_text("x"), 6),
    "a taken name": (
        lambda path: (
            flip(path / "checkpoints/6/metrics/metrics"),
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
        lambda path: (path / "checkpoints/6/metrics/metrics").write_text("[" * 99_999),
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


UNUSED = (
    r"checkpoints: no checkpoint can be used; that of step 6 is unused \(the first \d+ bytes of "
    r"metrics\.jsonl are not those that it was saved with\)\. Everything was left as it is"
)
DEAD_ENDS = {
    "the first row is lost": (edit("metrics.jsonl", lost(0)), UNUSED),
    "the first row is doubled": (edit("metrics.jsonl", doubled(0)), UNUSED),
    "every row twice": (edit("metrics.jsonl", lambda x: [y for y in x for _ in "12"]), UNUSED),
    "no rows": (remove("metrics.jsonl"), UNUSED),
    "no rows of saves": (remove("saves.jsonl"), UNUSED.replace("metrics", "saves")),
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
        lambda path: [truncate(x) for x in path.glob("checkpoints/*/metrics/metrics")],
        r"no checkpoint can be used; that of step 6 is damaged.*left as it is.*rename",
    ),
    "no checkpoints": (
        lambda path: shutil.rmtree(path / "checkpoints"),
        r"6 rows but no checkpoint.*Everything was left as it is.*rename",
    ),
}


@pytest.mark.parametrize(
    ("rows", "saves", "is_kept"), [(2, 1, False), (0, 0, False), (3, 1, True), (2, 2, True)]
)
def test_rows_of_a_first_period_without_a_checkpoint_are_of_a_kill_and_more_are_not(
    tmp_path, rows, saves, is_kept
):
    folder = RunFolder(tmp_path, {"toy": 1})
    for name, count in zip(FILES, (rows, saves), strict=True):
        folder.append_rows(({"n": n} for n in range(count)), name)
    if is_kept:
        (tmp_path / "checkpoints").mkdir()
        assert_refused(
            tmp_path, r" \d rows but no checkpoint.*Everything was left as it is.*rename"
        )
    else:
        assert resumed(tmp_path) == 0


@pytest.mark.parametrize("what", DEAD_ENDS)
def test_what_cannot_be_mended_is_said_and_left_as_it_is(run, what):
    damage, match = DEAD_ENDS[what]
    damage(run)
    (run / "checkpoints").mkdir(exist_ok=True)
    assert_refused(run, match)


def test_a_checkpoint_that_is_whole_but_not_its_rows_is_kept(run):
    edit("metrics.jsonl", lost(4))(run)
    assert resumed(run) == 4
    assert (run / "unused-checkpoint-6-0").is_dir()  # it is whole, and may be wanted


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=lambda f: f.__name__)
def test_a_checkpoint_whose_record_is_damaged_is_not_taken_for_another_versions(run, damage):
    record = run / "checkpoints" / "6" / "metrics" / "metrics"
    if damage is flip:  # a bit that leaves it JSON
        record.write_text(record.read_text().replace('"sha256": "', '"sha256": "0'))
    else:
        damage(record)
    assert resumed(run) == 4
    assert (run / "damaged-checkpoint-6-0").is_dir()
