import ast
import dataclasses
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edl_jax import Mixture, PretrainConfig, TrainConfig, cli
from edl_jax.__main__ import main
from edl_jax.errors import ConfigError, RunFolderError
from edl_jax.studies import (
    AblateConfig,
    CompareConfig,
    DemoConfig,
    InspectConfig,
    TransferConfig,
)
from edl_jax.studies.results import Column, StudyResults, Table
from tests.event_files import shown
from tests.test_training import DIGITS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_and_their_headers_tell_command_time_and_result(path):
    kind = {
        "ablate": AblateConfig,
        "compare": CompareConfig,
        "pretrain": PretrainConfig,
        "train": TrainConfig,
        "transfer": TransferConfig,
    }
    header = path.read_text()
    command = re.search(rf"edl (\w+) --config configs/{path.name}", header)
    assert command
    assert cli.load_config(path, kind[command[1]])
    for word in ("Command:", "Time:", "Result:"):
        assert word in header


def test_pretrain_from_a_config_file_with_overrides(tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text("from tests.test_evolution import TINY\ndef get_config(): return TINY\n")
    run_dir = tmp_path / "run"
    arguments = ["--config", str(config), "--generations", "3", "--run-dir", str(run_dir)]
    assert cli.main(["pretrain", *arguments]) == 0
    assert "pairwise_accuracy" in capsys.readouterr().out
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 3
    assert (run_dir / "loss.safetensors").exists()
    images = {tag: value for (_, tag), value in shown(run_dir).items() if isinstance(value, bytes)}
    assert images.keys() == {"evolution", "loss", "surface"}
    assert all(value.startswith(b"\x89PNG") for value in images.values())


def test_train_and_compare_on_digits(tmp_path, capsys):
    small = ["dataset", "digits", "model", DIGITS.model, "epochs", "1", "train-examples", "256"]
    flags = [f"--{x}" if i % 2 == 0 else x for i, x in enumerate(small)]
    assert cli.main(["train", *flags, "--run-dir", str(tmp_path / "train")]) == 0
    assert "Test accuracy after the last epoch" in capsys.readouterr().out
    for name in ("surface", "training"):
        assert shown(tmp_path / "train")[0, name].startswith(b"\x89PNG")
    flags = [f"--train.{x}" if i % 2 == 0 else x for i, x in enumerate(small)]
    run_dir = tmp_path / "compare"
    assert cli.main(["compare", "--num-seeds", "1", *flags, "--run-dir", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^edl +1 +\d+\.\d\d", out, re.MULTILINE)
    for part in ("Exclusions: none", "No test is defined for edl"):
        assert part in " ".join(out.split())
    assert (run_dir / "accuracy.png").exists()
    assert (run_dir / "differences.svg").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\ndef get_config(:", r"config\.py cannot be used \(line 3\): SyntaxError: "),
        ("import json\ndef get_config():\n    json.loads('{')", r"\(line 3\): JSONDecodeError: "),
        (
            "from edl_jax import TrainConfig\nget_config = lambda: TrainConfig(epochs=-1)",
            r"\(line 2\): TrainConfig\.epochs is -1; expected a whole number, at least 1",
        ),
        (
            "def get_config(x): pass",
            r"config\.py cannot be used: TypeError: get_config\(\) missing",
        ),
        ("import sys\nsys.exit(3)", r"\(line 2\): SystemExit: 3"),
    ],
)
def test_a_config_file_that_fails_is_named_with_the_line(text, message, tmp_path, monkeypatch):
    path = tmp_path / "config.py"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    for given in (path, Path("config.py")):
        with pytest.raises(ConfigError, match=message):
            cli.load_config(given, TrainConfig)


def test_quiet_prints_nothing_but_errors_and_a_folder_that_was_not_given(
    tmp_path, capfd, monkeypatch
):
    table = Table("t", "Numbers", [{"n": 1}], [Column("n", lambda row: str(row["n"]))])
    results = StudyResults("inspect", "A loss", "It was found.", ["No data."], [table], [])
    with monkeypatch.context() as patch:  # drawing takes long
        patch.setattr(cli, "inspect", lambda config, *, run_dir: results)
        arguments = ["inspect", "cross_entropy", "--run-dir", str(tmp_path / "card")]
        assert cli.main([*arguments, "--quiet"]) == 0
        assert capfd.readouterr() == ("", "")
        assert cli.main(["inspect", "cross_entropy", "--quiet"]) == 0
        assert re.fullmatch(r"runs/inspect-[\d-]+\n", capfd.readouterr().out)
        assert cli.main(arguments) == 0
        out, err = capfd.readouterr()
        assert "It was found.\n\nTables, figures and protocol:" in out
        assert err == ""
    assert cli.main(["inspect", "none.safetensors", "--quiet"]) == 2
    assert "there is no loss file at" in capfd.readouterr().err


def test_studies_print_what_they_found(tmp_path, capfd, monkeypatch):
    table = Table("t", "Numbers", [{"n": 1}], [Column("n", lambda row: str(row["n"]))])
    results = StudyResults("toy", "A study", "It was found.", ["No data."], [table], [])
    metrics = {"pairwise_accuracy": 0.98765, "pairwise_accuracy/uniform": 1.0, "2 classes: x": 2.0}
    evolved = SimpleNamespace(metrics=metrics)
    compared = SimpleNamespace(results=results, source="digits of ours")
    given = []

    def give(found):
        return lambda config, *args, **kwargs: given.append((config, args, kwargs)) or found

    monkeypatch.setattr(cli, "demo", give((evolved, compared)))
    monkeypatch.setattr(cli, "ablate", give(SimpleNamespace(results=results)))
    monkeypatch.setattr(cli, "transfer", give(results))
    for command, kind in (
        ("demo", DemoConfig),
        ("ablate", AblateConfig),
        ("transfer", TransferConfig),
    ):
        run_dir = tmp_path / command
        assert cli.main([command, "--run-dir", str(run_dir)]) == 0
        out, err = capfd.readouterr()
        assert "It was found." in out
        assert err == ""
        config, args, kwargs = given.pop()
        assert config == kind()
        assert run_dir in (*args, *kwargs.values())
        assert str(run_dir) in out
        if command == "demo":
            assert "pairwise_accuracy                      0.9877\n" in out
            assert "On real images (digits of ours)" in out
            assert "uniform" not in out
            assert "2 classes" not in out


def test_an_error_of_a_run_says_how_to_go_on_in_its_folder(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RunFolderError("no room.")

    monkeypatch.setattr(cli, "transfer", fail)
    assert cli.main(["transfer"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"edl transfer: no room\. Add --run-dir runs/transfer-[\d-]+ to the command\.\n", error
    )
    assert cli.main(["transfer", "--run-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "edl transfer: no room.\n"


def test_studies_run_in_one_process(capsys):
    flags = ["coordinator", "127.0.0.1:9", "num-processes", "2", "process-id", "0"]
    flags = [f"--processes.{x}" if i % 2 == 0 else x for i, x in enumerate(flags)]
    assert main(["compare", *flags]) == 2
    assert "edl compare runs in one process; pretrain and train take" in capsys.readouterr().err


def documented_fields(kind: type) -> dict[str, str]:
    """The docstring that follows each field of a dataclass, by field name."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    documented = {}
    for field, after in itertools.pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            documented[field.target.id] = str(after.value.value) if is_text else ""
    return documented


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("pretrain", [PretrainConfig, Mixture]),
        ("train", [TrainConfig]),
        ("compare", [CompareConfig, TrainConfig]),
        ("ablate", [AblateConfig, PretrainConfig]),
        ("transfer", [TransferConfig, Mixture]),
        ("demo", [DemoConfig, PretrainConfig]),
        ("inspect", [InspectConfig]),
    ],
)
def test_help_explains_every_field(command, kinds, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    text = "".join(re.sub(r"[^\w(]", "", capsys.readouterr().out))
    for kind in kinds:
        documented = documented_fields(kind)
        assert set(documented) == {field.name for field in dataclasses.fields(kind)}
        for name, explanation in documented.items():
            assert len(explanation) > 15, f"{kind.__name__}.{name} has no help text"
            assert re.sub(r"[^\w(]", "", explanation)[:40] in text, f"{kind.__name__}.{name}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--mutation", "no_such"], "mutation is 'no_such'; expected one of"),
        (["train", "--epochs", "0"], "epochs is 0"),
        (["train", "--dataset", "digits", "--loss", "hinge"], "loss is 'hinge'"),
        (["train", "--config", "none.py"], "there is no config file at none.py"),
        (["compare", "--losses", "edl", "edl"], "different losses"),
    ],
)
def test_refusals_are_one_line_and_status_2(arguments, message, capsys, tmp_path):
    assert cli.main([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("chosen", [True, False])
def test_ctrl_c_is_one_line_and_says_how_to_go_on(chosen, capsys, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupted)
    monkeypatch.chdir(tmp_path)
    flags = ["--run-dir", str(tmp_path / "run")] if chosen else []
    assert cli.main(["train", *flags]) == 130
    error = capsys.readouterr().err
    assert "stopped by Ctrl-C" in error
    assert ("--run-dir runs" in error) != chosen
    assert len(error.strip().splitlines()) == 1


def test_unknown_command_and_no_command(capsys):
    assert cli.main(["evolve"]) == 2
    assert "unknown command 'evolve'" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert "pretrain" in capsys.readouterr().out


def test_a_config_of_the_wrong_kind_is_refused(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("from edl_jax import TrainConfig\ndef get_config(): return TrainConfig()\n")
    with pytest.raises(ConfigError, match=r"gives TrainConfig; expected .* PretrainConfig"):
        cli.load_config(path, PretrainConfig)
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"has no get_config\(\); expected"):
        cli.load_config(path, PretrainConfig)


def test_import_is_light():
    """What makes an import slow, or must never be imported, is not there after it."""
    script = (
        "import sys, edl_jax, edl_jax.training, edl_jax.studies, edl_jax.cli; print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    modules = set(result.stdout.split())
    assert "edl_jax.cli" in modules
    heavy = {
        "orbax.checkpoint",
        "tensorflow",
        "tensorflow_datasets",
        "torch",
        "matplotlib",
        "sklearn",
        "PIL",
        "scipy.stats",
    }
    assert not modules & heavy
