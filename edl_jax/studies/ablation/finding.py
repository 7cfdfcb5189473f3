"""One paragraph that says what an ablation's figures show, made from the numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edl_jax.studies.ablation.axes import AXES
from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.ablation.downstream_results import METRICS
from edl_jax.studies.ablation.effects import FINAL, Cells, settings_of
from edl_jax.studies.results import compared_p
from edl_jax.studies.statistics import LEVEL

Comparison = Mapping[str, Any]

_QUESTIONS = {
    "chaos": "Chaotic against Gaussian mutation",
    "dynamics": "The dynamics (an orbit against independent draws of the same marginal)",
    "marginal": "The marginal (independent draws of another distribution against Gaussian ones)",
    **{axis.effect(): axis.question for axis in AXES if axis.question},
}
_OUTCOMES = ("better", "worse", "not told apart")


def finding(
    config: AblateConfig,
    cells: Cells,
    comparisons: Sequence[Comparison],
    downstream: Sequence[Mapping[str, Any]],
    correlations: Sequence[Mapping[str, Any]],
) -> str:
    """The paragraph.

    Args:
      config: the ablation's configuration.
      cells: what was measured of each cell.
      comparisons: from `compare_cells`.
      downstream: from `train_downstream`.
      correlations: the rows of the table of `downstream_tables`.
    """
    settings = list(settings_of(cells))
    where = settings[0] if len(settings) == 1 else f"{len(settings)} settings"
    sentences = [
        f"{len(cells)} cells of {config.num_seeds} seeds, {config.pretrain.generations} "
        f"generations each ({where}); the objective is the share of the asked "
        "margins that is missing, lower is better."
    ]
    for effect, question in _QUESTIONS.items():
        mine = [row for row in comparisons if row["effect"] == effect]
        if mine:
            sentences += _of_effect(question, mine)
    sentences.append(_conclusion(comparisons))
    if downstream:
        sentences.append(_of_downstream(downstream, correlations))
    return " ".join(sentence for sentence in sentences if sentence)


def _of_effect(question: str, rows: Sequence[Comparison]) -> list[str]:
    """What the final objectives say in every setting, and whether the times say so too."""
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for row in rows:
        pairs.setdefault((row["name"], row["baseline"]), []).append(row)
    sentences = []
    for (name, baseline), group in pairs.items():
        finals = [row for row in group if row["measure"] == FINAL]
        if len(finals) == 1:
            sentences.append(f"{question}: {_in_numbers(finals[0])}.")
        else:
            ended = f"the final objective of {name} against {baseline}"
            sentences.append(f"{question}: {ended} is {_counts(finals)}.")
        others = [row for row in group if row["measure"] != FINAL]
        sentences.append(f"In area and times to the thresholds it is {_counts(others)}.")
        if len(finals) == 1 and (times := _times(others)):
            sentences.append(times)
    return sentences


def _in_numbers(row: Comparison) -> str:
    if math.isnan(row["p_holm"]):
        return f"{row['name']} against {row['baseline']} could not be tested (n = {row['n']} pairs)"
    outcome = {
        "better": f"{row['name']} ends lower than {row['baseline']}",
        "worse": f"{row['name']} ends higher than {row['baseline']}",
        "not told apart": f"{row['name']} and {row['baseline']} are not told apart",
    }[row["verdict"]]
    return (
        f"{outcome} (final objective {row['value']:.4f} against {row['baseline_value']:.4f}, "
        f"n = {row['n']} pairs, difference {row['difference']:+.4f}, 95 % interval "
        f"{row['low']:+.4f} to {row['high']:+.4f}, d = {row['effect_size']:+.2f}, Holm-corrected p "
        f"{compared_p(row['p_holm'])}; a difference of {row['detectable']:.4f} would be found four "
        "times in five, before correction)"
    )


def _counts(rows: Sequence[Comparison]) -> str:
    verdicts = [row["verdict"] for row in rows]
    better, worse, neither = (verdicts.count(outcome) for outcome in _OUTCOMES)
    untested = sum(math.isnan(row["p_holm"]) for row in rows)
    unsaid = f" ({untested} of them could not be tested)" if untested else ""
    return (
        f"better in {better} of {len(rows)} tests, worse in {worse}, not told apart in "
        f"{neither}{unsaid}"
    )


def _times(rows: Sequence[Comparison]) -> str:
    """How long half of the seeds took to the last threshold that half of both groups reached."""
    raced = [
        row
        for row in rows
        if row["test"] == "log-rank" and math.isfinite(row["value"] + row["baseline_value"])
    ]
    if not raced:
        return ""
    row = min(raced, key=lambda row: float(row["measure"].split()[-1]))
    return (
        f"Half of the seeds reached {row['measure'].split()[-1]} within {row['value']:,.0f} "
        f"evaluations of networks with {row['name']} and {row['baseline_value']:,.0f} with "
        f"{row['baseline']}."
    )


def _conclusion(comparisons: Sequence[Comparison]) -> str:
    """Whether chaos helps, and whether it is the dynamics or the marginal that matters."""
    told: dict[str, list[str]] = {}
    for row in comparisons:
        if row["measure"] == FINAL:
            told.setdefault(row["effect"], []).append(row["verdict"])
    parts = []
    if chaos := told.get("chaos"):
        better, worse = chaos.count("better"), chaos.count("worse")
        if better and worse:
            parts.append("chaos is better in some settings and worse in others")
        elif better or worse:
            result = "beats" if better else "is beaten by"
            parts.append(f"chaos {result} Gaussian mutation{_share(better or worse, chaos)}")
        else:
            parts.append("no benefit of chaos over Gaussian mutation is shown")
    for effect in ("dynamics", "marginal"):
        if verdicts := told.get(effect):
            apart = len(verdicts) - verdicts.count("not told apart")
            matters = f"matters{_share(apart, verdicts)}" if apart else "is not shown to matter"
            parts.append(f"the {effect} {matters}")
    if not parts:
        return ""
    return f"So in the final objective, at the {LEVEL:.0%} level: {', '.join(parts)}."


def _share(count: int, tests: Sequence[str]) -> str:
    return f" in {count} of {len(tests)} tests" if len(tests) > 1 else ""


def _of_downstream(
    downstream: Sequence[Mapping[str, Any]], correlations: Sequence[Mapping[str, Any]]
) -> str:
    accuracies = [100 * row["accuracy"] for row in downstream]
    sentence = (
        f"Trained with {len(downstream)} losses from bad to good, a classifier reached "
        f"{min(accuracies):.1f} to {max(accuracies):.1f} % on validation images"
    )
    defined = [row for row in correlations if row["spearman"] == row["spearman"]]
    if not defined:
        return sentence + "; no metric varied with it."
    first = defined[0]
    best = max(defined, key=lambda row: abs(row["spearman"]))
    sentence += f"; accuracy's rank correlation with {_correlation(first)}"
    if best is not first:
        sentence += f", and that with {_correlation(best)}, the strongest"
    return sentence + "."


def _correlation(row: Mapping[str, Any]) -> str:
    return (
        f"{METRICS[row['metric']]} is {row['spearman']:+.2f} (Spearman, 95 % interval "
        f"{row['spearman_low']:+.2f} to {row['spearman_high']:+.2f}, Holm-corrected p "
        f"{compared_p(row['spearman_p_holm'])})"
    )
