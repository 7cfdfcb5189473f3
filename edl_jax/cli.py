"""The commands, a function each, and what they share."""

import argparse
import contextlib
import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edl_jax import studies
from edl_jax.arguments import Arguments, SweepArguments, parse
from edl_jax.errors import ConfigError, EDLError, Preempted, ProcessError, RunFolderError
from edl_jax.evolution import PretrainConfig
from edl_jax.losses import PRETRAINED, EvolvedLoss
from edl_jax.losses.by_name import list_losses, list_methods, resolve_loss
from edl_jax.losses.export import export_loss
from edl_jax.runs.compile_cache import keep_compiled
from edl_jax.runs.folder import default_run_dir, locked
from edl_jax.runs.preemption import EXIT_PREEMPTED, EXIT_REFUSED, Terminated, exit_status
from edl_jax.runs.processes import in_any, is_first
from edl_jax.runs.storage import user_path
from edl_jax.studies.figures import PAGE, check_libraries, plot_evolution, plot_training, write_page
from edl_jax.studies.report import write_report
from edl_jax.studies.shape import plot_loss
from edl_jax.studies.tables import readable
from edl_jax.training import TrainConfig, train


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edl COMMAND [ARGUMENTS]`; returns the exit status.

    `EXIT_PREEMPTED` is that of a run which SIGTERM stopped, once it had saved all it needs.
    """
    if hasattr(sys.stdout, "reconfigure"):  # stderr never fails at a character by itself
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name not in _COMMANDS:
        is_help = name in ("-h", "--help")
        said = [f"edl: unknown command {name!r}"] if name and not is_help else []
        said += ["usage: edl COMMAND [ARGUMENTS]; edl COMMAND --help explains each argument\n"]
        said += [f"  {known:10} {_about(known)}" for known in _COMMANDS]
        print("\n".join(said), file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else EXIT_REFUSED
    config_type, command = _COMMANDS[name]
    takes = inspect.signature(command).parameters
    prog, about = f"edl {name}", _about(name)
    run_dir, advice = None, ""
    try:
        if config_type is None:
            command(argparse.ArgumentParser(prog=prog, description=about), rest)
            return 0
        # A learned loss is a loss.
        rest = [re.sub("^--method(?==|$)", "--loss", word) for word in rest]
        kind: Any = SweepArguments if "executor" in takes else Arguments
        arguments = parse(kind, config_type, rest, prog, about)
        is_chosen = arguments.run_dir is None  # by this command, which tells it then
        run_dir = default_run_dir(name) if is_chosen else user_path(arguments.run_dir)
        advice = f" Add --run-dir {run_dir} to the command." if is_chosen else ""
        keep_compiled()
        # A run tells its progress in plain lines where there is no terminal.
        shows_progress = name in ("pretrain", "train") or sys.stderr.isatty()
        offered = {
            "run_dir": run_dir,
            "progress": shows_progress and not arguments.quiet,
            "executor": getattr(arguments, "executor", None),
        }
        taken = {key: value for key, value in offered.items() if key in takes}
        with contextlib.redirect_stdout(io.StringIO() if arguments.quiet else sys.stdout):
            result = command(arguments.settings, **taken)
            if isinstance(result, studies.Study):
                _show(result, run_dir)
        if arguments.quiet and is_chosen and is_first():
            print(run_dir)
        in_any(False)  # or those that end long before the first would count as gone
    except SystemExit as stop:  # after help, or what is wrong with the arguments
        return EXIT_REFUSED if stop.code else 0
    except EDLError as error:
        is_resumable = isinstance(error, Preempted | ProcessError | RunFolderError)
        print(f"{prog}: {error}{advice if is_resumable else ''}", file=sys.stderr)
        return EXIT_PREEMPTED if isinstance(error, Preempted) else EXIT_REFUSED
    except KeyboardInterrupt as stop:
        if run_dir is None:
            raise
        by = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
        kept = f"What was saved is kept: the same command resumes from there.{advice}"
        print(f"\n{prog}: stopped by {by}. {kept}", file=sys.stderr)
        return exit_status(stop)
    return 0


def _pretrain(config: PretrainConfig, run_dir: Path, progress: bool) -> None:
    """Evolve a loss on synthetic prediction-label pairs."""
    from edl_jax.evolution.pretraining import pretrain  # loads matplotlib, by evosax's problems

    check_libraries()
    result = pretrain(config, run_dir=run_dir, progress=progress)
    if not is_first():
        return
    num_classes = config.class_counts[len(config.class_counts) // 2]
    course = plot_evolution(result.history, result.held_out)
    beside = plot_loss({"evolved": result.loss}, num_classes=num_classes)
    figures = {"evolution": ("The course of the evolution.", course)}
    figures |= {"loss": ("The loss beside cross-entropy.", beside)}
    _tell("Evolved loss", _overall(result.metrics), figures, run_dir)
    print(f"\nThe loss is in {run_dir / 'loss.safetensors'}")


def _train(config: TrainConfig, run_dir: Path, progress: bool) -> None:
    """Train a classifier on real images with one loss."""
    if config.loss.endswith(".safetensors"):
        resolve_loss(config.loss)  # refuses a file that cannot be used before data is loaded
    check_libraries()
    result = train(config, run_dir=run_dir, progress=progress)
    if not is_first():
        return
    figures = {"training": ("Loss and accuracy over the epochs.", plot_training(result.history))}
    print(f"Data: {result.source}")
    names = ("test_accuracy", "test_nll", "test_calibration_error")
    results = {name: getattr(result, name) for name in names}
    _tell(f"Training with {config.loss}", results, figures, run_dir)
    print(f"Run folder: {run_dir}")


def _demo(config: studies.DemoConfig, run_dir: Path, progress: bool) -> None:
    """Evolve a loss, then train with cross-entropy and with it."""
    evolved, study = studies.demo(
        config, run_dir, progress=progress, say=lambda line: print(line, flush=True)
    )
    print("\nThe evolved loss, on synthetic pairs it was not evolved on:")
    _print(_overall(evolved.metrics))
    print("\nOn real images:\n")
    _show(study, run_dir / "compare")
    print(f"Run folder, with evolution.png and loss.png: {run_dir}")


def _report(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Gather run folders into one HTML page."""
    parser.add_argument("runs", nargs="+", help="folders of finished commands")
    parser.add_argument("--out", default="report.html", help="the page (default: %(default)s)")
    arguments = parser.parse_args(argv)
    write_report(arguments.runs, arguments.out)
    print(f"The report is in {user_path(arguments.out)}")


def _export(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Write an evolved loss for use outside: StableHLO, a PyTorch module."""
    expected = f"{', '.join(PRETRAINED)}, or a loss file (*.safetensors)"
    parser.add_argument("loss", help=f"an evolved loss: {expected}")
    parser.add_argument("--out", default="exported", help="the folder (default: %(default)s)")
    arguments = parser.parse_args(argv)
    out, loss = user_path(arguments.out), resolve_loss(arguments.loss)
    if not isinstance(loss, EvolvedLoss):
        raise ConfigError(f"{arguments.loss!r} is no evolved loss; expected {expected}.")
    try:
        print("\n".join(map(str, export_loss(loss, out))))
    except OSError as error:
        raise EDLError(f"cannot write to {out} ({error}); give another --out.") from error


def _losses(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """List the losses that --loss and --losses take, with their references."""
    parser.parse_args(argv)
    _list(list_losses())
    print("Or with options: focal(gamma=3). Or a loss file: mine.safetensors.")


def _methods(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """List the learned losses that --method and --methods take, with their references."""
    parser.parse_args(argv)
    _list(list_methods())
    print("Or with options: elf(generations=5).")


def _list(entries: Sequence[Sequence[str]]) -> None:
    columns = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(  # a link that is cut is none
        columns, "    ", "    ", break_on_hyphens=False, break_long_words=False
    )
    for name, *texts in entries:
        print("\n".join([name, *map(wrapper.fill, texts)]), end="\n\n")


def _show(study: studies.Study, run_dir: Path) -> None:
    """Print the first table, as wide as a terminal, and whole into a file or a pipe."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(readable(study.table).to_string(index=False, line_width=width))
    print(f"\nTables, figures and how it was done: {run_dir / PAGE}")
    if study.failed:
        raise EDLError(
            f"{len(study.failed)} of {len(study.cells)} cells failed, the first with "
            f"{study.failed[0]}. The same command tries them again."
        )


def _tell(
    title: str, results: Mapping[str, float], figures: Mapping[str, tuple[str, Any]], run_dir: Path
) -> None:
    """Write the page of a run, and print its results."""
    lines = [f"| {name} | {value:.4f} |" for name, value in results.items()]
    table = "\n".join(["| metric | value |", "| --- | ---: |", *lines])
    with locked(run_dir):
        write_page(run_dir, title, [table], figures)
    _print(results)


def _overall(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics over all pairs; those by class count and regime are in the run folder."""
    return {name: x for name, x in metrics.items() if " classes: " not in name and "/" not in name}


def _print(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        print(f"  {name:38} {value:.4f}")


# The configuration of each command and what runs it, whose docstring begins with the help. It takes
# what it names of `run_dir`, `progress` and `executor`; a study that it returns is shown. Without a
# configuration it takes an `argparse.ArgumentParser`, to complete, and the arguments.
_COMMANDS: dict[str, tuple[type | None, Callable[..., Any]]] = {
    "pretrain": (PretrainConfig, _pretrain),
    "train": (TrainConfig, _train),
    "compare": (studies.CompareConfig, studies.compare),
    "ablate": (studies.AblateConfig, studies.ablate),
    "coverage": (studies.CoverageConfig, studies.coverage),
    "demo": (studies.DemoConfig, _demo),
    "card": (studies.CardConfig, studies.card),
    "report": (None, _report),
    "export": (None, _export),
    "losses": (None, _losses),
    "methods": (None, _methods),
}


def _about(name: str) -> str:
    return (_COMMANDS[name][1].__doc__ or "").partition("\n")[0]
