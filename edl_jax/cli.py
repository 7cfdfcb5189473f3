"""The command line, made from the configuration dataclasses."""

import contextlib
import importlib.util
import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edl_jax.arguments import Arguments, SweepArguments, parse
from edl_jax.errors import EDLError, Preempted, ProcessError, RunFolderError
from edl_jax.evolution import PretrainConfig
from edl_jax.losses import PRETRAINED, EvolvedLoss
from edl_jax.losses.by_name import resolve_loss
from edl_jax.runs.compile_cache import keep_compiled
from edl_jax.runs.folder import default_run_dir
from edl_jax.runs.locks import locked
from edl_jax.runs.preemption import EXIT_PREEMPTED, EXIT_REFUSED, Terminated, exit_status
from edl_jax.runs.processes import in_any, is_first
from edl_jax.runs.storage import user_path
from edl_jax.runs.tensorboard import add_results
from edl_jax.studies import (
    AblateConfig,
    CardConfig,
    CompareConfig,
    CoverageConfig,
    DemoConfig,
    Study,
    ablate,
    card,
    compare,
    coverage,
    demo,
)
from edl_jax.studies.figures import (
    PAGE,
    check_libraries,
    plot_evolution,
    plot_training,
    write_page,
)
from edl_jax.studies.shape import plot_loss, plot_surface
from edl_jax.studies.tables import readable
from edl_jax.tools import TOOLS, run_tool
from edl_jax.training import TrainConfig, train


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
        kind: Any = SweepArguments if name in _SWEEPS else Arguments
        arguments = parse(kind, config_type, rest, f"edl {name}", summary)
        if arguments.run_dir is None:
            folder = run_dir = default_run_dir(name)
        else:
            folder = user_path(arguments.run_dir)
        keep_compiled()
        # A run tells its progress in plain lines where there is no terminal.
        is_told = name in ("pretrain", "train") or sys.stderr.isatty()
        progress = not arguments.quiet and is_told
        unseen = contextlib.redirect_stdout(io.StringIO())
        where = (arguments.executor,) if isinstance(arguments, SweepArguments) else ()
        with unseen if arguments.quiet else contextlib.nullcontext():
            run(arguments.settings, folder, progress, *where)
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


def _pretrain(config: PretrainConfig, run_dir: Path, progress: bool) -> None:
    from edl_jax.evolution.pretraining import pretrain  # loads matplotlib, by evosax's problems

    check_libraries()
    result = pretrain(config, run_dir=run_dir, progress=progress)
    if not is_first():
        return
    num_classes = config.class_counts[len(config.class_counts) // 2]
    losses = {"evolved": result.loss}
    figures = {
        "evolution": (
            "The course of the evolution.",
            plot_evolution(result.history, result.held_out),
        ),
        "loss": ("The loss beside cross-entropy.", plot_loss(losses, num_classes=num_classes)),
    }
    if num_classes > 2:
        figures["surface"] = _surface(result.loss, num_classes)
    _write_page("Evolved loss", _overall(result.metrics), figures, run_dir)
    _print_metrics(result.metrics)
    print(f"\nThe loss is in {run_dir / 'loss.safetensors'}")


def _train(config: TrainConfig, run_dir: Path, progress: bool) -> None:
    is_evolved = config.loss in PRETRAINED or config.loss.endswith(".safetensors")
    loss = resolve_loss(config.loss) if is_evolved else None
    has_plots = importlib.util.find_spec("matplotlib") is not None
    if has_plots:
        check_libraries()
    result = train(config, loss=loss, run_dir=run_dir, progress=progress)
    if not is_first():
        return
    print(f"Data: {result.source}")
    print(f"Test accuracy after the last epoch: {100 * result.test_accuracy:.2f} %")
    print(f"Negative log-likelihood: {result.test_nll:.3f} nats")
    print(f"Expected calibration error: {100 * result.test_calibration_error:.2f} %")
    print(f"Run folder: {run_dir}")
    figures = {}
    if has_plots:
        figures["training"] = ("Loss and accuracy over the epochs.", plot_training(result.history))
        if isinstance(loss, EvolvedLoss) and (loss.architecture.num_classes or 10) > 2:
            figures["surface"] = _surface(loss, loss.architecture.num_classes or 10)
    names = ("test_accuracy", "test_nll", "test_calibration_error")
    results = {name: getattr(result, name) for name in names}
    _write_page(f"Training with {config.loss}", results, figures, run_dir)


def _compare(config: CompareConfig, run_dir: Path, progress: bool, executor: str | None) -> None:
    _show(compare(config, run_dir=run_dir, executor=executor, progress=progress), run_dir)


def _ablate(config: AblateConfig, run_dir: Path, progress: bool, executor: str | None) -> None:
    _show(ablate(config, run_dir=run_dir, executor=executor, progress=progress), run_dir)


def _coverage(config: CoverageConfig, run_dir: Path, progress: bool, executor: str | None) -> None:
    _show(coverage(config, run_dir=run_dir, executor=executor, progress=progress), run_dir)


def _demo(config: DemoConfig, run_dir: Path, progress: bool) -> None:
    evolved, study = demo(config, run_dir, progress=progress, say=_say)
    print("\nThe evolved loss, on synthetic pairs it was not evolved on:")
    _print_metrics(evolved.metrics)
    print("\nOn real images:\n")
    _show(study, run_dir / "compare")
    print(f"Run folder, with evolution.png and loss.png: {run_dir}")


def _card(config: CardConfig, run_dir: Path, progress: bool) -> None:
    del progress  # it is over in seconds
    _show(card(config, run_dir=run_dir), run_dir)


def _show(study: Study, run_dir: Path) -> None:
    """Print the first table, as wide as a terminal, and whole into a file or a pipe."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(readable(study.table).to_string(index=False, line_width=width))
    print(f"\nTables, figures and how it was done: {run_dir / PAGE}")
    if study.failed:
        raise EDLError(
            f"{len(study.failed)} of {len(study.cells)} cells failed, the first with "
            f"{study.failed[0]}. The same command tries them again."
        )


def _surface(loss: EvolvedLoss, num_classes: int) -> tuple[str, Any]:
    caption = "The loss and its gradient over the two largest probabilities."
    return caption, plot_surface({"evolved": loss}, num_classes=num_classes)


def _write_page(
    title: str, results: Mapping[str, float], figures: Mapping[str, tuple[str, Any]], run_dir: Path
) -> None:
    """Write the page of a run, and show its figures in TensorBoard."""
    lines = [f"| {name} | {value:.4f} |" for name, value in results.items()]
    table = "\n".join(["| metric | value |", "| --- | ---: |", *lines])
    with locked(run_dir):
        write_page(run_dir, title, [table], figures)
    add_results(run_dir, images={name: run_dir / f"{name}.png" for name in figures})


def _say(line: str) -> None:
    print(line, flush=True)


def _overall(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics over all pairs; those by class count and regime are in the run folder."""
    return {name: x for name, x in metrics.items() if " classes: " not in name and "/" not in name}


def _print_metrics(metrics: Mapping[str, float]) -> None:
    for name, value in _overall(metrics).items():
        print(f"  {name:38} {value:.4f}")


_COMMANDS: dict[str, tuple[type, Any, str]] = {
    "pretrain": (PretrainConfig, _pretrain, "Evolve a loss on synthetic prediction-label pairs."),
    "train": (TrainConfig, _train, "Train a classifier on real images with one loss."),
    "compare": (CompareConfig, _compare, "Train with several losses over the same seeds."),
    "ablate": (AblateConfig, _ablate, "Compare settings of the evolution over many seeds."),
    "coverage": (CoverageConfig, _coverage, "Compare outputs of trainings with synthetic pairs."),
    "demo": (DemoConfig, _demo, "Evolve a loss, then train with cross-entropy and with it."),
    "card": (CardConfig, _card, "Look at one loss: its parts, its shape, its gradient."),
}
_SWEEPS = ("compare", "ablate", "coverage")


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
