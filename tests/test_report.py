import base64
import os
from html.parser import HTMLParser

import pytest

from edl_jax import cli
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.studies.report import write_report

PNG = b"\x89PNG fake"
EVIL = "<script>alert(1)</script><img src=http://evil onerror=x><b onload=x>"
PAGE = """# A toy

**Numbers**

| loss | n |
| --- | ---: |
| a\\|b | 5 |

![Two lines.](lines.png)

- Parity holds: `edl`. [a link](javascript:alert(1)) <http://evil>
"""
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "section", "ol", "ul", "li", "a", "p"),
    *("h1", "strong", "table", "thead", "tbody", "tr", "th", "td", "img", "code", "em"),
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


def make_run(path, page=PAGE):
    path.mkdir(parents=True)
    (path / "README.md").write_text(page)
    (path / "lines.png").write_bytes(PNG)
    return path


def test_a_page_holds_every_run_and_needs_nothing_else(tmp_path, capsys):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "# Another\n")]
    out = tmp_path / "out" / "report.html"
    assert cli.main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    page = Page(out)
    assert set(page.tags) <= TAGS
    (source,) = page.values("src")
    assert source == f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert page.values("alt") == ["Two lines."]
    assert {x.removeprefix("#") for x in page.values("href")} == set(page.values("id"))
    assert page.tags.count("td") == 2
    for text in ("A toy", "Another", "a|b", str(runs[0])):
        assert text in page.text
    assert "<code>edl</code>" in out.read_text()
    once = out.read_bytes()
    write_report(runs, out)
    assert out.read_bytes() == once


def test_what_a_run_folder_says_is_no_markup(tmp_path):
    run = make_run(tmp_path / "<b onclick=x>", f"# {EVIL}\n\n{EVIL}\n\n| {EVIL} |\n| --- |\n")
    write_report([run], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert set(page.tags) <= TAGS
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") == 3


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "link.png", "..", "a%2Fb", "pipe"]
)
def test_nothing_but_files_of_the_run_folder_is_read(name, tmp_path):
    run = make_run(tmp_path / "run", f"![c]({name})\n")
    (tmp_path / "secret.png").write_text("secret")
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(run / "pipe")
    out = tmp_path / "report.html"
    out.write_text("an earlier report")
    with pytest.raises(RunFolderError, match=r"cannot be read in .*run \("):
        write_report([run], out)
    assert out.read_text() == "an earlier report"


def test_refusals(tmp_path, capsys):
    with pytest.raises(ConfigError, match="runs is empty"):
        write_report([], tmp_path / "report.html")
    for runs in ("runs/mine", tmp_path, None):
        with pytest.raises(ConfigError, match=r"runs is .*; expected a tuple \(each a string\)"):
            write_report(runs, tmp_path / "report.html")
    (tmp_path / "unfinished").mkdir()
    for name in ("none", "unfinished"):
        said = rf"README.md cannot be read in .*{name} \(.*expected the run folder of a finished"
        with pytest.raises(RunFolderError, match=said):
            write_report([tmp_path / name], tmp_path / "report.html")
    (tmp_path / "out").mkdir()
    run = make_run(tmp_path / "run")
    with pytest.raises(RunFolderError, match="out could not be written"):
        write_report([run], tmp_path / "out")
    assert cli.main(["report"]) == 2
    assert "runs" in capsys.readouterr().err
    assert cli.main(["report", "--help"]) == 0


def test_paths_begin_at_home_and_are_none_that_no_file_can_have(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_report(["~/run"], "~/page.html")
    assert (tmp_path / "page.html").exists()
    for runs, out, message in (
        ([""], tmp_path / "other.html", "the path is ''"),
        ([run], "", "the path is ''"),
        ([tmp_path / ("x" * 300)], tmp_path / "other.html", "README.md cannot be read .*too long"),
        ([run], tmp_path / ("x" * 300), "xxx could not be written"),
    ):
        with pytest.raises((ConfigError, RunFolderError), match=message):
            write_report(runs, out)
