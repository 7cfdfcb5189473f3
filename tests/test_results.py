import csv
import dataclasses
import errno
import io
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from edl_jax.errors import RunFolderError
from edl_jax.runs.folder import RunFolder, default_run_dir
from edl_jax.studies.figures import save, styles, subplots
from edl_jax.studies.results import (
    STUDY,
    Column,
    Figure,
    StudyResults,
    Table,
    interval,
    mean_and_deviation,
    number,
    p_value,
)
from tests.event_files import shown

ROWS = [
    {"loss": "a|b", "n": np.int64(5), "mean": 57.7219, "sd": np.float32(0.5), "best": True},
    {"loss": "c\nd", "n": 1, "mean": -0.5, "sd": math.nan, "best": np.bool_(False)},
    {"loss": "e", "n": 0, "mean": None, "sd": None, "best": None},
    {"loss": "f", "n": 2, "mean": np.float64(3), "sd": math.inf, "best": None},
]
COLUMNS = (
    Column("loss", lambda row: row["loss"], is_number=False),
    Column("n", number("n", "d")),
    Column("accuracy, %", mean_and_deviation("mean", "sd")),
)
TABLE = Table("losses", "Accuracy", ROWS, COLUMNS)


def draw():
    figure, ((axis,),) = subplots()
    for style, end in zip(styles(), (1, 3), strict=False):
        axis.plot([0, end], color=style.color, ls=style.dash, marker=style.marker, label=f"{end}")
    axis.legend()
    return figure


def results(figures=()):
    return StudyResults("toy", "A toy", "Nothing was found.", ["No data."], [TABLE], figures)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "toy", {"toy": 1})
    results([Figure("lines", "Two lines.", draw())]).write(folder)
    return folder.path


def test_markdown():
    assert TABLE.markdown() == (
        "| loss | n | accuracy, % |\n"
        "| --- | ---: | ---: |\n"
        "| a\\|b | 5 | 57.72 ± 0.50 |\n"
        "| c d | 1 | -0.50 |\n"
        "| e | 0 | — |\n"
        "| f | 2 | 3.00 ± inf |\n"
    )


def test_a_page_shows_its_figures_before_the_longer_tables():
    figure = Figure("drift", "What drifts.", None)
    second = dataclasses.replace(TABLE, name="long", title="Long")
    page = StudyResults("toy", "A toy", "Found.", ["Done."], [TABLE, second], [figure]).markdown()
    places = [page.index(text) for text in (f"**{TABLE.title}**", "What drifts.", "**Long**")]
    assert places == sorted(places)


def test_csv_and_json_hold_the_same_values():
    from_json = json.loads(TABLE.json(), parse_constant=pytest.fail)
    from_csv = list(csv.DictReader(io.StringIO(TABLE.csv())))
    expected = [row | {"n": int(row["n"])} for row in ROWS]
    expected[1]["sd"], expected[3]["sd"], expected[0]["best"] = None, None, True
    assert from_json == expected
    for row, text in zip(from_json, from_csv, strict=True):
        known = {k: str(v) for k, v in row.items() if v is not None}
        assert known == {k: v for k, v in text.items() if v not in ("", "inf")}
    assert from_csv[3]["sd"] == "inf"  # CSV can say what JSON cannot
    assert Table("none", "No rows", [], COLUMNS).markdown().count("\n") == 2
    assert json.loads(Table("none", "No rows", [], COLUMNS).json()) == []


def test_cells():
    row = {"x": 12.345, "low": -1.0, "high": 2.5, "none": math.nan, "p": 0.0004, "q": 0.0312}
    assert number("x", "+.1f")(row) == "+12.3"
    assert mean_and_deviation("x", "high", "+.2f")(row) == "+12.35 ± 2.50"
    assert mean_and_deviation("x", "none")(row) == "12.35"
    assert interval("low", "high")(row) == "-1.00 to +2.50"
    assert (p_value("p")(row), p_value("q")(row)) == ("< 0.001", "0.031")
    absent = [
        number("none"),
        mean_and_deviation("none", "x"),
        interval("none", "x"),
        interval("x", "none"),
        p_value("none"),
    ]
    assert {cell(row) for cell in absent} == {"—"}


def test_the_folder_holds_what_study_json_names(written):
    index = json.loads((written / STUDY).read_text())
    assert (index["study"], index["title"], index["protocol"]) == ("toy", "A toy", ["No data."])
    names = [f"{t['name']}.{end}" for t in index["tables"] for end in ("md", "csv", "json")]
    names += [f"{f['name']}.{end}" for f in index["figures"] for end in ("svg", "png")]
    assert len(names) == 5
    assert all((written / name).stat().st_size for name in names)
    assert (written / "losses.md").read_text() == TABLE.markdown()
    page = (written / "README.md").read_text()
    for part in ("# A toy", "Nothing was found.", TABLE.markdown(), "(lines.svg)", "- No data."):
        assert part in page
    assert (written / "lines.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_shows_finding_tables_figures_and_configuration(written):
    found = shown(written)
    assert found[0, "finding/text_summary"] == "Nothing was found."
    assert found[0, "tables/losses/text_summary"] == TABLE.markdown()
    assert found[0, "lines"] == (written / "lines.png").read_bytes()
    assert json.loads(found[0, "config/text_summary"].strip("`")) == {"toy": 1}


def test_the_same_figure_gives_the_same_bytes(written, tmp_path):
    again, anew = tmp_path / "again", tmp_path / "anew"
    figure = draw()
    for path in (again / "lines.svg", anew / "lines.svg"):
        save(figure, path)
        assert path.read_bytes() == (written / "lines.svg").read_bytes()


def test_study_json_is_not_there_unless_all_else_is(tmp_path):
    folder = RunFolder(tmp_path / "toy", {})
    (folder.path / "lines.png").mkdir()  # so that no file of this name can be written
    with pytest.raises(RunFolderError, match=r"lines\.png could not be written in .*toy"):
        results([Figure("lines", "Two lines.", draw())]).write(folder)
    assert (folder.path / "losses.csv").exists()
    assert not (folder.path / STUDY).exists()
    assert not list(folder.path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    folder = RunFolder(tmp_path / "toy", {})
    for file in folder.path.iterdir():
        file.unlink()
    folder.path.rmdir()
    folder.path.write_text("in the way")
    with pytest.raises(RunFolderError, match=r"losses\.md could not be written in .*toy"):
        results().write(folder)


def test_styles_differ_by_colour_dash_and_marker():
    looks = list(itertools.islice(styles(), 77))
    assert len({(s.color, str(s.dash), s.marker) for s in looks}) == 77
    for a, b in itertools.pairwise(looks):
        assert a.color != b.color
        assert a.dash != b.dash
        assert a.marker != b.marker


def test_runs_begun_together_have_folders_of_their_own():
    one, other = default_run_dir("train"), default_run_dir("train")
    assert one != other
    assert re.fullmatch(r"train-\d{8}-\d{6}-\d{6}", one.name)


def test_a_damaged_row_is_named_and_nothing_is_lost(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.append_rows([{"n": n} for n in range(4)])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # cut short by a kill
    assert folder.read_rows() == [{"n": 0}, {"n": 1}, {"n": 2}]
    for damage in (b'{"n": ', b"\xff\xff", b"3"):
        damaged = whole.replace(b'{"n": 1}', damage)
        path.write_bytes(damaged)
        for read in (folder.read_rows, folder.resume_rows):
            with pytest.raises(RunFolderError, match=r"line 2 of 4 of .*metrics\.jsonl is damaged"):
                read()
        assert path.read_bytes() == damaged
    path.write_bytes(whole.replace(b'{"n": 1}\n', b""))  # as the message says
    assert folder.resume_rows() == [{"n": 0}, {"n": 2}, {"n": 3}]


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})
    folder.append_rows([{"n": 0}])

    def refuse(path):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        for read in (lambda: RunFolder(tmp_path, {}), folder.read_rows, folder.resume_rows):
            with pytest.raises(RunFolderError, match=r"cannot be read .*Too many.*left as it is"):
                read()
    assert folder.read_rows() == [{"n": 0}]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"config\.json is damaged .*remove the run folder"):
        RunFolder(tmp_path, {})
