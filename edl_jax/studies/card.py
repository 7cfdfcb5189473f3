"""One loss on one page: what it and its gradient do to a prediction."""

import contextlib
import dataclasses
import os

import jax
import numpy as np
import tyro

from edl_jax.checked import Checked
from edl_jax.losses import EvolvedLoss
from edl_jax.losses.by_name import Loss, check_loss_name, resolve_loss
from edl_jax.pairs import REGIMES, log_probabilities, sample_pairs
from edl_jax.runs.describing import describe
from edl_jax.runs.folder import as_json, open_run
from edl_jax.studies.figures import short_names
from edl_jax.studies.shape import path_probabilities, paths, plot_loss, plot_surface, respond
from edl_jax.studies.tables import Frame, Study, asked

CLASS_COUNTS = (2, 10, 100)
_PAIRS = 1000 * len(REGIMES)
_POINTS = (0.01, 0.1, 0.5, 0.9, 0.99)  # of the true class's probability


@dataclasses.dataclass(frozen=True)
class CardConfig(Checked):
    """Which loss is looked at."""

    loss: tyro.conf.Positional[str] = "edl"
    """The loss: a name that `edl losses` lists, or a loss file (.safetensors)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_name(self.loss)


def card(
    config: CardConfig | None = None, *, run_dir: str | os.PathLike[str] | None = None
) -> Study:
    """Measure a loss and draw it beside cross-entropy.

    A loss for one class count (a `PairNetwork`) is measured at that count only.

    Args:
      config: which loss; the defaults if None.
      run_dir: where the card and its figures are written. By default nothing is.

    Raises:
      EDLError: naming what cannot be used: the loss, the run folder or a library.
    """
    config, run_dir = asked(config, CardConfig, run_dir)
    first = _loss(config.loss, CLASS_COUNTS[0])
    identity = {"card": as_json(config), "loss": describe(first)}
    with contextlib.nullcontext() if run_dir is None else open_run(run_dir, identity) as folder:
        return _card(config.loss, first).written(folder)


def _card(loss: str, first: Loss) -> Study:
    only = first.architecture.num_classes if isinstance(first, EvolvedLoss) else None
    counts = (only,) if only else CLASS_COUNTS
    name, drawn = short_names([loss])[loss], only or 10
    shown = {name: _loss(loss, drawn)}
    caption = "beside cross-entropy, against the probability of the true class."
    figures = {"curves": (f"Loss and gradient {caption}", plot_loss(shown, num_classes=drawn))}
    if drawn > 2:
        text = "Loss and norm of the gradient over the two largest probabilities."
        figures["surface"] = (text, plot_surface(shown, num_classes=drawn))
    tables = {
        "As the probability p of the true class grows": _along_paths(loss, counts),
        "On synthetic pairs": _on_pairs(loss, counts),
    }
    notes = [
        f"{describe(first)}.",
        "Turns: descent does not raise the true class's logit. Vanishes: the gradient's norm is "
        "below 1 % of cross-entropy's; such a gradient does not turn.",
        f"Synthetic pairs: {_PAIRS:,} of each class count, all regimes alike.",
    ]
    if isinstance(first, EvolvedLoss):
        made = {**first.provenance.config, **first.provenance.versions}
        notes.append(f"Evolved with {', '.join(f'{k} {v}' for k, v in made.items()) or 'nothing'}.")
        notes.append(f"Calibration multiplies the network's output by {float(first.scale):.4g}.")
    return Study(f"The loss {name}", notes, tables, figures)


def _along_paths(loss: str, counts: tuple[int, ...]) -> Frame:
    import pandas as pd

    rows = []
    for count in counts:
        for path, logits in paths(count).items():
            found = respond(_loss(loss, count), logits)
            ratios = np.interp(_POINTS, path_probabilities(), found.norms / found.reference)
            row = {"classes": count, "the rest goes to": path}
            row |= {f"gradient ratio at p = {p:g}": x for p, x in zip(_POINTS, ratios, strict=True)}
            row["turns, %"] = 100 * found.turns().mean()
            rows.append(row | {"vanishes, %": 100 * found.vanishes().mean()})
    return pd.DataFrame(rows)


def _on_pairs(loss: str, counts: tuple[int, ...]) -> Frame:
    import pandas as pd

    rows = []
    for count in counts:
        pairs = sample_pairs(jax.random.key(0), _PAIRS, count)
        logits = np.asarray(log_probabilities(pairs.probabilities))
        found = respond(_loss(loss, count), logits, np.asarray(pairs.labels))
        # Below this, float32 leaves too little of cross-entropy's gradient to judge.
        judged, regimes = found.reference >= 1e-4, np.asarray(pairs.regimes)
        for name in ("all", *REGIMES):
            mine = judged & (True if name == "all" else regimes == list(REGIMES).index(name))
            if not mine.any():
                continue
            row = {"classes": count, "pairs": name.replace("_", " ")}
            row["turns, %"] = 100 * found.turns()[mine].mean()
            row["vanishes, %"] = 100 * found.vanishes()[mine].mean()
            row["gradient ratio"] = found.norms[mine].sum() / found.reference[mine].sum()
            rows.append(row)
    return pd.DataFrame(rows)


def _loss(name: str, num_classes: int) -> Loss:
    # Losses that ask how often each class occurs are told: all alike.
    return resolve_loss(name, class_counts=(1,) * num_classes)
