"""How far a run is: a bar on a terminal, a plain line for each report in a log file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left, {rate_fmt}{postfix}"


@contextlib.contextmanager
def telling(
    name: str, unit: str, *, first: int, total: int, progress: bool
) -> Iterator[Callable[[int, str | None], None]]:
    """Tell on the standard error how far something is.

    Gives a function of how many units are done and, where there is something to report, a text.
    Without `progress` it tells nothing.
    """
    told = {"initial": first, "total": total, "unit": unit}
    began, is_terminal = time.monotonic(), sys.stderr.isatty()
    with tqdm(desc=name, disable=not (progress and is_terminal), **told) as bar:

        def tell(done: int, text: str | None) -> None:
            if text is not None:
                bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)
            if text is not None and progress and not is_terminal:
                seconds = time.monotonic() - began
                how = {"prefix": name, "postfix": text, "bar_format": _LINE}
                line = tqdm.format_meter(done, elapsed=seconds, **how, **told)
                print(line, file=sys.stderr, flush=True)

        yield tell
