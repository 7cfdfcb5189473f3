"""Bad inputs by the thousand: each must be refused by one of the package's own errors.

    python -m tests.hostile --examples 10000

An attempt is something that a user could do wrong, with what it is called. It is made in an empty
folder, and afterwards the folder must be as it was: nothing is half-written.
"""

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import functools
import io
import json
import math
import resource
import shutil
import struct
import tempfile
import traceback
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from safetensors.numpy import save

import edl_jax
from edl_jax import EDLError, EvolvedLoss, Mixture, cli
from edl_jax.data.augmentation import Augmentation
from edl_jax.data.config import DataConfig
from edl_jax.data.datasets import load_dataset
from edl_jax.losses import evolved_loss
from edl_jax.losses.by_name import resolve_loss
from edl_jax.networks import Architecture
from edl_jax.objective import TaskConfig
from edl_jax.runs.folder import RunFolder
from edl_jax.runs.joining import Processes
from edl_jax.strategies import StrategyConfig
from edl_jax.studies import ablate, card, compare, coverage
from edl_jax.studies.report import write_report
from edl_jax.training.optimizers import OptimizerConfig
from tests.baseline_losses import takes_counts

SECONDS_FOR_ONE = 120  # an attempt that takes longer hangs


class Refused(EDLError):
    """Stands for a refusal that is no exception: an exit status and a message."""


class Attempt(NamedTuple):
    """Something that a user could do wrong.

    Attributes:
      surface: what part of the package it is tried on.
      what: what is done.
      call: does it, in a folder.
      is_bad: whether it must be refused; else it must be refused or do what it should.
    """

    surface: str
    what: str
    call: Callable[[Path], Any]
    is_bad: bool = True


def check(attempt: Attempt, folder: Path) -> str:
    """Make an attempt in an empty folder; gives the error's name, or "taken" for one that is fine.

    Raises:
      AssertionError: if it is taken though bad, raises anything but an `EDLError` with a message,
        or leaves something in the folder.
    """
    before, refusal = _contents(folder), None
    try:
        attempt.call(folder)
    except EDLError as error:
        refusal = error
    except BaseException as error:
        raise AssertionError(f"{attempt.surface}, {attempt.what}: {error!r}") from error
    if refusal is None:
        assert not attempt.is_bad, f"{attempt.surface}, {attempt.what}: was taken"
        return "taken"
    assert len(str(refusal)) > 20, f"{attempt.what}: says no more than {str(refusal)!r}"
    assert _contents(folder) == before, f"{attempt.what}: leaves {_contents(folder)}"
    return type(refusal).__name__


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- configurations ------------------------------------------------------------------------------

_COMMANDS = {name: kind for name, (kind, _) in cli._COMMANDS.items() if kind is not None}
CONFIGS = (
    Augmentation,
    Mixture,
    TaskConfig,
    StrategyConfig,
    DataConfig,
    OptimizerConfig,
    Processes,
    *_COMMANDS.values(),
)
# Strings that are looked at when the run begins.
_FREE = {"data_dir", "coordinator"}
_NAMES = st.text(max_size=12).filter(lambda x: x not in ("static",))
_COUNTS = st.one_of(
    st.integers(max_value=-1), st.floats(), st.text(max_size=3), st.booleans(), st.binary()
)
_MEASURES = st.one_of(
    st.floats(max_value=-1e-6),
    st.sampled_from([math.nan, math.inf, 10**400, -(10**400)]),
    st.text(max_size=3),
)
_OBJECTS = st.sampled_from([object(), {}, {"a": 1}, set(), len, np.zeros(2), EDLError, b"bytes"])


def bad_values(hint: Any, name: str) -> st.SearchStrategy[Any]:
    """Values that a configuration's field of a type cannot have."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return bad_values(parts[0], name).filter(lambda value: value is not None)
    if kind is tuple:
        inside = bad_values(parts[0], name).map(lambda value: (value,))
        return st.one_of(inside, st.sampled_from([5, None, "abc", {1}, object()]))
    if kind is dict:
        return st.sampled_from([3, "x", [1], {1: 2}, {"no such option": 1.0}, object()])
    if hint is bool:
        return st.one_of(st.integers(), st.text(), st.none(), _OBJECTS)
    if hint is int:
        return st.one_of(_COUNTS, st.none(), _OBJECTS)
    if hint is float:
        return st.one_of(_MEASURES, st.none(), st.booleans(), _OBJECTS)
    if kind is typing.Literal or (hint is str and name not in _FREE):
        return st.one_of(_NAMES, st.none(), st.integers(), _OBJECTS)
    if hint is str:
        return st.one_of(st.none(), st.integers(), _OBJECTS)
    return st.one_of(st.none(), st.integers(), st.text(), _OBJECTS)


@st.composite
def configurations(draw: st.DrawFn) -> Attempt:
    """A field of a configuration that holds what it cannot."""
    kind = draw(st.sampled_from(CONFIGS))
    name = draw(st.sampled_from([field.name for field in dataclasses.fields(kind)]))
    free = (kind, name) == (DataConfig, "name")  # looked for when the data is loaded
    value = draw(bad_values(typing.get_type_hints(kind)[name], "data_dir" if free else name))
    what = f"{kind.__name__}({name}={value!r})"
    return Attempt("configuration", what, lambda _: kind(**{name: value}))


# --- the losses ----------------------------------------------------------------------------------


@functools.cache
def _loss(name: str) -> Any:
    counts = (5, 3, 2) if takes_counts(name) else None
    return resolve_loss(name, class_counts=counts)


_GOOD = {
    "logits": np.float32([[1, 2, 3], [0, 0, 1]]),
    "labels": np.int32([0, 2]),
    "axis": -1,
    "where": None,
}
_NO_ARRAYS = (None, "abc", object(), {}, [[1.0], [1.0, 2.0]], {"a": 1}, [None], b"x", len)
_BAD_ARGUMENTS = {
    "logits": (
        *_NO_ARRAYS,
        np.int32([[1, 2, 3], [0, 0, 1]]),
        np.complex64([[1, 2, 3], [0, 0, 1]]),
        np.ones((2, 3), bool),
        np.float32(3),
        np.ones((2, 1), np.float32),
        np.ones((2, 0), np.float32),
        np.ones((3, 3), np.float32),
        np.ones((2, 2, 3), np.float32),
        np.array([["a", "b", "c"]]),
    ),
    "labels": (
        *_NO_ARRAYS,
        np.int32([0]),
        np.int32([0, 3]),
        np.int32([0, -1]),
        np.uint8([255, 0]),
        np.int32([[0], [1]]),
        np.int32(0),
        np.float32([0, 1]),
        np.array([True, False]),
        np.ones((2, 2), np.float32),
        np.ones((2, 3), np.complex64),
        np.array(["a", "b"]),
    ),
    "axis": (2, -3, "x", None, 1.5, (0,), object()),
    "where": ("x", object(), np.ones((2, 2), bool), np.ones((2, 3, 1), bool), [[True], [1, 2]]),
}


@st.composite
def loss_calls(draw: st.DrawFn) -> Attempt:
    """A call of a loss with one argument that does not fit."""
    loss = draw(st.sampled_from(["edl", *edl_jax.LOSSES]))
    argument = draw(st.sampled_from(list(_GOOD)))
    value = draw(st.sampled_from(_BAD_ARGUMENTS[argument]))
    given = {**_GOOD, argument: value}

    def call(_: Path) -> Any:
        function = _loss(loss)
        return function(given["logits"], given["labels"], axis=given["axis"], where=given["where"])

    return Attempt("loss", f"{loss} with {argument}={value!r}", call)


_OPTIONS = st.one_of(
    st.none(), st.text(max_size=4), st.floats(max_value=-1.5), st.just(math.nan), st.just([])
)


@st.composite
def loss_names(draw: st.DrawFn) -> Attempt:
    """A loss that is named wrongly."""
    known = draw(st.sampled_from(["edl", *edl_jax.LOSSES]))
    name = draw(
        st.one_of(
            st.text(max_size=20).filter(lambda x: x not in edl_jax.LOSSES),
            st.sampled_from([None, 3, b"edl", [], object(), "edl()()", "focal(gamma=)", "mae(3)"]),
            st.sampled_from(["(" * 5000 + ")", f"{known}(no_such_option=1)", f"{known}(**{{}})"]),
            st.sampled_from(["focal(gamma={})", "gce(q={})", "poly(epsilon={})"]).flatmap(
                lambda form: _OPTIONS.map(lambda value: form.format(repr(value)))
            ),
        )
    )
    return Attempt("loss name", repr(name)[:80], lambda _: resolve_loss(name))


# --- other functions -----------------------------------------------------------------------------

_KEY = jax.random.key(0)
_KEYS = jax.random.split(_KEY)
_TINY = np.zeros(3, np.float32)
_BAD_COUNTS = st.one_of(st.integers(max_value=0), st.floats(), st.text(max_size=3), st.none())
_ANYTHING = st.one_of(st.integers(), st.text(max_size=5), _OBJECTS)


@st.composite
def functions(draw: st.DrawFn) -> Attempt:
    """A function of the package with an argument that does not fit."""
    bad_count, thing = draw(_BAD_COUNTS), draw(_ANYTHING)
    anything = draw(st.sampled_from([3, "x", {}, object(), b"", [1], TaskConfig()]))
    ratio: Any = draw(st.sampled_from([-0.5, 0, 1, 1.5, math.nan, "x", None, 10**400]))
    calls: dict[str, Callable[[Path], Any]] = {
        "sample_pairs of many keys": lambda _: edl_jax.sample_pairs(_KEYS, 8, 10),
        "pretrain with many keys": lambda f: edl_jax.pretrain(key=_KEYS, run_dir=f / "run"),
        "pretrain on one device": lambda f: edl_jax.pretrain(
            devices=jax.devices()[0], run_dir=f / "run"
        ),
        "sample_pairs of a bad number": lambda _: edl_jax.sample_pairs(_KEY, bad_count, 10),
        "sample_pairs of bad classes": lambda _: edl_jax.sample_pairs(_KEY, 8, bad_count),
        "sample_pairs of a bad key": lambda _: edl_jax.sample_pairs(thing, 8, 10),
        "sample_pairs of a bad mixture": lambda _: edl_jax.sample_pairs(
            _KEY, 8, 10, mixture=anything
        ),
        "pretrain with another thing": lambda f: edl_jax.pretrain(anything, run_dir=f / "run"),
        "pretrain with a bad key": lambda f: edl_jax.pretrain(key=thing, run_dir=f / "run"),
        "pretrain on no devices": lambda f: edl_jax.pretrain(devices=[], run_dir=f / "run"),
        "pretrain on bad devices": lambda f: edl_jax.pretrain(devices=[thing], run_dir=f / "run"),
        "pretrain on a device twice": lambda f: edl_jax.pretrain(
            devices=[*jax.devices(), *jax.devices()], run_dir=f / "run"
        ),
        "train with another thing": lambda f: edl_jax.train(anything, run_dir=f / "run"),
        "train on bad devices": lambda f: edl_jax.train(devices=[thing], run_dir=f / "run"),
        "compare with another thing": lambda f: compare(anything, run_dir=f / "run"),
        "ablate with another thing": lambda f: ablate(anything, run_dir=f / "run"),
        "coverage with another thing": lambda f: coverage(anything, run_dir=f / "run"),
        "card with another thing": lambda f: card(anything, run_dir=f / "run"),
        "load_pretrained": lambda _: edl_jax.load_pretrained(thing),
        "EvolvedLoss.load": lambda f: EvolvedLoss.load(thing if anything == 3 else f / "none"),
        "load_dataset of a bad name": lambda _: load_dataset(DataConfig(anything)),
        "load_dataset of bad parts": lambda _: (
            load_dataset(DataConfig("digits", train_examples=bad_count))
            if bad_count is not None
            else load_dataset(DataConfig("digits", val_examples=-1))
        ),
        "ChaoticES of a bad size": lambda _: edl_jax.ChaoticES(bad_count, _TINY),
        "ChaoticES of a bad ratio": lambda _: edl_jax.ChaoticES(8, _TINY, elite_ratio=ratio),
        "ChaoticES of a bad mutation": lambda _: edl_jax.ChaoticES(8, _TINY, thing),
        "ChaoticES of a bad selection": lambda _: edl_jax.ChaoticES(8, _TINY, selection=anything),
        "ChaoticSNES of a bad size": lambda _: edl_jax.ChaoticSNES(bad_count, _TINY),
        "ChaoticSNES of a bad mutation": lambda _: edl_jax.ChaoticSNES(8, _TINY, thing),
        "a severity of a bad name": lambda _: edl_jax.SEVERITIES[thing],
        "a part registered badly": lambda _: edl_jax.SEVERITIES.register(
            draw_text if not (draw_text := str(thing)).isidentifier() else "surprisal"
        ),
        "an architecture of bad widths": lambda _: Architecture("pair", (bad_count,), "silu", 3),
        "an architecture of bad classes": lambda _: Architecture("pair", (4,), "silu", bad_count),
        "a run folder of another run": _other_run,
    }
    name = draw(st.sampled_from(list(calls)))
    return Attempt("function", f"{name}: {bad_count!r}, {thing!r}, {anything!r}", calls[name])


def _other_run(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as own:
        RunFolder(Path(own), {"a": 1})
        RunFolder(Path(own), {"a": 2})


# --- the command line ----------------------------------------------------------------------------


def run_command(argv: list[str]) -> None:
    """Run `edl`; raises `Refused` with what it said if it ended with status 2."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = cli.main(argv)
        except SystemExit as stop:
            status = stop.code
    assert "Traceback" not in said.getvalue(), said.getvalue()
    if status == 2:
        raise Refused(said.getvalue())
    assert status == 0, f"status {status}"


@st.composite
def command_lines(draw: st.DrawFn) -> Attempt:
    """A command line that asks for what cannot be."""
    command = draw(st.sampled_from(list(_COMMANDS)))
    kind = _COMMANDS[command]
    hints = typing.get_type_hints(kind)
    flags = [name for name in hints if hints[name] in (int, float, bool) or name == "losses"]
    word = draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8))
    flag = f"--{draw(st.sampled_from(flags)).replace('_', '-')}" if flags else "--loss"
    argv = draw(
        st.sampled_from(
            [
                [f"no-such-{word}"],
                [command, f"--no-such-{word}"],
                [command, "--run-dir"],
                [command, "--config", f"none-{word.replace('/', '')}.py"],
                [command, flag, "junk"],
                [command, flag, f"junk{word}"],
                [command, flag, "nan", "--no-such-flag"],
                ["losses", f"no-such-{word}"],
                ["report", f"none-{word.replace('/', '')}"],
                ["export", f"none{word}"],
                ["card", f"none{word}"],
            ]
        )
    )
    run_dir = ["--run-dir", "RUN"] if argv[0] in _COMMANDS and argv[-1] != "--run-dir" else []

    def call(folder: Path) -> None:
        given = [str(folder / "run") if x == "RUN" else x for x in argv + run_dir]
        out = ["--out", str(folder / "out")] if argv[0] in ("report", "export") else []
        run_command(given + out)

    return Attempt("command line", " ".join(["edl", *argv])[:100], call)


_FILES = (
    b"def get_config(:",
    b"raise ValueError('no')",
    b"import no_such_module",
    b"",
    b"get_config = 3",
    b"def get_config():\n    return None",
    b"def get_config(name):\n    return name",
    b"def get_config():\n    return 1 / 0",
    b"from edl_jax import TrainConfig\ndef get_config():\n    return TrainConfig(epochs=-1)",
    b"\xff\xfe\x00",
    b"x = '\x00'",
    b"import sys\nsys.exit(0)",
    b"#" * 1000 + b"\n(" + b"(" * 300,
)


@st.composite
def config_files(draw: st.DrawFn) -> Attempt:
    """A config file that gives no configuration."""
    command = draw(st.sampled_from(list(_COMMANDS)))
    content = draw(st.one_of(st.sampled_from(_FILES), st.binary(max_size=40)))

    def call(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as own:
            path = Path(own) / "config.py"
            path.write_bytes(content)
            run_command([command, "--config", str(path), "--run-dir", str(folder / "run")])

    return Attempt("config file", f"edl {command} --config with {content[:60]!r}", call)


# --- loss files ----------------------------------------------------------------------------------


@functools.cache
def _whole_file() -> tuple[dict[str, str], dict[str, np.ndarray], bytes]:
    loss = edl_jax.load_pretrained()
    with tempfile.TemporaryDirectory() as own:
        path = Path(own) / "loss.safetensors"
        loss.save(path)
        data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])["__metadata__"]
    return header, loss.tensors(), data


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def loss_files(draw: st.DrawFn) -> Attempt:
    """A loss file that was damaged, or made to do harm, with a digest that fits or not."""
    good_header, good_tensors, data = _whole_file()
    kind = draw(st.sampled_from(["bytes", "header", "architecture", "tensors", "length"]))
    if kind == "bytes":
        at = draw(st.integers(0, len(data) - 1))
        content = draw(
            st.one_of(
                st.just(data[:at]),
                st.binary(min_size=1, max_size=9).map(
                    lambda new: data[:at] + new + data[at + len(new) :]
                ),
                st.binary(min_size=1, max_size=9).map(lambda new: data[:at] + new + data[at:]),
                st.binary(max_size=64).map(lambda new: data + new),
                st.binary(max_size=200),
            )
        )
        what, is_bad = f"bytes changed at {at}", content != data
    elif kind == "length":
        length = draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 8192)))
        content, what = struct.pack("<Q", length) + data[8:], f"header said to be {length} long"
        is_bad = content != data
    else:
        header, tensors, what = _spoilt(draw, kind, good_header, good_tensors)
        is_bad = header != good_header or tensors.keys() != good_tensors.keys()
        is_bad |= any(tensors[x].tobytes() != good_tensors[x].tobytes() for x in good_tensors)
        if draw(st.booleans()):  # then it may hold a loss, of which nobody says that it is another
            header["sha256"], is_bad = evolved_loss.digest(header, tensors), False
        content = save(tensors, metadata=header)

    def call(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as own:
            path = Path(own) / "loss.safetensors"
            path.write_bytes(content)
            loss = EvolvedLoss.load(path)
        if content != data:  # a file that is read must be whole and hold a loss
            value = loss(jnp.zeros((2, loss.architecture.num_classes or 3)), jnp.asarray([0, 1]))
            assert not (np.asarray(value) < 0).any(), value

    return Attempt("loss file", what, call, is_bad)


def _spoilt(
    draw: st.DrawFn, kind: str, header: dict[str, str], tensors: dict[str, np.ndarray]
) -> tuple[dict[str, str], dict[str, np.ndarray], str]:
    header, tensors = dict(header), dict(tensors)
    if kind == "header":
        name = draw(st.sampled_from(list(header)))
        value = draw(st.one_of(_JSON.map(json.dumps), st.text(max_size=9), st.just("[" * 9999)))
        header[name] = value
        return header, tensors, f"header with {name}={value[:60]!r}"
    if kind == "architecture":
        fields = json.loads(header["architecture"])
        name = draw(st.sampled_from([*fields, "other"]))
        many = st.just([4096] * 16) | st.just([1] * 100_000) | st.just([2**63])
        fields[name] = draw(st.one_of(_JSON, many))
        header["architecture"] = json.dumps(fields)
        return header, tensors, f"architecture with {name}={str(fields[name])[:60]}"
    name = draw(st.sampled_from([*tensors, "params.other"]))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    with np.errstate(invalid="ignore"):
        value = np.full(shape, draw(st.floats(width=32)), draw(st.sampled_from(["f4", "f8", "i4"])))
    return header, tensors | {name: value}, f"tensor {name} as {value.dtype}{shape}"


# --- folders of runs -----------------------------------------------------------------------------

_STUDY = Path(__file__).parents[1] / "results" / "cifar10_subset"


@st.composite
def run_folders(draw: st.DrawFn) -> Attempt:
    """A report about a folder in which one file is damaged or missing."""
    names = sorted(path.name for path in _STUDY.iterdir() if path.suffix in (".json", ".md"))
    name = draw(st.sampled_from([n for n in names if n != "README.md"]))
    data = (_STUDY / name).read_bytes()
    at = draw(st.integers(0, len(data) - 1))
    content = draw(
        st.one_of(
            st.none(),
            st.just(data[:at]),
            st.binary(min_size=1, max_size=4).map(lambda new: data[:at] + new + data[at + 4 :]),
            _JSON.map(lambda value: json.dumps(value).encode()),
        )
    )

    def call(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as own:
            copied = Path(shutil.copytree(_STUDY, Path(own) / "study"))
            (copied / name).unlink()
            if content is not None:
                (copied / name).write_bytes(content)
            write_report([copied], folder / "report.html")

    changed = "removed" if content is None else f"changed at {at}"
    return Attempt("run folder", f"{name} {changed}", call, is_bad=False)


ATTEMPTS = st.one_of(
    configurations(),
    configurations(),
    loss_calls(),
    loss_names(),
    functions(),
    command_lines(),
    config_files(),
    loss_files(),
    loss_files(),
    run_folders(),
)


def run(num_examples: int, seed: int) -> collections.Counter[tuple[str, str]]:
    """Make so many attempts; counts them by surface and outcome, and tells of those that fail."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()

    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    @given(ATTEMPTS)
    def attempt(attempt: Attempt) -> None:
        faulthandler.dump_traceback_later(SECONDS_FOR_ONE, exit=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = check(attempt, Path(folder))
            except AssertionError as error:
                outcome = "FAILED"
                cause = error.__cause__ or error
                print(error, traceback.format_tb(cause.__traceback__)[-1], sep="\n", flush=True)
        faulthandler.cancel_dump_traceback_later()
        found[attempt.surface, outcome] += 1

    hypothesis.seed(seed)(attempt)()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    most = 16 * 2**30  # bytes: a file that asks for more than the machine has is noticed
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    counts = run(arguments.examples, arguments.seed)
    for (surface, outcome), count in sorted(counts.items()):
        print(f"{surface:14} {outcome:16} {count:6}")
    failed = sum(count for (_, outcome), count in counts.items() if outcome == "FAILED")
    print(f"{sum(counts.values())} attempts, {failed} failed")
    raise SystemExit(bool(failed))
