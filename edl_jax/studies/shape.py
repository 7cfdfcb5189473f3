"""One loss on one page: what it and its gradient do as the prediction changes."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro

from edl_jax.checked import Checked
from edl_jax.errors import ConfigError
from edl_jax.losses import EvolvedLoss, LossMethod
from edl_jax.losses.by_name import Loss, check_loss_name, resolve_loss
from edl_jax.objective.measure import gradients
from edl_jax.pairs import REGIMES, Pairs, sample_pairs
from edl_jax.runs.describing import describe
from edl_jax.studies.figures import panels, short_names
from edl_jax.studies.sweep import asked, study_folder
from edl_jax.studies.tables import Frame, Study, frame

_VANISHING = 0.01  # of cross-entropy's gradient: below it, descent would hardly move
_FEWEST = 1e-12  # probability of a class that is to have none: its logarithm stays finite
# An even number, so that no two classes tie: there a largest class has no gradient of its own.
_LOGITS = np.linspace(-1, 1, 368) * np.log(0.9999 / 0.0001)
CLASS_COUNTS = (2, 10, 100)
_PAIRS = 1000 * len(REGIMES)
_CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels
_TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
_POINTS = (0.01, 0.1, 0.5, 0.9, 0.99)  # of the true class's probability


@dataclasses.dataclass(frozen=True)
class CardConfig(Checked):
    """Which loss to show."""

    loss: tyro.conf.Positional[str] = "edl"
    """The loss: a name listed by `edl losses`, or a loss file (.safetensors)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_name(self.loss)


def card(
    config: CardConfig | None = None, *, run_dir: str | os.PathLike[str] | None = None
) -> Study:
    """Measure a loss and draw it beside cross-entropy; arguments and errors as of `compare`.

    A loss for one class count (a `PairNetwork`) is measured at that count only.
    """
    config, run_dir = asked(config, CardConfig, run_dir)
    first = resolve_loss(config.loss, class_counts=(1, 1))
    if isinstance(first, LossMethod):
        changes = "which changes while it trains; expected a function of logits and labels"
        raise ConfigError(f"CardConfig.loss is {config.loss!r}, {changes}.")
    only = first.architecture.num_classes if isinstance(first, EvolvedLoss) else None
    # Losses that ask how often each class occurs are told: all alike.
    counts = (only,) if only else CLASS_COUNTS
    losses = {count: resolve_loss(config.loss, class_counts=(1,) * count) for count in counts}
    identity = {"card": config, "loss": describe(first)}
    name, drawn = short_names([config.loss])[config.loss], 10 if 10 in counts else counts[0]
    loss = losses[drawn]
    notes = [
        f"{describe(loss)}.",
        "Turns: descent does not raise the true class's logit. Vanishes: the gradient's norm is "
        "below 1 % of cross-entropy's; such a gradient does not turn.",
        f"Synthetic pairs: {_PAIRS:,} of each class count, all regimes alike.",
    ]
    if isinstance(loss, EvolvedLoss):
        made = {**loss.provenance.config, **loss.provenance.versions}
        notes.append(f"Evolved with {', '.join(f'{k} {v}' for k, v in made.items()) or 'nothing'}.")
        notes.append(f"Calibration multiplies the network's output by {float(loss.scale):.4g}.")
    caption = "Loss and gradient beside cross-entropy, against the probability of the true class."
    with study_folder(run_dir, identity) as folder:
        figures = {"curves": (caption, plot_loss({name: loss}, drawn))}
        return Study(f"The loss {name}", notes, _tables(losses), figures).written(folder)


def _tables(losses: Mapping[int, Loss]) -> dict[str, Frame]:
    along, on_pairs = [], []
    for count, loss in losses.items():
        for path, pairs in paths(count).items():
            response = respond(loss, pairs)
            ratios = np.interp(_POINTS, path_probabilities(), response.norms / response.reference)
            row = {"classes": count, "the rest goes to": path}
            row |= {f"gradient ratio at p = {p:g}": x for p, x in zip(_POINTS, ratios, strict=True)}
            along.append(row | _shares(response, slice(None)))
        pairs = sample_pairs(jax.random.key(0), _PAIRS, count)
        response = respond(loss, pairs)
        # Below this, float32 leaves too little of cross-entropy's gradient to judge.
        judged, regimes = response.reference >= 1e-4, np.asarray(pairs.regimes)
        names = [name.replace("_", " ") for name in REGIMES]
        subsets = {name: judged & (regimes == index) for index, name in enumerate(names)}
        for name, mask in {"all": judged, **subsets}.items():
            if mask.any():
                row = {"classes": count, "pairs": name, **_shares(response, mask)}
                ratio = response.norms[mask].sum() / response.reference[mask].sum()
                on_pairs.append(row | {"gradient ratio": ratio})
    return {
        "As the probability p of the true class grows": frame(along),
        "On synthetic pairs": frame(on_pairs),
    }


class Response(NamedTuple):
    """A loss on some pairs and its logit gradient, all `[n]`."""

    losses: np.ndarray
    of_label: np.ndarray  # the gradient by the true class's logit
    norms: np.ndarray  # of the gradient by all logits
    reference: np.ndarray  # the same of cross-entropy's gradient, |p - onehot(y)|
    vanishes: np.ndarray  # whether the gradient is below 1 % of cross-entropy's
    turns: np.ndarray  # whether it does not vanish, and descent does not raise the true class's


_gradients = jax.jit(gradients, static_argnums=0)  # one program serves both paths


def respond(loss: Loss, pairs: Pairs) -> Response:
    """What a loss does on pairs."""
    losses, gradient, _ = (np.asarray(x, np.float64) for x in _gradients(loss, pairs))
    of_label = np.take_along_axis(gradient, np.asarray(pairs.labels)[:, None], axis=-1)[:, 0]
    # By the same program: so both round alike, as `p - 1` does not.
    of_reference = np.asarray(_gradients(_CROSS_ENTROPY, pairs)[1], np.float64)
    norms, reference = (np.linalg.norm(x, axis=-1) for x in (gradient, of_reference))
    vanishes = norms < _VANISHING * reference
    return Response(losses, of_label, norms, reference, vanishes, (of_label >= 0) & ~vanishes)


def _shares(response: Response, mask: np.ndarray | slice) -> dict[str, float]:
    shares = {"turns": response.turns, "vanishes": response.vanishes}
    return {f"{name}, %": 100 * share[mask].mean() for name, share in shares.items()}


def path_probabilities() -> np.ndarray:
    """Probabilities of the true class along the paths, `[n]` from 0.0001 to 0.9999."""
    return 1 / (1 + np.exp(-_LOGITS))


def paths(num_classes: int) -> dict[str, Pairs]:
    """Predictions along which class 0, the label, gains, evenly in its log-odds.

    The rest of the probability goes to one other class, or is spread evenly over all others.
    """
    p, none = path_probabilities()[:, None], np.zeros(len(_LOGITS), np.int32)
    shares = {"one other": np.full(num_classes - 1, _FEWEST)}
    shares["one other"][0] = 1
    if num_classes > 2:
        shares["all alike"] = np.full(num_classes - 1, 1 / (num_classes - 1))
    rows = {name: np.hstack([p, (1 - p) * share]) for name, share in shares.items()}
    return {name: Pairs(x.astype(np.float32), none, none) for name, x in rows.items()}  # pyright: ignore


def plot_loss(losses: Mapping[str, Loss], num_classes: int = 10) -> Any:
    """Loss, pull on the true class and gradient's size, by name, beside cross-entropy's."""
    figure, axes = panels(3, width=4.6)
    probabilities = path_probabilities()
    for name, loss in {**losses, "cross-entropy": _CROSS_ENTROPY}.items():
        for path, pairs in paths(num_classes).items():
            response = respond(loss, pairs)
            rows = (response.losses, -response.of_label, response.norms / response.reference)
            for axis, values in zip(axes, rows, strict=True):
                axis.plot(probabilities, values, marker="", label=f"{name}, the rest to {path}")
    titles = ("loss", "pull on the true class's logit", "gradient's norm ÷ cross-entropy's")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("logit")
        axis.set_xticks(_TICKS, [f"{x:g}" for x in _TICKS])
        axis.set_xticks([], minor=True)  # whose labels would overlap
        axis.set(xlim=probabilities[[0, -1]], xlabel="probability of the true class", ylabel=title)
    axes[0].legend(fontsize=8)
    return figure
