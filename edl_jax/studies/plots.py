"""Figures of single runs: the course of an evolution or training, and a loss and its surface."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from edl_jax.studies.comparison.config import SPLITS
from edl_jax.studies.figures import Style, styles, subplots
from edl_jax.studies.inspection.loss_shape import respond, rival_grid
from edl_jax.studies.inspection.plots import plot_rival_maps

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def plot_evolution(history: Mapping[str, np.ndarray], held_out: Mapping[str, np.ndarray]) -> Any:
    """Fitness, held-out pairwise accuracy and step size over the generations.

    Args:
      history: `PretrainResult.history`.
      held_out: `PretrainResult.held_out`.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, axes = subplots(2)
    left, right = axes[0]
    pair = list(itertools.islice(styles(), 2))
    generations = np.arange(1, len(history["best_fitness"]) + 1)
    for style, name in zip(pair, ("best", "mean"), strict=True):
        left.plot(
            generations, history[f"{name}_fitness"], ls=style.dash, color=style.color, label=name
        )
    left.set(
        yscale="log",
        xlabel="generation",
        ylabel="fitness on fresh pairs",
        title="Fitness (lower is better)",
    )
    left.legend()
    right.plot(
        1 + held_out["generation"],
        held_out["pairwise_accuracy"],
        ls=pair[0].dash,
        color=pair[0].color,
        marker="o",
        markersize=4,
        label="pairwise accuracy",
    )
    right.set(
        xlabel="generation",
        ylabel="pairwise accuracy of the leader",
        title="Held-out pairs, and the step size",
    )
    steps = right.twinx()
    style = pair[1]
    steps.plot(
        generations, history["step_size"], ls=style.dash, color=style.color, label="step size"
    )
    steps.set(yscale="log", ylabel="mutation step size (standard deviation)")
    lines = [*right.get_lines(), *steps.get_lines()]
    right.legend(lines, [line.get_label() for line in lines], loc="center right")
    return figure


def plot_training(history: Sequence[Mapping[str, Any]]) -> Any:
    """The loss and accuracy on training images, and the accuracy on others, over the epochs.

    Args:
      history: `TrainResult.history`.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    figure, ((left, right),) = subplots(2)
    train, other = itertools.islice(styles(), 2)
    epochs = [row["epoch"] for row in history]
    split = SPLITS[history[-1]["evaluated_on"]]

    def draw(axis: Any, style: Style, name: str, unit: float, label: str) -> None:
        values = [unit * row[name] for row in history]
        axis.plot(
            epochs, values, ls=style.dash, color=style.color, marker=style.marker, markersize=4,
            label=f"{label}: {values[-1]:.4g} at the end",
        )  # fmt: skip
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()

    draw(left, train, "train_loss", 1, "training")
    left.set(xlabel="epoch", ylabel="mean loss over the epoch", title="Loss")
    draw(right, train, "train_accuracy", 100, "training, while it learns")
    draw(right, other, "accuracy", 100, split)
    right.set(xlabel="epoch", ylabel="accuracy, %", title="Accuracy")
    return figure


def plot_loss(losses: Mapping[str, Loss], *, num_classes: int = 10) -> Any:
    """Loss and logit gradient against the true class's probability, beside cross-entropy.

    Two slices of the simplex: the other classes share the rest evenly, or one rival has it all.

    Args:
      losses: losses by name, each of logits `[n, num_classes]` and integer labels `[n]`.
      num_classes: class count of the predictions.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    curves = {"cross-entropy": optax.losses.softmax_cross_entropy_with_integer_labels, **losses}
    own = np.linspace(0.002, 0.998, 250)
    figure, (axes,) = subplots(2)
    for style, (name, loss) in zip(styles(), curves.items(), strict=False):
        for slice_name, found in respond(loss, _slices(own, num_classes)).items():
            thin = {"linewidth": 1, "alpha": 0.6} if slice_name == "one rival" else {"linewidth": 2}
            look = {
                "color": style.color,
                "ls": style.dash,
                "label": f"{name}, {slice_name}",
                **thin,
            }
            axes[0].plot(own, found.losses, **look)
            axes[1].plot(own, found.norms, **look)
    axes[0].set(xlabel="probability of the true class", ylabel="loss", title="Loss")
    axes[1].set(
        xlabel="probability of the true class",
        ylabel="norm of the gradient by the logits",
        title="What descent feels",
    )
    axes[0].legend()
    return figure


def plot_surface(losses: Mapping[str, Loss], *, num_classes: int = 10) -> Any:
    """Loss and logit gradient over the probabilities of the true class and its strongest rival.

    Args:
      losses: losses by name, each of logits `[n, num_classes]` and integer labels `[n]`; they are
        drawn beside cross-entropy.
      num_classes: class count of the predictions, at least 3.

    Returns:
      A `matplotlib.figure.Figure`.

    Raises:
      EDLError: if matplotlib is not installed.
    """
    curves = {**losses, "cross-entropy": optax.losses.softmax_cross_entropy_with_integer_labels}
    own, rival, logits = rival_grid(num_classes)
    responses = {name: respond(loss, {"map": logits})["map"] for name, loss in curves.items()}
    return plot_rival_maps(own, rival, responses, num_classes)


def _slices(own: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    rest = np.broadcast_to((1 - own[:, None]) / (num_classes - 1), (len(own), num_classes - 1))
    even = np.concatenate([own[:, None], rest], axis=1)
    rival = np.full((len(own), num_classes), 1e-12)
    rival[:, 0], rival[:, 1] = own, 1 - own
    return {
        "rest spread evenly": np.log(even),
        "one rival": np.log(rival),
    }
