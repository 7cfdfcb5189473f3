"""The host's side of a training: chunks of steps, and a report after every epoch."""

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from edl_jax.errors import DivergedError, Preempted
from edl_jax.runs.checkpoints import Checkpoints, open_checkpoints
from edl_jax.runs.devices import to_every_device
from edl_jax.runs.exchange import in_any, others_needed
from edl_jax.runs.folder import RunFolder, as_finite
from edl_jax.runs.preemption import sigterm_noticed
from edl_jax.runs.processes import first_does
from edl_jax.runs.resuming import RowLog, resume
from edl_jax.runs.tensorboard import Write, open_events
from edl_jax.training.config import TrainConfig
from edl_jax.training.programs import TrainFunctions
from edl_jax.training.result import Row, TrainResult, epoch_rows, train_results
from edl_jax.training.steps import TrainState

Watch = Callable[[int, TrainState, jax.Array], None]


def run_training(
    config: TrainConfig,
    functions: TrainFunctions,
    seeds: Sequence[int],
    *,
    source: str = "",
    folder: RunFolder | None = None,
    progress: bool = False,
    report: Callable[[Row], None] = lambda row: None,
    test: bool = True,
    watch: Watch = lambda epoch, state, keys: None,
) -> list[TrainResult]:
    """Train with functions made before, from one seed or from as many as they were made for.

    Args:
      config: the settings that `functions` were made from.
      functions: from `make_train`.
      seeds: seeds of the trainings; one that the functions were made for without `num_seeds`.
      source: says where the data comes from.
      folder: where metrics and checkpoints go; what is found there is taken up. For one seed. Of
        several processes, the first alone has one.
      progress: whether to show a progress bar.
      report: called with the row of metrics of every epoch as it ends.
      test: whether to look at the test images at the end; with validation images and without this,
        nothing looks at them, and what is measured on them is NaN.
      watch: called with the epoch, the state and the keys of the steps: with epoch 0 before the
        first step, then as every epoch ends. The state's buffers are given away afterwards.

    Raises:
      DivergedError: if a training diverges.
      Preempted: on SIGTERM, after saving; only with a folder.
      ProcessError: if another process is gone.
      RunFolderError: if the folder is damaged, or cannot be written.
    """
    keys_init, keys = _keys(seeds, several=functions.num_seeds is not None)
    per_epoch, batch = functions.steps_per_epoch, config.batch_size
    with contextlib.ExitStack() as stack:
        stack.enter_context(others_needed())
        has_folder = in_any(folder is not None)
        checkpoints = first_does(
            partial(open_checkpoints, folder, config.keep_checkpoints), share=False
        )
        if checkpoints is not None:
            stack.enter_context(checkpoints)
        terminated = stack.enter_context(sigterm_noticed()) if has_folder else lambda: False
        start = jax.device_get(functions.init(keys_init))
        (done, rows), state = first_does(
            partial(_taken_up, start, folder, checkpoints, per_epoch), like=start
        )
        state = to_every_device(state, functions.mesh)
        total, saved = config.epochs * per_epoch, done
        first_step = rows[-1]["epoch"] + 1 if rows else 0
        write = first_does(partial(open_events, stack, folder, first_step), share=False)
        bar = stack.enter_context(_bar(config, functions, len(seeds), done, progress))
        seconds, images = 0.0, 0
        if done == 0:
            watch(0, state, keys)
        while done < total:
            count = min(config.steps_per_chunk, per_epoch - done % per_epoch)
            began = time.perf_counter()
            state = jax.block_until_ready(functions.advance(state, keys, count))
            seconds, images = seconds + time.perf_counter() - began, images + count * batch
            done += count
            _check_finite(state, functions, seeds, saved if has_folder else None, folder)
            bar.update(count * batch * len(seeds))
            stop = has_folder and in_any(terminated())
            new = []
            if done % per_epoch == 0:
                speed = images * len(seeds) / seconds
                new = epoch_rows(config, functions, state, seeds, done // per_epoch, speed)
                rows, seconds, images = rows + new, 0.0, 0
                bar.set_postfix_str(f"{new[0]['evaluated_on']} accuracy {new[0]['accuracy']:.3f}")
            if has_folder and (new or stop):
                first_does(partial(_save, folder, checkpoints, write, done, state, new))
                saved = done
            if new:
                watch(done // per_epoch, state, keys)
            for row in new:
                report(row)
            if stop and done < total:
                raise Preempted(
                    f"told to stop by SIGTERM after step {done} of {total}; everything is saved. "
                    "Give the same command again to resume."
                )
        return train_results(config, functions, state, seeds, rows, source, test)


def _keys(seeds: Sequence[int], *, several: bool) -> tuple[jax.Array, jax.Array]:
    """Keys of the initial states and of the steps."""
    pairs = [jax.random.split(jax.random.key(seed)) for seed in seeds]
    if not several:
        return pairs[0][0], pairs[0][1]
    stacked = jax.numpy.stack(pairs)
    return stacked[:, 0], stacked[:, 1]


def _bar(
    config: TrainConfig, functions: TrainFunctions, num_seeds: int, done: int, progress: bool
) -> tqdm:
    images = config.batch_size * num_seeds
    return tqdm(
        total=config.epochs * functions.steps_per_epoch * images,
        initial=done * images,
        desc=f"train {config.model}",
        unit="img",
        unit_scale=True,
        disable=not progress,
    )


def _taken_up(
    start: TrainState,
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    steps_per_epoch: int,
) -> tuple[tuple[int, list[Row]], TrainState]:
    """How many steps a folder has of the training, its rows, and the state after them."""
    if folder is None or checkpoints is None:
        return (0, []), start
    log = RowLog("metrics.jsonl", "epoch", lambda x: list(range(1, x // steps_per_epoch + 1)))
    step, state, (rows,) = resume(folder, checkpoints, start, [log], steps_per_epoch)
    return (step, rows), state


def _save(
    folder: RunFolder | None,
    checkpoints: Checkpoints | None,
    write: Write | None,
    step: int,
    state: TrainState,
    rows: list[Row],
) -> None:
    if folder is None or checkpoints is None or write is None:
        return
    score = -1e300  # within an epoch nothing is measured: never the best
    if rows:
        (row,) = rows
        folder.append_rows([as_finite(row)])
        write(row["epoch"], row)
        # Never the best by test accuracy: that would be choosing on the test images.
        score = row["accuracy"] if row["evaluated_on"] == "val" else -row["train_loss"]
    checkpoints.save(step, jax.device_get(state), score=score)


def _check_finite(
    state: TrainState,
    functions: TrainFunctions,
    seeds: Sequence[int],
    saved: int | None,
    folder: RunFolder | None,
) -> None:
    failed = np.atleast_1d(jax.device_get(state.failed_step))
    if not (failed >= 0).any():
        return
    which = int(np.argmax(failed >= 0))
    step = int(failed[which])
    if saved is None:
        kept = "No checkpoint was kept (no run folder)."
    elif not saved:
        kept = "It was before the first checkpoint."
    else:
        where = f" ({folder.path / 'checkpoints' / str(saved)})" if folder is not None else ""
        kept = f"The last good checkpoint is that of step {saved}{where}."
    raise DivergedError(
        f"training diverged: the loss or its gradient is not finite at step {step} (epoch "
        f"{step // functions.steps_per_epoch + 1}, seed {seeds[which]}), at a learning rate of "
        f"{float(functions.learning_rate(step)):.3g}. {kept} Lower learning_rate, lengthen "
        "warmup_epochs or set clip_norm."
    )
