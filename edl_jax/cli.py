"""The command line, made from the configuration dataclasses."""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from edl_jax.config_files import load_config
from edl_jax.errors import EDLError, Preempted, ProcessError, RunFolderError
from edl_jax.evolution import PretrainConfig
from edl_jax.evolution.pretraining import pretrain
from edl_jax.losses import PRETRAINED, EvolvedLoss
from edl_jax.losses.by_name import resolve_loss
from edl_jax.runs.compile_cache import keep_compiled
from edl_jax.runs.exchange import in_any
from edl_jax.runs.folder import default_run_dir, writing
from edl_jax.runs.joining import Processes
from edl_jax.runs.locks import locked
from edl_jax.runs.preemption import EXIT_PREEMPTED, Terminated, exit_status
from edl_jax.runs.processes import is_first
from edl_jax.runs.storage import user_path
from edl_jax.runs.tensorboard import add_results
from edl_jax.studies import (
    AblateConfig,
    CompareConfig,
    DemoConfig,
    InspectConfig,
    TransferConfig,
    ablate,
    compare,
    demo,
    inspect,
    transfer,
)
from edl_jax.studies.figures import check_matplotlib, save
from edl_jax.studies.plots import plot_evolution, plot_loss, plot_surface, plot_training
from edl_jax.studies.results import StudyResults
from edl_jax.studies.screen import on_screen
from edl_jax.tools import EXIT_REFUSED, TOOLS, run_tool
from edl_jax.training import TrainConfig, train

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Arguments(Generic[Config]):
    """What every command takes besides its configuration."""

    settings: Annotated[Config, tyro.conf.arg(name="")]
    config: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Python file with a `get_config()`; the other arguments override what it gives."""
    run_dir: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Run folder, where a run of the same settings resumes; default: runs/COMMAND-DATE-TIME."""
    quiet: bool = False
    """Print nothing but errors, and the run folder where none was given."""
    processes: Processes = Processes()
    """How to find the other processes of the run (pretrain and train)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `edl COMMAND [ARGUMENTS]`.

    Returns:
      The exit status: 0, `EXIT_REFUSED` for a request that cannot be met, `EXIT_PREEMPTED` for a
      run that SIGTERM stopped and that has saved what it needs to resume, `EXIT_INTERRUPTED` for
      Ctrl-C, after which a run resumes from what was saved before.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr never fails at a character by itself
        sys.stdout.reconfigure(errors="replace")
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in TOOLS:
        return run_tool(argv[0], argv[1:])
    if not argv or argv[0] not in _COMMANDS:
        return _usage(argv)
    name, *rest = argv
    config_type, run, summary = _COMMANDS[name]
    run_dir = None  # told in errors if it was not chosen by the user
    try:
        default = _configured(rest, config_type)
        arguments = tyro.cli(
            Arguments[config_type],
            args=rest,
            default=Arguments(default),
            prog=f"edl {name}",
            description=summary,
        )
        if arguments.run_dir is None:
            folder = run_dir = default_run_dir(name)
        else:
            folder = user_path(arguments.run_dir)
        keep_compiled()
        progress = not arguments.quiet and sys.stderr.isatty()
        unseen = contextlib.redirect_stdout(io.StringIO())
        with unseen if arguments.quiet else contextlib.nullcontext():
            run(arguments.settings, folder, progress)
        if arguments.quiet and run_dir and is_first():
            print(run_dir)
        in_any(False)  # or those that end long before the first would count as gone
    except EDLError as error:
        is_resumable = isinstance(error, Preempted | ProcessError | RunFolderError)
        where = f" Add --run-dir {run_dir} to the command." if run_dir and is_resumable else ""
        print(f"edl {name}: {error}{where}", file=sys.stderr)
        return EXIT_PREEMPTED if isinstance(error, Preempted) else EXIT_REFUSED
    except KeyboardInterrupt as stop:
        where = f", with --run-dir {run_dir}," if run_dir else ""
        by = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
        print(
            f"\nedl {name}: stopped by {by}. What was saved is kept: the same command{where} "
            "resumes from there.",
            file=sys.stderr,
        )
        return exit_status(stop)
    return 0


def _configured(argv: Sequence[str], config_type: type[Config]) -> Config:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    path = parser.parse_known_args(argv)[0].config
    return config_type() if path is None else load_config(path, config_type)


def _pretrain(config: PretrainConfig, run_dir: Path, progress: bool) -> None:
    check_matplotlib()
    result = pretrain(config, run_dir=run_dir, progress=progress)
    if not is_first():
        return
    num_classes = config.class_counts[len(config.class_counts) // 2]
    losses = {"evolved": result.loss}
    figures = {
        "evolution": plot_evolution(result.history, result.held_out),
        "loss": plot_loss(losses, num_classes=num_classes),
    }
    if num_classes > 2:
        figures["surface"] = plot_surface(losses, num_classes=num_classes)
    _draw(figures, run_dir)
    _print_metrics(result.metrics)
    print(f"\nThe loss is in {run_dir / 'loss.safetensors'}")


def _train(config: TrainConfig, run_dir: Path, progress: bool) -> None:
    is_evolved = config.loss in PRETRAINED or config.loss.endswith(".safetensors")
    loss = resolve_loss(config.loss) if is_evolved else None
    result = train(config, loss=loss, run_dir=run_dir, progress=progress)
    if not is_first():
        return
    print(f"Data: {result.source}")
    print(f"Test accuracy after the last epoch: {100 * result.test_accuracy:.2f} %")
    print(f"Negative log-likelihood: {result.test_nll:.3f} nats")
    print(f"Expected calibration error: {100 * result.test_calibration_error:.2f} %")
    print(f"Run folder: {run_dir}")
    if not importlib.util.find_spec("matplotlib"):
        return
    figures = {"training": plot_training(result.history)}
    if isinstance(loss, EvolvedLoss):
        num_classes = loss.architecture.num_classes or 10
        if num_classes > 2:
            figures["surface"] = plot_surface({"evolved": loss}, num_classes=num_classes)
    _draw(figures, run_dir)


def _compare(config: CompareConfig, run_dir: Path, progress: bool) -> None:
    _show(compare(config, run_dir=run_dir, progress=progress).results, run_dir)


def _ablate(config: AblateConfig, run_dir: Path, progress: bool) -> None:
    _show(ablate(config, run_dir=run_dir, progress=progress).results, run_dir)


def _demo(config: DemoConfig, run_dir: Path, progress: bool) -> None:
    evolved, compared = demo(config, run_dir, progress=progress, say=_say)
    print("\nThe evolved loss, on synthetic pairs it was not evolved on:")
    _print_metrics(evolved.metrics)
    print(f"\nOn real images ({compared.source}):\n")
    _show(compared.results, run_dir / "compare")
    print(f"Run folder, with evolution.png, loss.png and accuracy.png: {run_dir}")


def _inspect(config: InspectConfig, run_dir: Path, progress: bool) -> None:
    del progress  # it is over in seconds
    _show(inspect(config, run_dir=run_dir), run_dir)


def _transfer(config: TransferConfig, run_dir: Path, progress: bool) -> None:
    _show(transfer(config, run_dir=run_dir, progress=progress), run_dir)


def _show(results: StudyResults, run_dir: Path) -> None:
    """Print what a study found: on one screen of a terminal, or all of it into a file or a pipe."""
    print(on_screen(results, run_dir, shutil.get_terminal_size() if sys.stdout.isatty() else None))


def _draw(figures: Mapping[str, Any], run_dir: Path) -> None:
    """Write figures by name, for the eye and for TensorBoard."""
    with locked(run_dir), writing("a figure", run_dir):
        for name, figure in figures.items():
            save(figure, run_dir / f"{name}.png")
    add_results(run_dir, images={name: run_dir / f"{name}.png" for name in figures})


def _say(line: str) -> None:
    print(line, flush=True)


def _print_metrics(metrics: dict[str, float]) -> None:
    """The metrics over all pairs; those by class count and regime are in the run folder."""
    for name, value in metrics.items():
        if " classes: " not in name and "/" not in name:
            print(f"  {name:38} {value:.4f}")


_COMMANDS: dict[str, tuple[type, Any, str]] = {
    "pretrain": (PretrainConfig, _pretrain, "Evolve a loss on synthetic prediction-label pairs."),
    "train": (TrainConfig, _train, "Train a classifier on real images with one loss."),
    "compare": (CompareConfig, _compare, "Train with several losses over the same seeds."),
    "ablate": (AblateConfig, _ablate, "Compare settings of the evolution over many seeds."),
    "transfer": (TransferConfig, _transfer, "Compare outputs of trainings with synthetic pairs."),
    "demo": (DemoConfig, _demo, "Evolve a loss, then train with cross-entropy and with it."),
    "inspect": (InspectConfig, _inspect, "Look at one loss: its parts, its shape, its gradient."),
}


def _usage(argv: Sequence[str]) -> int:
    asked_for_help = argv[:1] in (["-h"], ["--help"])
    stream = sys.stdout if asked_for_help or not argv else sys.stderr
    if argv and not asked_for_help:
        print(f"edl: unknown command {argv[0]!r}", file=stream)
    print(
        "usage: edl COMMAND [ARGUMENTS]; edl COMMAND --help explains each argument\n", file=stream
    )
    summaries = {name: summary for name, (*_, summary) in [*_COMMANDS.items(), *TOOLS.items()]}
    for name, summary in summaries.items():
        print(f"  {name:10} {summary}", file=stream)
    return 0 if asked_for_help else EXIT_REFUSED
