"""The host's side of a run: chunks of generations, and a report between two of them."""

import contextlib
from functools import partial
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from edl_jax.errors import Preempted
from edl_jax.evolution.config import PretrainConfig
from edl_jax.evolution.run import Evolution, State
from edl_jax.runs.checkpoints import Checkpoints, open_checkpoints
from edl_jax.runs.exchange import in_any, others_needed
from edl_jax.runs.folder import RunFolder, as_finite
from edl_jax.runs.preemption import sigterm_noticed
from edl_jax.runs.processes import first_does
from edl_jax.runs.resuming import RowLog, resume
from edl_jax.runs.tensorboard import Write, open_events

Row = dict[str, Any]
HELD_OUT_FILE = "held_out.jsonl"


class Evolved(NamedTuple):
    """What a run has come to.

    Attributes:
      state: the last state, on the host.
      rows: metrics of each generation.
      held_out: metrics of the best on held-out pairs after each chunk of generations.
    """

    state: State
    rows: list[Row]
    held_out: list[Row]


def run_all(
    config: PretrainConfig,
    evolution: Evolution,
    key: jax.Array,
    *,
    folder: RunFolder | None = None,
    progress: bool = False,
) -> Evolved:
    """Run all generations, in chunks that stay on the devices.

    Args:
      config: the run's configuration.
      evolution: what to run.
      key: key of the run.
      folder: where metrics and checkpoints go; what is found there is taken up. Of several
        processes, the first alone has one.
      progress: whether to show a progress bar.

    Raises:
      EDLError: if every network of a generation fails.
      Preempted: on SIGTERM, after saving; only with a folder.
      ProcessError: if another process is gone.
      RunFolderError: if the folder is damaged, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(others_needed())
        has_folder = in_any(folder is not None)
        checkpoints = first_does(
            partial(open_checkpoints, folder, config.keep_checkpoints), share=False
        )
        if checkpoints is not None:
            stack.enter_context(checkpoints)
        terminated = stack.enter_context(sigterm_noticed()) if has_folder else lambda: False
        start = evolution.init(key)
        (first, rows, held_out), state = first_does(
            partial(_taken_up, start, folder, checkpoints, config.generations_per_chunk),
            like=start,
        )
        write = first_does(partial(open_events, stack, folder, first), share=False)
        bar = stack.enter_context(
            tqdm(
                total=config.generations,
                initial=first,
                unit="gen",
                desc="evolve",
                disable=not progress,
            )
        )
        while first < config.generations:
            done = min(first + config.generations_per_chunk, config.generations)
            state, new = evolution.advance(state, done - first)
            watched, host = evolution.measure(state), jax.device_get(state)
            rows, held_out = rows + new, [*held_out, watched]
            first_does(partial(_save, folder, checkpoints, write, done, host, new, watched))
            bar.update(done - first)
            bar.set_postfix_str(f"best fitness {new[-1]['best_fitness']:.3g}")
            first = done
            if has_folder and in_any(terminated()):
                raise Preempted(
                    f"told to stop by SIGTERM after generation {first} of {config.generations}; "
                    "everything is saved. Give the same command again to resume."
                )
    return Evolved(jax.device_get(state), rows, held_out)


def _taken_up(
    start: State, folder: RunFolder | None, checkpoints: Checkpoints | None, per_chunk: int
) -> tuple[tuple[int, list[Row], list[Row]], State]:
    """How many generations a folder has of the run, their rows, and what they have come to."""
    if folder is None or checkpoints is None:
        return (0, [], []), start

    def ends(step: int) -> list[int]:
        """The last generation of each chunk."""
        return [min(end, step) - 1 for end in range(per_chunk, step + per_chunk, per_chunk)]

    logs = (
        RowLog("metrics.jsonl", "generation", lambda step: list(range(step))),
        RowLog(HELD_OUT_FILE, "generation", ends),
    )
    first, state, (rows, held_out) = resume(folder, checkpoints, start, logs, per_chunk)
    return (first, rows, held_out), state


def _save(
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    write: Write | None,
    done: int,
    state: State,
    rows: list[Row],
    watched: Row,
) -> None:
    if folder is None or checkpoints is None or write is None:
        return
    folder.append_rows(as_finite(row) for row in rows)
    folder.append_rows([as_finite(watched)], HELD_OUT_FILE)
    for row in rows:
        write(row["generation"], row)
    measured = {f"held_out/{x}": value for x, value in watched.items() if x != "generation"}
    write(watched["generation"], measured)
    checkpoints.save(done, state, score=watched.get("pairwise_accuracy", 0.0))
