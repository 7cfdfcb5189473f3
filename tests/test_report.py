import base64
import json
import os
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, strategies as st

from edl_jax import cli
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.studies import report
from edl_jax.studies.report import parse_table, write_report
from edl_jax.studies.results import Column, Table

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
PNG = b"\x89PNG fake"
EVIL = '</td></table><script>alert(1)</script><img src=http://evil onerror=x>"><b>" onload=x "'
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "nav", "section", "footer", "div"),
    *("h1", "h2", "h3", "p", "a", "ol", "ul", "li", "code", "pre", "dl", "dt", "dd"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption"),
    *("details", "summary"),
}


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def make_run(path, *, text="Parity holds: `edl`."):
    path.mkdir(parents=True)
    environment = {"versions": {"jax": "0.10.2"}, "commit": None, "command": ["edl", "toy", text]}
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "config.json").write_text(json.dumps({"train": {"loss": text}}))
    return path


def make_study(path, *, text="Parity holds: `edl`.", name="lines"):
    make_run(path, text=text)
    column = Column(f"loss {text}", lambda row: row["loss"], is_number=False)
    number = Column("n", lambda row: str(row["n"]))
    table = Table("losses", text, [{"loss": text, "n": 5}], (column, number))
    (path / "losses.md").write_text(table.markdown())
    (path / f"{name}.svg").write_bytes(SVG)
    (path / f"{name}.png").write_bytes(PNG)
    index = {
        "study": "toy",
        "title": f"A toy {text}",
        "finding": f"{text}\n\nSecond.",
        "protocol": [text],
        "tables": [{"name": "losses", "title": text}],
        "figures": [{"name": name, "caption": text}],
    }
    (path / "study.json").write_text(json.dumps(index))
    return path


def change(study, **values):
    path = study / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_page_holds_everything_of_every_run_and_needs_nothing_else(tmp_path, capsys):
    first, second = make_study(tmp_path / "a"), make_run(tmp_path / "train-7")
    (second / "results.json").write_text('{"test_accuracy": 0.57716, "x/uniform": 1}')
    (second / "loss.png").write_bytes(PNG)
    out = tmp_path / "out" / "report.html"
    assert cli.main(["report", str(first), str(second), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    page = Page(out)
    assert set(page.tags) <= TAGS
    sources = [source.split(";base64,") for source in page.values("src")]
    assert [kind for kind, _ in sources] == ["data:image/svg+xml", "data:image/png"]
    assert [base64.b64decode(data) for _, data in sources] == [SVG, PNG]
    assert {x.removeprefix("#") for x in page.values("href")} == set(page.values("id"))
    assert "width=device-width, initial-scale=1" in page.values("content")
    for text in (
        "A toy Parity holds: `edl`. (a)",
        "Second.",
        "edl toy",
        "0.57716",
        "train: train-7",
    ):
        assert text in page.text
    assert "<p>Parity holds: <code>edl</code>.</p>" in out.read_text()
    assert "uniform" not in page.text
    assert not re.search(r"http|url\(|@import", out.read_text().replace("http-equiv", ""))
    once = out.read_bytes()
    write_report([first, second], out)
    assert out.read_bytes() == once


def test_what_a_run_folder_says_is_no_markup(tmp_path):
    study = make_study(tmp_path / "<b onclick=x>", text=EVIL)
    run = make_run(tmp_path / "<i>", text=EVIL)
    (run / "results.json").write_text(json.dumps({EVIL.replace("/", ""): [{EVIL: "\ud800"}]}))
    (run / f"{EVIL.replace('/', '')}.png").write_bytes(PNG)
    out = tmp_path / "report.html"
    write_report([study, run], out)
    page = Page(out)
    assert set(page.tags) <= TAGS
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert all(source.startswith("data:image/") for source in page.values("src"))
    # Title (three times), finding, protocol, both cells and captions, configuration, command.
    assert page.text.count("<script>alert(1)</script>") >= 10


def test_a_large_svg_gives_way_to_its_png(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_MAX_SVG", len(SVG) - 1)
    write_report([make_study(tmp_path / "a")], tmp_path / "report.html")
    (source,) = Page(tmp_path / "report.html").values("src")
    assert source == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@given(st.lists(st.tuples(*[st.text("a|\\ \n\r\u2028é-:", max_size=6)] * 2), max_size=3))
def test_tables_read_back_as_they_were_written(rows):
    columns = (
        Column("a|b", lambda row: row["x"], is_number=False),
        Column("n", lambda row: row["y"]),
    )
    table = Table("t", "T", [{"x": x, "y": y} for x, y in rows], columns)
    is_number, lines = parse_table(table.markdown())
    assert is_number == [False, True]
    assert lines == [["a|b", "n"], *([" ".join(cell.split()) for cell in row] for row in rows)]


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "study.json").unlink(), "holds no finished run: expected study.json"),
        (lambda run: (run / "study.json").write_text("{"), "study.json is no JSON"),
        (lambda run: (run / "study.json").write_text("[" * 100_000), "study.json is no JSON"),
        (lambda run: (run / "config.json").write_text("[]"), "config.json holds a list; expected"),
        (lambda run: (run / "environment.json").unlink(), "environment.json cannot be read"),
        (lambda run: (run / "lines.svg").unlink(), "lines.svg cannot be read"),
        (lambda run: replace_by_pipe(run / "losses.md"), "losses.md cannot be read"),
        (lambda run: (run / "losses.md").write_bytes(b"\xff"), "losses.md is no table"),
        (lambda run: (run / "losses.md").write_text("| a |\n| b | c |"), "losses.md is no table"),
        (lambda run: change(run, title=3), "title in study.json is 3; expected text"),
        (lambda run: change(run, tables={}), "tables in study.json is {}; expected a list"),
        (lambda run: change(run, figures=["x"]), "name in study.json is None; expected text"),
        (lambda run: change(run, protocol=[None]), "protocol in study.json is None"),
    ],
)
def test_a_damaged_folder_is_named_with_what_was_expected(damage, message, tmp_path, capsys):
    good, bad = make_study(tmp_path / "good"), make_study(tmp_path / "bad")
    damage(bad)
    out = tmp_path / "report.html"
    out.write_text("an earlier report")
    assert cli.main(["report", str(good), str(bad), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"edl report: {bad} ")
    assert message in error
    assert error.count("\n") == 1
    assert out.read_text() == "an earlier report"
    assert not list(tmp_path.glob(".*"))


def test_runs_one_folder_down_are_found(tmp_path):
    for name in ("second", "first"):
        make_study(tmp_path / "demo" / name, text=f"The {name} study.")
    (tmp_path / "demo" / "plots").mkdir()
    write_report([tmp_path / "demo"], tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert text.index("The first study.") < text.index("The second study.")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link", "..", "a/b"])
def test_nothing_outside_a_run_folder_is_read(name, tmp_path):
    run = make_study(tmp_path / "run")
    for ending in ("svg", "png"):
        (tmp_path / f"secret.{ending}").write_text("secret")
        (run / f"link.{ending}").symlink_to(tmp_path / f"secret.{ending}")
    change(run, figures=[{"name": name, "caption": "c"}])
    with pytest.raises(RunFolderError, match=r"is damaged: .*expected a file in the folder|read"):
        write_report([run], tmp_path / "report.html")


def test_refusals(tmp_path, capsys):
    with pytest.raises(ConfigError, match="runs is empty"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(RunFolderError, match=r"none is no folder: expected study\.json"):
        write_report([tmp_path / "none"], tmp_path / "report.html")
    (tmp_path / "out").mkdir()
    run = make_study(tmp_path / "run")
    with pytest.raises(RunFolderError, match="out could not be written"):
        write_report([run], tmp_path / "out")
    assert cli.main(["report"]) == 2
    assert "runs" in capsys.readouterr().err
    assert cli.main(["report", "--help"]) == 0


def test_paths_begin_at_home_and_are_none_that_no_file_can_have(tmp_path, monkeypatch):
    run = make_study(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_report(["~/run"], "~/page.html")
    assert (tmp_path / "page.html").exists()
    for runs, out, message in (
        ([""], tmp_path / "other.html", "the path is ''"),
        ([run], "", "the path is ''"),
        ([tmp_path / ("x" * 300)], tmp_path / "other.html", "xxx cannot be read .*too long"),
        ([run], tmp_path / ("x" * 300), "xxx could not be written"),
    ):
        with pytest.raises((ConfigError, RunFolderError), match=message):
            write_report(runs, out)
