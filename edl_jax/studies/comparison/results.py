"""What the trainings of a comparison say: its tables, figures, protocol and paragraph."""

from collections.abc import Mapping, Sequence
from typing import Any

from edl_jax.data.dataset import Dataset
from edl_jax.studies.comparison.config import SPLITS, CompareConfig, Setting
from edl_jax.studies.comparison.finding import finding
from edl_jax.studies.comparison.plots import (
    FEW,
    plot_accuracy,
    plot_differences,
    plot_learning_rates,
)
from edl_jax.studies.comparison.rows import (
    MAX_EXTENSIONS,
    TESTS,
    by_setting,
    comparison_rows,
    tuning_rows,
)
from edl_jax.studies.figures import labels_of
from edl_jax.studies.results import (
    Column,
    Figure,
    StudyResults,
    Table,
    interval,
    is_absent,
    mean_and_deviation,
    number,
    p_value,
)
from edl_jax.studies.settings import told_settings
from edl_jax.studies.statistics import INTERVALS
from edl_jax.training.metrics import NUM_BINS

Row = Mapping[str, Any]


def comparison_results(
    config: CompareConfig,
    data: Mapping[Setting, Dataset],
    compared: Sequence[Row],
    tuned: Sequence[Row],
) -> StudyResults:
    """Everything that a comparison gives, from its finished cells.

    Args:
      config: what was compared.
      data: data set of each setting.
      compared: cells of the comparison, by setting, loss and seed.
      tuned: cells of the tuning, by setting, loss, learning rate and seed; empty without.
    """
    rows, rates = comparison_rows(compared), tuning_rows(tuned)
    labels, split = labels_of(config.loss_names()), SPLITS[config.split]
    title = _title(data, split)
    tables = [Table("comparison", title, rows, _columns(rows, labels, tuned=bool(tuned)))]
    figures = [
        Figure(
            "accuracy",
            "Accuracy after each epoch, mean over the seeds"
            f"{' and one standard deviation as a band' if len(labels) <= FEW else ''}.",
            plot_accuracy(compared),
        )
    ]
    if len(labels) > 1:
        caption = (
            f"Differences of {split} accuracy to {labels[config.loss_names()[0]]}: a circle for "
            "each seed, a diamond for their mean, a bar for its 95 % interval."
        )
        figures.insert(0, Figure("differences", caption, plot_differences(compared, rows, split)))
    if rates:
        columns = [
            *_setting_columns(rates),
            Column("loss", lambda row: labels[row["loss"]], False),
            Column("learning rate", number("learning_rate", "g")),
            Column("n", number("n", "d")),
            Column("diverged", number("diverged", "d")),
            Column("validation accuracy, %", number("val_accuracy_mean", ".2f")),
            Column("chosen", lambda row: "yes" if row["chosen"] else "", False),
        ]
        tables.append(Table("learning_rates", "Choice of the learning rates", rates, columns))
        caption = (
            "Validation accuracy after the last epoch over the learning rate, mean over the tuning "
            "seeds; filled: the rate that the loss was given."
        )
        figures.append(Figure("learning_rates", caption, plot_learning_rates(rates)))
    return StudyResults(
        "compare",
        title,
        finding(rows, rates, labels, split),
        protocol(config, data, rows, rates),
        tables,
        figures,
    )


def protocol(
    config: CompareConfig,
    data: Mapping[Setting, Dataset],
    rows: Sequence[Row],
    rates: Sequence[Row] = (),
) -> list[str]:
    """Sentences that say how the comparison was done; rows are of its table and of the tuning's."""
    train, on_val = config.train, config.split == "val"
    sentences = []
    for name, found in {found.name: found for found in data.values()}.items():
        sizes = (len(getattr(found, f"{part}_labels")) for part in ("train", "val", "test"))
        form = (
            "{:,} training and {:,} validation images"
            if on_val
            else "{:,} training, {:,} validation and {:,} test images"
        )
        parts = form.format(*sizes)
        chosen = f", validation drawn from the train split with seed {train.split_seed}"
        sentences.append(
            f"Data: {found.source} ({name}); {parts}{chosen if train.val_examples else ''}."
        )
    sentences.append(
        "Exclusions: none. Every training is in the table, whatever its result; every image of the "
        "parts above is used."
    )
    noise = ", ".join(f"{100 * rate:g} %" for rate in dict.fromkeys(x.noise_rate for x in data))
    if any(setting.noise_rate for setting in data):
        kind = "symmetric" if train.label_noise == "none" else train.label_noise
        sentences.append(
            f"Label noise of the training images: {noise} of each class"
            f"{' that is taken for another' if kind == 'asymmetric' else ''}, {kind}, seed "
            f"{train.corruption_seed}; validation and test labels are left as they are."
        )
    if train.imbalance != "none":
        sentences.append(
            f"Training classes: {train.imbalance} imbalance, factor {train.imbalance_factor:g}."
        )
    models = ", ".join(dict.fromkeys(setting.model for setting in data))
    width = "" if train.width is None else f" of width {train.width}"
    sentences.append(
        f"Recipe, the same for all losses: {models}{width}, {train.epochs} epochs, batch "
        f"{train.batch_size}, {train.optimizer}, weight decay {train.weight_decay:g}, warm-up of "
        f"{train.warmup_epochs:g} epochs and cosine decay; metrics after the last epoch, never the "
        "best epoch's."
    )
    sentences.append(told_settings("the trainings", config.trainings()))
    if on_val:
        sentences.append(
            "Losses are compared on the validation images, to choose among them"
            f"{', on which their learning rates were chosen too' if config.learning_rates else ''}:"
            " no test image was looked at."
        )
    seeds = config.seeds()
    sentences.append(
        f"Seeds {seeds[0]} to {seeds[-1]} of initial weights, data order and augmentation, the "
        "same for all losses: differences are paired by seed."
    )
    if config.learning_rates:
        tuning = config.seeds(tuning=True)
        grid = ", ".join(f"{rate:g}" for rate in config.learning_rates)
        sentences.append(
            f"Peak learning rate: the best of {grid} for each loss in each setting, by validation "
            f"accuracy after the last epoch, mean over {len(tuning)} seed(s) from {tuning[0]} on, "
            "which the comparison does not use. No test image was looked at for it. The "
            "comparison trains on the same train part, without the validation images."
        )
        sentences.append(_of_extensions(config, rates))
    else:
        sentences.append(f"Peak learning rate: {train.learning_rate:g} for all losses.")
    sentences.append(
        "A training whose loss or gradient is no longer finite has diverged. It counts with the "
        "accuracy of guessing, 1 / number of classes, and is left out of NLL and calibration "
        f"error. Diverged: {sum(row['diverged'] for row in rows)} of "
        f"{sum(row['n'] for row in rows)}."
    )
    counts = [sum(not is_absent(row[test]) for row in rows) for test in TESTS]
    sentences.append(
        f"Statistics: sample standard deviations; {INTERVALS}; paired t, "
        "Wilcoxon signed-rank and Welch tests, two-sided, each corrected by Holm's method for all "
        f"tests of its kind in the study ({', '.join(map(str, counts))}); d is Cohen's d of paired "
        "differences (mean over standard deviation); detectable is the smallest difference that "
        "the paired t-test finds with this n four times in five, at 5 % without correction."
    )
    sentences.append(
        "NLL: mean negative log-likelihood of the softmax of the logits. Calibration error: "
        f"expected calibration error over {NUM_BINS} bins of equal width (Guo et al. 2017)."
    )
    return sentences


def _of_extensions(config: CompareConfig, rates: Sequence[Row]) -> str:
    """Which grids of learning rates were extended, and how."""
    labels, settings = labels_of(config.loss_names()), by_setting(rates)
    parts = []
    for setting, group in settings.items():
        where = f" ({setting})" if len(settings) > 1 else ""
        for loss, label in labels.items():
            beyond = [
                f"{row['learning_rate']:g}"
                for row in group
                if row["loss"] == loss and row["learning_rate"] not in config.learning_rates
            ]
            if beyond:
                parts.append(f"{', '.join(beyond)} for {label}{where}")
    return (
        "Where the best rate was at an end of the grid, rates beyond it were tried by the ratio of "
        f"the last two until the best was inside, {MAX_EXTENSIONS} at most and none above a rate "
        f"that diverged: {'; '.join(parts) or 'nowhere'}."
    )


def _title(data: Mapping[Setting, Dataset], split: str) -> str:
    if len(data) == 1:
        return f"{split.capitalize()} accuracy by loss: {next(iter(data))}"
    return f"{split.capitalize()} accuracy by loss in {len(data)} settings"


def _columns(rows: Sequence[Row], labels: Mapping[str, str], *, tuned: bool) -> list[Column]:
    columns = [
        *_setting_columns(rows),
        Column("loss", lambda row: labels[row["loss"]], False),
        Column("n", number("n", "d")),
    ]
    if any(row["diverged"] for row in rows):
        columns.append(Column("diverged", number("diverged", "d")))
    if tuned:
        columns.append(Column("learning rate", number("learning_rate", "g")))
    columns.append(
        Column("accuracy, % (mean ± sd)", mean_and_deviation("accuracy_mean", "accuracy_deviation"))
    )
    if len(labels) > 1:
        columns += [
            Column(
                f"difference to {next(iter(labels.values()))}, points (mean ± sd)",
                mean_and_deviation("difference_mean", "difference_deviation", "+.2f"),
            ),
            Column("95 % interval", interval("difference_low", "difference_high")),
            Column("p (paired t, Holm)", p_value("p_t_holm")),
            Column("Cohen's d", number("effect_size", "+.2f")),
            Column("detectable, points", number("detectable", ".2f")),
        ]
    error = mean_and_deviation("calibration_error_mean", "calibration_error_deviation")
    return [
        *columns,
        Column("NLL, nats (mean ± sd)", mean_and_deviation("nll_mean", "nll_deviation", ".3f")),
        Column("calibration error, % (mean ± sd)", error),
    ]


def _setting_columns(rows: Sequence[Row]) -> list[Column]:
    """What the settings differ in."""
    columns = []
    for name in ("model", "dataset"):
        if len({row[name] for row in rows}) > 1:
            columns.append(Column(name, lambda row, name=name: row[name], False))
    if len({row["noise_rate"] for row in rows}) > 1:
        columns.append(Column("noise rate, %", lambda row: f"{100 * row['noise_rate']:g}"))
    return columns
