"""The small commands, which need no configuration and no run folder: losses, report, export."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence

from edl_jax.errors import ConfigError, EDLError
from edl_jax.losses import PRETRAINED, EvolvedLoss
from edl_jax.losses.by_name import list_losses, resolve_loss
from edl_jax.losses.export import export_loss
from edl_jax.runs.preemption import EXIT_REFUSED
from edl_jax.runs.storage import user_path
from edl_jax.studies.report import write_report


def run_tool(name: str, argv: Sequence[str]) -> int:
    """Run one of `TOOLS` with its arguments; returns the exit status, 0 or `EXIT_REFUSED`."""
    tool, summary = TOOLS[name]
    try:
        tool(argparse.ArgumentParser(prog=f"edl {name}", description=summary), argv)
    except SystemExit as stop:
        return EXIT_REFUSED if stop.code else 0
    except EDLError as error:
        print(f"edl {name}: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


def _losses(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.parse_args(argv)
    wrapped = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,  # 80 where the output is no terminal
        initial_indent="    ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,  # a link that is cut is none
    )
    for name, summary, reference in list_losses():
        print("\n".join([name, *map(wrapped.fill, (summary, reference))]), end="\n\n")
    print("Or with options: focal(gamma=3). Or a loss file: mine.safetensors.")


def _report(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "runs", nargs="+", help="folders of finished studies, trainings or pretrainings"
    )
    parser.add_argument("--out", default="report.html", help="the page (default: report.html)")
    arguments = parser.parse_args(argv)
    write_report(arguments.runs, arguments.out)
    print(f"The report is in {user_path(arguments.out)}")


def _export(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    named = ", ".join(PRETRAINED)
    parser.add_argument("loss", help=f"an evolved loss: {named}, or a loss file (*.safetensors)")
    parser.add_argument("--out", default="exported", help="the folder (default: exported)")
    arguments = parser.parse_args(argv)
    out = user_path(arguments.out)
    loss = resolve_loss(arguments.loss)
    if not isinstance(loss, EvolvedLoss):
        raise ConfigError(
            f"{arguments.loss!r} is no evolved loss; expected {named}, or a loss file "
            "(*.safetensors)."
        )
    try:
        paths = export_loss(loss, out)
    except OSError as error:
        raise EDLError(f"cannot write to {out} ({error}); give another --out.") from error
    print("\n".join(map(str, paths)))


TOOLS: dict[str, tuple[Callable[[argparse.ArgumentParser, Sequence[str]], None], str]] = {
    "report": (_report, "Gather run folders into one HTML page."),
    "export": (_export, "Write an evolved loss for use outside: StableHLO, a PyTorch module."),
    "losses": (_losses, "List the losses that --loss and --losses take, with their references."),
}
