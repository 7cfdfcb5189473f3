"""One loss on one page: what it is made of, and what it and its gradient do to a prediction."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping

import jax
import numpy as np
import tyro

from edl_jax.losses import EvolvedLoss
from edl_jax.losses.by_name import Loss, check_loss_name, resolve_loss
from edl_jax.pairs import log_probabilities, sample_pairs
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import as_json, open_run
from edl_jax.studies.figures import check_matplotlib, labels_of
from edl_jax.studies.inspection import card, loss_shape as shape, plots
from edl_jax.studies.results import Figure, Row, StudyResults
from edl_jax.validation import check_types, config_or_default

CLASS_COUNTS = (2, 10, 100)
_MAP_CLASSES = 10
_SIMPLEX_CLASSES = 3
_REFERENCES = ("cross_entropy", "focal")


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Which loss is looked at. Checked when made.

    Raises:
      ConfigError: for a name that is no loss's.
    """

    loss: tyro.conf.Positional[str] = "edl"
    """The loss: a name that `edl losses` lists, or a loss file (.safetensors)."""

    def __post_init__(self) -> None:
        check_types(self)
        check_loss_name(self.loss)


def inspect(
    config: InspectConfig | None = None, *, run_dir: str | os.PathLike[str] | None = None
) -> StudyResults:
    """Measure a loss and draw it beside cross-entropy and focal.

    Logits are log-probabilities, but along a path, where the true class's alone changes. A loss for
    one class count (a `PairNetwork`) is measured at that count only, and drawn on the simplex only
    if it is 3.

    Args:
      config: which loss; the defaults unless given.
      run_dir: where the card, its tables and its figures are written. Nothing is unless given.

    Raises:
      ConfigError, LossFileError: if the name or the file cannot be used.
      RunFolderError: if `run_dir` belongs to another run, or cannot be written.
      EDLError: if matplotlib is not installed.
    """
    config = config_or_default(config, InspectConfig)
    check_matplotlib()
    labels = labels_of([*dict.fromkeys([config.loss, *_REFERENCES])])
    first = _loss(config.loss, CLASS_COUNTS[0])
    only = first.architecture.num_classes if isinstance(first, EvolvedLoss) else None
    counts = (only,) if only else CLASS_COUNTS
    with contextlib.ExitStack() as stack:
        folder = None
        if run_dir is not None:
            identity = {"inspect": as_json(config), "loss": describe(first)}
            folder = stack.enter_context(open_run(run_dir, identity))
        results = _card(config.loss, labels, first, counts)
        if folder is not None:
            results.write(folder)
    return results


def _card(
    loss: str, labels: Mapping[str, str], first: Loss, counts: tuple[int, ...]
) -> StudyResults:
    """Measure and draw a loss, for class counts."""
    name, only = labels[loss], counts[0] if len(counts) == 1 else None
    paths: list[Row] = []
    curves, shares, maps = {}, {}, {}
    for count in counts if only else sorted({*counts, _MAP_CLASSES, _SIMPLEX_CLASSES}):
        predictions, classes, regimes = _predictions(
            count, on_paths=count in counts, on_map=count == (only or _MAP_CLASSES)
        )
        found = {
            label: shape.respond(_loss(other, count), predictions, classes)
            for other, label in labels.items()
        }
        mine = found[name]
        maps[count] = {
            kind: {label: f[kind] for label, f in found.items()}
            for kind in ("rivals", "simplex")
            if kind in mine
        }
        if count not in counts:
            continue
        paths += [_path_row(count, path, mine) for path in shape.paths(count)]
        shares[count] = shape.shares(mine["pairs"], regimes)
        curves[count] = {f"{name}, {path}": mine[path] for path in shape.paths(count)} | {
            label: f["one rival"] for label, f in found.items() if label != name
        }

    parts = shape.parts(first)
    tables = [card.paths_table(paths), card.regimes_table(shares)]
    if parts:
        tables.insert(0, card.parts_table(parts))
    figures = [Figure("curves", card.CURVES, plots.plot_curves(curves))]
    for count, kinds in maps.items():
        if "rivals" in kinds:
            own, rival, _ = shape.rival_grid(count)
            drawn = plots.plot_rival_maps(own, rival, kinds["rivals"], count)
            figures.append(Figure("rivals", card.RIVALS, drawn))
    for kinds in maps.values():
        if "simplex" in kinds:
            drawn = plots.plot_simplex(shape.simplex_grid()[0], kinds["simplex"])
            figures.append(Figure("simplex", card.SIMPLEX, drawn))
    results = StudyResults(
        study="inspect",
        title=f"The loss {name}",
        finding=card.finding(name, first, parts, paths, shares),
        protocol=card.protocol(first),
        tables=tables,
        figures=figures,
    )
    return results


def _loss(name: str, num_classes: int) -> Loss:
    # Losses that ask how often each class occurs are told: all alike.
    return resolve_loss(name, class_counts=(1,) * num_classes)


def _predictions(
    count: int, *, on_paths: bool, on_map: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Logits by what they are for, labels of the synthetic pairs, and the pairs' regimes."""
    predictions: dict[str, np.ndarray] = {}
    if count == _SIMPLEX_CLASSES:
        predictions["simplex"] = shape.simplex_grid()[1]
    if on_map and count > 2:  # two classes leave no rival to choose
        predictions["rivals"] = shape.rival_grid(count)[2]
    if not on_paths:
        return predictions, {}, np.zeros(0)
    pairs = sample_pairs(jax.random.key(0), card.PAIRS, count)
    predictions |= {**shape.paths(count), "perfect": shape.perfect(count)}
    predictions["pairs"] = np.asarray(log_probabilities(pairs.probabilities))
    return predictions, {"pairs": np.asarray(pairs.labels)}, np.asarray(pairs.regimes)


def _path_row(count: int, path: str, responses: Mapping[str, shape.Response]) -> Row:
    own, found = shape.path_probabilities(), responses[path]
    ratio = found.norms / found.reference
    return {
        "classes": count,
        "others": path,
        "falls": shape.falls(found),
        "convex": 100 * shape.convex_share(found),
        "turns": card.ranges(shape.intervals(found.turns(), own)),
        "vanishes": card.ranges(shape.intervals(found.vanishes(), own)),
        "at_perfect": float(responses["perfect"].losses[0]),
        **{f"ratio_{p:g}": float(np.interp(p, own, ratio)) for p in card.POINTS},
    }
