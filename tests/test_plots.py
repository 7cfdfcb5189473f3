import numpy as np
import optax

from edl_jax.studies.plots import plot_loss, plot_training

cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


def test_a_loss_and_its_slope_are_drawn_beside_cross_entropy():
    losses, slopes = plot_loss({"twice": lambda x, y: 2 * cross_entropy(x, y)}).axes
    expected = [
        ("cross-entropy, rest spread evenly", 1, 9),
        ("cross-entropy, one rival", 1, 1),
        ("twice, rest spread evenly", 2, 9),
        ("twice, one rival", 2, 1),
    ]
    for loss, slope, (name, factor, sharers) in zip(
        losses.lines, slopes.lines, expected, strict=True
    ):
        assert loss.get_label() == slope.get_label() == name
        p, value = loss.get_data()
        np.testing.assert_allclose(value, -factor * np.log(p), rtol=1e-4)
        p, norm = slope.get_data()
        np.testing.assert_allclose(norm, factor * (1 - p) * (1 + 1 / sharers) ** 0.5, rtol=1e-4)


def test_a_training_is_drawn_epoch_by_epoch_with_labels_and_units():
    history = [
        {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.3, "accuracy": 0.4},
        {"epoch": 2, "train_loss": 1.5, "train_accuracy": 0.5, "accuracy": 0.45},
    ]
    figure = plot_training([{**row, "evaluated_on": "val"} for row in history])
    loss, accuracy = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.5]])
    learned, held_out = accuracy.lines
    np.testing.assert_array_equal(learned.get_ydata(), [30, 50])
    np.testing.assert_array_equal(held_out.get_ydata(), [40, 45])
    assert held_out.get_label() == "validation: 45 at the end"
    assert learned.get_linestyle() != held_out.get_linestyle()  # told apart in grey
    for axis, label in ((loss, "mean loss over the epoch"), (accuracy, "accuracy, %")):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", label)
        assert axis.get_legend() is not None
