import numpy as np

from edl_jax.studies.plots import plot_training


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
