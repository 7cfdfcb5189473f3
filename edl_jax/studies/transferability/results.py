"""Tables, figures and the finding of the transfer study, made from its comparisons."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from edl_jax.pairs import Pairs
from edl_jax.studies.figures import labels_of
from edl_jax.studies.results import (
    Column,
    StudyResults,
    Table,
    mean_and_deviation,
    number,
    p_value,
    span,
)
from edl_jax.studies.settings import placeless, told_settings
from edl_jax.studies.statistics import LEVEL, holm
from edl_jax.studies.transferability.distances import BINS, LEAST_PROBABILITY, NEIGHBOURS, SUMMARIES
from edl_jax.studies.transferability.measures import MIXTURE
from edl_jax.studies.transferability.plots import (
    plot_coverage,
    plot_density,
    plot_distances,
    plot_drift,
    plot_ranking,
)
from edl_jax.studies.transferability.recording import Recording
from edl_jax.studies.transferability.rows import (
    CONTROL,
    Row,
    distance_rows,
    overview_rows,
    ranking_rows,
    summary_rows,
)

if TYPE_CHECKING:
    from edl_jax.studies.transferability.study import TransferConfig


def report_transfer(
    config: "TransferConfig",
    source: str,
    recordings: Mapping[tuple[str, int], Recording],
    references: Mapping[str, Pairs],
    comparisons: Sequence[Row],
) -> StudyResults:
    """Tables, figures and the finding.

    Args:
      config: what was studied.
      source: a sentence that says which data was used.
      recordings: the trainings' outputs by loss and seed.
      references: the synthetic pairs by name.
      comparisons: a row for each recorded epoch and part of each training, and one of the control,
        with `references` (what `compare_pairs` gives, by name) and `ranking` (`make_ranking`).
    """
    names = labels_of(config.losses)
    comparisons = [{**row, "loss": names.get(row["loss"], row["loss"])} for row in comparisons]
    distances = distance_rows(comparisons)
    summaries = summary_rows(names, recordings, references)
    ranking = ranking_rows(comparisons)
    overview = overview_rows(distances, summaries, ranking)
    seen = {
        label: [recording for (name, _), recording in recordings.items() if name == loss]
        for loss, label in names.items()
    }
    return StudyResults(
        study="transfer",
        title="Do synthetic pairs cover what training visits?",
        finding=describe_transfer(overview, ranking, comparisons),
        protocol=protocol(config, source, next(iter(recordings.values()))),
        tables=_tables(overview, distances, summaries, ranking),
        figures=[
            plot_drift(summaries),
            plot_distances(distances),
            plot_coverage(distances),
            plot_density(seen, references[MIXTURE]),
            plot_ranking(ranking),
        ],
    )


def describe_transfer(
    overview: Sequence[Row], ranking: Sequence[Row], comparisons: Sequence[Row]
) -> str:
    """The finding: a paragraph made from the tables' rows and the single comparisons."""
    control = next(row for row in overview if row["loss"] == CONTROL)
    train = [row for row in overview if row["part"] == "train"]
    parts = []
    for loss in dict.fromkeys(row["loss"] for row in train):
        mine = [row for row in train if row["loss"] == loss]
        first, last = mine[0], mine[-1]
        parts.append(
            f"Of the outputs that {loss} sees, the nearest regime is {first['nearest']} at epoch "
            f"{first['epoch']} ({first['nearest_divergence']:.2f} bits) and {last['nearest']} at "
            f"epoch {last['epoch']} ({last['nearest_divergence']:.2f} bits); the mixture is "
            f"{first['divergence']:.2f} and {last['divergence']:.2f} bits away."
        )
    coverage = _all(train, "coverage")
    lowest = min(train, key=lambda row: row["coverage"])
    parts.append(
        f"The mixture's support holds {span(coverage, '.1%')} of the outputs (least with "
        f"{lowest['loss']} at epoch {lowest['epoch']}), against {control['coverage']:.1%} of fresh "
        f"synthetic pairs: {_fewer(control['coverage'] - min(coverage))}."
    )
    tests = [row for row in comparisons if row["part"] == "train"]
    adjusted = holm([row["references"][MIXTURE]["p"] for row in tests])
    found = sum(p < LEVEL for p in adjusted)
    parts.append(
        f"A classifier tells outputs from the mixture in {found} of {len(tests)} comparisons "
        f"(Holm, 5 % level), with an accuracy of {span(_all(train, 'accuracy'), '.1%')}, against "
        f"{control['accuracy']:.1%} for fresh synthetic pairs"
        + (": training does not visit pairs as often as the mixture draws them." if found else ".")
    )
    real = [row for row in ranking if row["part"] == "train"]
    (synthetic,) = (x for x in ranking if x["loss"] == CONTROL and x["regime"] == "all")
    parts.append(
        f"On the outputs the evolved loss orders {span(_all(real, 'pairwise_accuracy'), '.3%')} "
        f"of the comparisons as severity does, against {synthetic['pairwise_accuracy']:.3%} on "
        f"synthetic pairs, and violates {span(_all(real, 'violated_margins'), '.2%')} of the "
        f"margins, against {synthetic['violated_margins']:.2%}."
    )
    return " ".join(parts)


def _tables(
    overview: Sequence[Row],
    distances: Sequence[Row],
    summaries: Sequence[Row],
    ranking: Sequence[Row],
) -> list[Table]:
    which = [
        Column("loss", lambda row: row["loss"], False),
        Column("outputs", lambda row: (row["part"] or "").replace("_", "-"), False),
        Column("epoch", number("epoch", "d")),
    ]
    n = Column("n", number("n", "d"))

    def spread(heading: str, name: str, form: str = ".3f") -> Column:
        return Column(heading, mean_and_deviation(name, f"{name}_deviation", form))

    against = [
        spread("Jensen-Shannon, bits (mean ± sd)", "divergence"),
        spread("squared MMD (mean ± sd)", "mmd", ".4f"),
        spread("classifier's accuracy (mean ± sd)", "accuracy"),
        Column("largest p", p_value("p")),
        spread("coverage (mean ± sd)", "coverage"),
    ]
    short = [
        *which,
        n,
        Column("top class is true", number("correct", ".1%")),
        Column("nearest regime", lambda row: row["nearest"], False),
        Column("Jensen-Shannon to it, bits", number("nearest_divergence", ".3f")),
        *against,
        Column("pairwise accuracy", number("pairwise_accuracy", ".3%")),
    ]
    wasserstein = [
        Column(f"Wasserstein, {about}", number(f"wasserstein/{name}"))
        for name, about in SUMMARIES.items()
    ]
    quartiles = [Column(name, number(name)) for name in ("lower", "median", "upper")]
    metrics = [
        spread("pairwise accuracy (mean ± sd)", "pairwise_accuracy", ".5f"),
        spread("Kendall tau-b", "kendall_tau", ".4f"),
        spread("Spearman rho", "spearman_rho", ".4f"),
        spread("violated margins", "violated_margins", ".4f"),
        spread("descent rate", "descent_rate"),
        spread("gradient over cross-entropy's", "gradient_ratio"),
    ]
    compared = Column("synthetic pairs", lambda row: row["reference"], False)
    regime = Column("regime", lambda row: row["regime"], False)
    summary = Column("summary", lambda row: SUMMARIES[row["summary"]], False)
    return [
        Table("transfer", "Outputs of trainings beside the synthetic mixture", overview, short),
        Table(
            "distances",
            "Outputs beside the mixture and each regime",
            distances,
            [*which, compared, n, *against, *wasserstein],
        ),
        Table(
            "summaries",
            "Quartiles of outputs and synthetic pairs, all seeds together",
            summaries,
            [*which, summary, n, *quartiles],
        ),
        Table(
            "ranking",
            "How the evolved loss ranks outputs and synthetic pairs",
            ranking,
            [*which, regime, n, *metrics],
        ),
    ]


def protocol(config: "TransferConfig", source: str, recording: Recording) -> list[str]:
    """How it was done, in sentences; `source` describes the data, `recording` is any of them."""
    train = config.train
    first = train.seed
    held_out = "validation" if train.val_examples else "test"
    return [
        placeless(source),
        f"{train.model}, {train.epochs} epochs, batch {train.batch_size}, learning rate "
        f"{train.learning_rate:g}, seeds {first} to {first + config.num_seeds - 1}; everything but "
        "the loss is the same. No training was left out.",
        told_settings("the trainings", [dataclasses.replace(train, loss=x) for x in config.losses]),
        told_settings("the mixture of pairs", [config.mixture]),
        f"Outputs of {len(recording.train_labels)} train images as the loss sees them (augmented, "
        "statistics of the batch, the training's labels) and of "
        f"{len(recording.held_out_labels)} {held_out} images as in an evaluation, the same images "
        f"at epochs {', '.join(map(str, config.epochs))} of every training.",
        f"{config.num_synthetic} synthetic pairs of the mixture and of each regime. The control is "
        "as many fresh pairs of the mixture: what chance alone does.",
        f"Jensen-Shannon divergence: mean over {len(SUMMARIES)} summaries "
        f"({', '.join(SUMMARIES.values())}), histograms of at most {BINS} equal bins.",
        "MMD: unbiased, squared, Gaussian kernel as wide as the median distance of the mixture's "
        "pairs, on the logits of the true class's and the strongest rival's probability (held in "
        f"[{LEAST_PROBABILITY:g}, 1 - {LEAST_PROBABILITY:g}]) and the entropy.",
        "Classifier: gradient-boosted trees on the summaries, trained on one half and tested on "
        "the other; Fisher's exact test, one-sided. The p of a row is the largest of its seeds.",
        "Coverage: share of the outputs that lie, in the space of the MMD, in a ball around some "
        f"synthetic pair that reaches to its neighbour number {NEIGHBOURS} (Kynkäänniemi et al. "
        "2019). A ball is small where synthetic pairs are dense, and a regime is drawn as often as "
        "the whole mixture, so that it can cover more than the mixture does.",
        f"Ranking metrics are of the evolved loss {config.evolved!r}, whatever loss was trained "
        "with, by the severity and margin it was evolved for.",
    ]


def _fewer(gap: float) -> str:
    return f"at the least {100 * gap:.1f} points fewer" if gap > 0 else "nowhere fewer"


def _all(rows: Iterable[Row], name: str) -> list[float]:
    return [row[name] for row in rows if row[name] is not None]
