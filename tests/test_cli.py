import ast
import dataclasses
import functools
import importlib.util
import inspect
import io
import itertools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from types import SimpleNamespace

import jax
import pandas as pd
import pytest

from edl_jax import Mixture, PretrainConfig, TrainConfig, cli, studies
from edl_jax.__main__ import main
from edl_jax.arguments import load_config
from edl_jax.errors import ConfigError, Preempted, RunFolderError
from edl_jax.evolution import pretraining
from edl_jax.runs import preemption
from edl_jax.studies import (
    AblateConfig,
    CardConfig,
    CompareConfig,
    CoverageConfig,
    DemoConfig,
    Study,
)
from tests.test_training import DIGITS

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def replace(monkeypatch, command, function):
    """Let a command run another function of the same arguments."""
    config_type, run = cli._COMMANDS[command]
    monkeypatch.setitem(cli._COMMANDS, command, (config_type, functools.wraps(run)(function)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load_and_their_headers_tell_command_time_and_result(path):
    kind = {
        "ablate": AblateConfig,
        "compare": CompareConfig,
        "pretrain": PretrainConfig,
        "train": TrainConfig,
        "coverage": CoverageConfig,
    }
    header = path.read_text()
    command = re.search(rf"edl (\w+) --config configs/{path.name}", header)
    assert command
    assert load_config(path, kind[command[1]])
    for word in ("Command:", "Time:", "Result:"):
        assert word in header


def test_pretrain_from_a_config_file_with_overrides(tiny_pretraining, tmp_path, capsys):
    """In the folder of the same run, which is refused to any other: nothing is compiled again."""
    config, run_dir = tmp_path / "tiny.py", tmp_path / "run"
    config.write_text(
        "import dataclasses\n"
        "from tests.test_evolution import TINY\n"
        "get_config = lambda: dataclasses.replace(TINY, generations=1)\n"
    )
    shutil.copytree(tiny_pretraining[0], run_dir)
    assert not list(run_dir.glob("*.png"))
    (run_dir / "loss.safetensors").unlink()
    arguments = ["pretrain", "--config", str(config), "--run-dir", str(run_dir)]
    assert cli.main([*arguments, "--generations", "3"]) == 2
    assert "generations is 5 there and 3 here" in capsys.readouterr().err
    assert cli.main([*arguments, "--generations", "5"]) == 0
    assert "pairwise_accuracy" in capsys.readouterr().out
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 5
    assert (run_dir / "loss.safetensors").exists()
    assert {path.stem for path in run_dir.glob("*.png")} == {"evolution", "loss"}


def test_train_and_compare_on_digits(tmp_path, capsys):
    small = [
        "data.name",
        "digits",
        "model",
        DIGITS.model,
        "epochs",
        "1",
        "data.train-examples",
        "256",
    ]
    flags = [f"--{x}" if i % 2 == 0 else x for i, x in enumerate(small)]
    assert cli.main(["train", *flags, "--run-dir", str(tmp_path / "train")]) == 0
    assert "test_accuracy" in capsys.readouterr().out
    assert (tmp_path / "train" / "training.png").exists()
    flags = [f"--train.{x}" if i % 2 == 0 else x for i, x in enumerate(small)]
    run_dir = tmp_path / "compare"
    assert (
        cli.main(
            ["compare", "--num-seeds", "1", "--executor", "1", *flags, "--run-dir", str(run_dir)]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert re.search(r" edl +1 +\d+(\.\d+)? .* not tested", out)
    assert (run_dir / "accuracy.png").exists()
    assert "| edl | 1 |" in (run_dir / "README.md").read_text()
    report = tmp_path / "report.html"
    assert cli.main(["report", str(tmp_path / "train"), str(run_dir), "--out", str(report)]) == 0
    assert report.read_text().count("data:image/png") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\ndef get_config(:", r"config\.py cannot be used: SyntaxError: .*config\.py, line 3"),
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
            load_config(given, TrainConfig)


def test_a_config_file_is_a_module_among_its_neighbours(tmp_path):
    """As a script is: classes of its own are found by name, in it and ever after."""
    path, before = list(sys.path), {}
    for folder, epochs in (("one", 3), ("other", 5)):
        home = tmp_path / folder
        home.mkdir()
        (home / f"neighbour_of_{folder}.py").write_text(f"EPOCHS = {epochs}\n")
        (home / "config.py").write_text(
            "from __future__ import annotations\n"
            "import dataclasses\n"
            "from edl_jax import TrainConfig\n"
            "@dataclasses.dataclass(frozen=True)\n"
            "class Mine(TrainConfig):\n"
            "    mine: Kind | None = None\n"
            "class Kind: ...\n"
            "def get_config():\n"
            f"    from neighbour_of_{folder} import EPOCHS\n"
            "    return Mine(epochs=EPOCHS)\n"
        )
        before[folder] = load_config(home / "config.py", TrainConfig)
        assert before[folder].epochs == epochs
    assert sys.path == path
    for config in before.values():  # neither took the other's place
        kind = type(config)
        assert typing.get_type_hints(kind)["mine"] == sys.modules[kind.__module__].Kind | None
        assert pickle.loads(pickle.dumps(config)) == config


def test_a_config_file_that_fails_leaves_no_module_behind(tmp_path):
    (tmp_path / "neighbour_that_fails.py").write_text("1 / 0\n")
    (tmp_path / "config.py").write_text("import sys\nimport neighbour_that_fails\n")
    path, modules = list(sys.path), {*sys.modules}
    with pytest.raises(ConfigError, match=r"config\.py cannot be used \(line 2\): ZeroDivision"):
        load_config(tmp_path / "config.py", TrainConfig)
    assert (sys.path, {*sys.modules}) == (path, modules)


STRANGE = "mean ± deviation ÷ 2 − ∞ — σ"  # none of it is ASCII, some is in no Latin alphabet


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["card", "focal"],
        ["compare"],
        ["ablate"],
        ["coverage"],
        ["demo"],
        ["pretrain"],
        ["train", "--data.name", "digits"],
        ["train", "--help"],
        ["losses"],
        ["export", "edl"],
        ["report", "run"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_no_command_fails_at_a_character_that_the_terminal_lacks(
    arguments, encoding, tmp_path, monkeypatch
):
    study = Study(STRANGE, [STRANGE], {STRANGE: pd.DataFrame({STRANGE: [STRANGE]})}, {})
    found = SimpleNamespace(
        source=STRANGE, metrics={STRANGE: 1.0}, history={}, held_out=None,
        loss=None, test_accuracy=1.0, test_nll=1.0, test_calibration_error=1.0,
    )  # fmt: skip
    monkeypatch.setattr(pretraining, "pretrain", lambda *_, **__: found)
    monkeypatch.setattr(cli, "train", lambda *_, **__: found)
    monkeypatch.setattr(studies, "demo", lambda *_, **__: (found, study))
    for name in ("compare", "ablate", "card", "coverage"):
        replace(monkeypatch, name, lambda *_, **__: study)
    for name in ("plot_evolution", "plot_loss", "plot_training", "_tell"):
        monkeypatch.setattr(cli, name, lambda *_, **__: None)
    monkeypatch.setattr(cli, "export_loss", lambda loss, folder: [folder / STRANGE])
    monkeypatch.setattr(cli, "write_report", lambda runs, out: None)
    monkeypatch.setattr(cli, "list_losses", lambda: [(STRANGE, STRANGE, STRANGE)])
    monkeypatch.chdir(tmp_path)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert cli.main(arguments) == 0
    sys.stdout.flush()
    assert len(written.getvalue()) > 20


STUDY = Study("A study", [], {"T": pd.DataFrame({"loss": ["mine"], "x": [0.12345]})}, {})


def test_quiet_prints_nothing_but_errors_and_a_folder_that_was_not_given(
    tmp_path, capfd, monkeypatch
):
    with monkeypatch.context() as patch:  # drawing takes long
        replace(patch, "card", lambda config, *, run_dir: STUDY)
        arguments = ["card", "cross_entropy", "--run-dir", str(tmp_path / "card")]
        assert cli.main([*arguments, "--quiet"]) == 0
        assert capfd.readouterr() == ("", "")
        assert cli.main(["card", "cross_entropy", "--quiet"]) == 0
        assert re.fullmatch(r"runs/card-[\d-]+\n", capfd.readouterr().out)
        assert cli.main(arguments) == 0
        out, err = capfd.readouterr()
        assert "loss      x\nmine 0.1235\n\nTables, figures and how it was done:" in out
        assert err == ""
    assert cli.main(["card", "none.safetensors", "--quiet"]) == 2
    assert "there is no loss file at" in capfd.readouterr().err


def test_studies_print_what_they_found(tmp_path, capfd, monkeypatch):
    metrics = {"pairwise_accuracy": 0.98765, "pairwise_accuracy/uniform": 1.0, "2 classes: x": 2.0}
    evolved = SimpleNamespace(metrics=metrics)
    given = []

    def give(found):
        return lambda config, *args, **kwargs: given.append((config, args, kwargs)) or found

    monkeypatch.setattr(studies, "demo", give((evolved, STUDY)))
    replace(monkeypatch, "ablate", give(STUDY))
    replace(monkeypatch, "coverage", give(STUDY))
    for command, kind in (
        ("demo", DemoConfig),
        ("ablate", AblateConfig),
        ("coverage", CoverageConfig),
    ):
        run_dir = tmp_path / command
        assert cli.main([command, "--run-dir", str(run_dir)]) == 0
        out, err = capfd.readouterr()
        assert "mine 0.1235" in out
        assert err == ""
        config, args, kwargs = given.pop()
        assert config == kind()
        assert run_dir in (*args, *kwargs.values())
        assert str(run_dir) in out
        if command == "demo":
            assert "pairwise_accuracy                      0.9877\n" in out
            assert "On real images:" in out
            assert "uniform" not in out
            assert "2 classes" not in out


def test_an_error_of_a_run_says_how_to_go_on_in_its_folder(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RunFolderError("no room.")

    replace(monkeypatch, "coverage", fail)
    assert cli.main(["coverage"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"edl coverage: no room\. Add --run-dir runs/coverage-[\d-]+ to the command\.\n", error
    )
    assert cli.main(["coverage", "--run-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "edl coverage: no room.\n"


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
        ("coverage", [CoverageConfig, Mixture]),
        ("demo", [DemoConfig, PretrainConfig]),
        ("card", [CardConfig]),
    ],
)
def test_help_explains_every_field(command, kinds, capsys):
    assert cli.main([command, "--help"]) == 0
    text = "".join(re.sub(r"[^\w(]", "", capsys.readouterr().out))
    for kind in kinds:
        documented = documented_fields(kind)
        assert set(documented) == {field.name for field in dataclasses.fields(kind)}
        for name, explanation in documented.items():
            assert len(explanation) > 15, f"{kind.__name__}.{name} has no help text"
            assert re.sub(r"[^\w(]", "", explanation)[:40] in text, f"{kind.__name__}.{name}"


@pytest.mark.parametrize(
    ("argument", "usage"),
    [
        ("--config", "run edl train --help"),
        ("--epochs", "run edl train --help"),
        ("--processes.coordinator", "run edl train --help"),
    ],
)
def test_an_argument_without_its_value_says_how_the_command_is_used(argument, usage, capsys):
    assert main(["train", argument]) == 2
    error = capsys.readouterr().err
    assert argument in error
    assert usage in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--strategy.mutation", "no_such"], "mutation is 'no_such'; expected one of"),
        (["train", "--epochs", "0"], "epochs is 0"),
        (["train", "--data.name", "digits", "--loss", "hinge"], "loss is 'hinge'"),
        (["train", "--config", "none.py"], "there is no config file at none.py"),
        (["train", "--config", "x" * 300], "there is no config file at xxx"),
        (["compare", "--losses", "edl", "edl"], "all different"),
    ],
)
def test_refusals_are_one_line_and_status_2(arguments, message, capsys, tmp_path):
    assert cli.main([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["card", "focal", "--run-dir"],
        ["card", "--run-dir", "elsewhere", "--config"],
        ["export", "edl", "--out"],
    ],
    ids=" ".join,
)
def test_a_path_may_begin_at_home_and_is_never_empty(arguments, tmp_path, monkeypatch, capsys):
    seen = []

    def card(config, *, run_dir):
        seen.extend([run_dir, Path(config.loss)])
        return STUDY

    replace(monkeypatch, "card", card)
    monkeypatch.setattr(cli, "export_loss", lambda loss, folder: seen.append(folder) or [])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.py"
    text = "from edl_jax.studies import CardConfig\n"
    mine.write_text(f"{text}get_config = lambda: CardConfig({str(mine)!r} + '.safetensors')\n")
    assert cli.main([*arguments, "~/mine.py"]) == 0
    assert {mine, mine.with_suffix(".py.safetensors")} & {*seen}
    capsys.readouterr()
    assert cli.main([*arguments, ""]) == 2
    error = capsys.readouterr().err
    assert "the path is ''; expected a string or a pathlib.Path, not empty" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "config.json").exists()


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


@pytest.mark.parametrize("command", ["train", "losses"])
def test_help_fits_the_narrowest_terminal(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "3")  # in which tyro never ends to write
    assert cli.main([command, "--help"]) == 0
    assert "--help" in capsys.readouterr().out


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
        load_config(path, PretrainConfig)
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"has no get_config\(\); expected"):
        load_config(path, PretrainConfig)


@pytest.mark.slow
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
        "pandas",
        "statsmodels",
        "sklearn",
        "PIL",
        "scipy.stats",
    }
    assert not modules & heavy


def test_an_interrupted_command_ends_with_one_line_and_its_status(capsys, monkeypatch):
    """By the signal, also before there is a command: libraries take seconds to load."""

    def preempted(*_, **__):
        raise Preempted("told to stop.")

    for stop, status, by in (
        (KeyboardInterrupt, 130, "Ctrl-C"),
        (preemption.Terminated, 75, "SIGTERM"),
    ):

        def stopped(*_, stop=stop, **__):
            raise stop

        with monkeypatch.context() as patch:
            patch.setattr(cli, "train", stopped)
            assert cli.main(["train", "--data.name", "digits"]) == status
            assert f"edl train: stopped by {by}. What was saved is kept" in capsys.readouterr().err
            replace(patch, "compare", preempted)
            assert cli.main(["compare", "--run-dir", "mine"]) == 75
            assert capsys.readouterr().err == "edl compare: told to stop.\n"
            patch.setattr(cli, "main", stopped)
            assert main(["train"]) == status
            assert capsys.readouterr().err == "\nedl: stopped.\n"


LOADING = """
import signal, sys
from edl_jax.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.argv = ["edl", "train"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_still_loading_is_ended_by_the_signal_itself(number, tmp_path):
    """Not by an exception, which libraries turn into another or drop."""
    (tmp_path / "jax.py").write_text(
        "import time\nprint('loading', flush=True)\ntry:\n    time.sleep(30)\n"
        "except KeyboardInterrupt:\n    raise ImportError('cannot be initialised')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "GLIBC_TUNABLES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == -number  # 130 and 143, as a shell says them


SAVING = """
import signal, sys, time
from pathlib import Path
from edl_jax.runs.preemption import exit_status, stop_once
from edl_jax.runs.storage import open_atomically
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
stop_once()
try:
    with open_atomically(Path(sys.argv[1]) / "figure.png") as file:
        print("ready", flush=True)
        for _ in range(300):
            file.write(b"half a figure")
            time.sleep(0.1)
except KeyboardInterrupt as stop:
    time.sleep(0.5 if sys.argv[2] == "tidy" else 30)
    sys.exit(exit_status(stop))
"""


@pytest.mark.parametrize(
    ("signals", "pause", "statuses"),
    [
        ("INT INT", 0, {130}),
        ("TERM INT", 0, {75, 130}),  # Python may see the second one first
        ("INT TERM INT", 0.05, {130}),
        ("TERM", 0, {75}),
        ("HUP", 0, {75}),  # of a terminal that is closed
        ("HUP TERM", 0, {75}),
        ("INT INT", 2, {130}),  # somebody who does not want to wait
    ],
)
def test_signals_at_once_end_a_command_once(signals, pause, statuses, tmp_path):
    """Nothing half written is left, nor a traceback; a late one does not wait."""
    patience = "tidy" if pause < 2 else "slow"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tmp_path), patience],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for name in signals.split():
        process.send_signal(signal.Signals[f"SIG{name}"])
        time.sleep(pause)
    _, error = process.communicate(timeout=20)
    assert process.returncode in statuses
    assert error == ""
    assert not list(tmp_path.iterdir())


ENDING = """
import atexit, sys, time
from edl_jax.__main__ import main
atexit.register(lambda: (print("ending", flush=True), time.sleep(30)))
sys.argv = ["edl", *sys.argv[1:]]
sys.exit(main())
"""


@pytest.mark.parametrize("arguments", [["none_such"], ["train", "--none-such"]])
def test_a_signal_while_a_command_ends_leaves_no_traceback(arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING, *arguments],
        env={**os.environ, "GLIBC_TUNABLES": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while process.stdout.readline() != "ending\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert "Traceback" not in error
    assert process.returncode == -signal.SIGTERM


def test_signals_wait_for_what_they_would_leave_half_done():
    """Whatever handles them: Python itself, `noticed`, or `stop_once` of a command."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {each: signal.getsignal(each) for each in numbers}
    try:
        for number, expected in (
            (signal.SIGINT, KeyboardInterrupt),
            (signal.SIGTERM, preemption.Terminated),
        ):
            signal.signal(signal.SIGINT, signal.default_int_handler)  # or ignored, in background
            preemption.stop_once()
            done = []
            with pytest.raises(expected), preemption.interrupt_deferred():  # noqa: PT012
                os.kill(os.getpid(), number)
                done.append("half")
                os.kill(os.getpid(), number)
                done.append("whole")
            assert done == ["half", "whole"]
            for each, handler in before.items():
                signal.signal(each, handler)
        with preemption.noticed(signal.SIGTERM) as came:
            with preemption.interrupt_deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                assert not came
            assert came == [signal.SIGTERM]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("No 'tpu'. (set JAX_PLATFORMS)")])
def test_a_backend_that_is_not_there_is_one_line(error, capsys, monkeypatch):
    def fail():
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", fail)
        assert main(["train", "--data.name", "digits"]) == 2
    said = capsys.readouterr().err
    assert re.match(r"edl: JAX_PLATFORMS is .*, and JAX cannot use it here", said)
    assert ("(No 'tpu')" in said) == (str(error) != "")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_ENABLE_X64", "maybe"), ("JAX_COMPILATION_CACHE_MAX_SIZE", "all")],
)
def test_a_setting_that_jax_refuses_is_one_line(name, value):
    found = subprocess.run(
        [sys.executable, "-m", "edl_jax", "none_such"],
        env={**os.environ, name: value, "GLIBC_TUNABLES": ""},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert re.fullmatch(rf"(?i)edl: JAX cannot be loaded \(.*{name}.*\). Unset .*\n", found.stderr)


@pytest.mark.parametrize("command", [["train", "--data.name", "none_such"], ["card"]])
def test_a_setting_that_matplotlib_refuses_is_one_line(command, tmp_path, capsys, monkeypatch):
    """Before the run begins, not once it has ended."""

    def refuse(name):
        raise ValueError("Key backend: 'none_such' is not a valid value for backend")

    own = SimpleNamespace(util=importlib.util, import_module=refuse)
    monkeypatch.setattr("edl_jax.studies.figures.importlib", own)
    assert cli.main([*command, "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert re.search(r"matplotlib, which cannot be loaded \(Key .*\): unset MPLBACKEND\.\n$", said)


def test_the_command_itself_refuses_a_backend_that_is_not_there():
    """Before the libraries that would start it are loaded."""
    found = subprocess.run(
        [sys.executable, "-m", "edl_jax", "train"],
        env={**os.environ, "JAX_PLATFORMS": "none_such", "GLIBC_TUNABLES": ""},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert re.fullmatch(r"edl: JAX_PLATFORMS is 'none_such', and .*none_such.*\n", found.stderr)


SAYING = """
import sys
from types import SimpleNamespace
from edl_jax.__main__ import main


def command(argv):
    for n in range(3):
        print("said", flush=True)
        print("told", file=sys.stderr, flush=True)
    open(argv[0], "w").write("done")
    return 0


sys.modules["edl_jax.cli"] = SimpleNamespace(main=command)  # which takes long to load
sys.argv = ["edl", sys.argv[1]]
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "status", "error"),
    [
        ("", 0, "told\n" * 3),
        (">&-", 0, "told\n" * 3),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("> /dev/full", 2, "told\n" * 3 + "edl: output was lost ([Errno 28] No space left on "
         "device). Send it where there is room.\n"),
        ("2> /dev/full", 0, ""),
        ("> /dev/full 2>&1", 2, ""),
        ("| true", 0, "told\n" * 3),
        ("2>&1 | true", 0, ""),
    ],
)  # fmt: skip
def test_output_that_cannot_be_written_ends_no_command(redirection, status, error, tmp_path):
    script, done = tmp_path / "saying.py", tmp_path / "done"
    script.write_text(SAYING)
    command = f"{sys.executable} {script} {done} {redirection}; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "GLIBC_TUNABLES": ""},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (status, error)
    assert done.read_text() == "done"
