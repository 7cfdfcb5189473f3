"""How an ablation was done, in sentences."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edl_jax.studies.ablation.config import AblateConfig
from edl_jax.studies.ablation.effects import FINAL, Cells, values_of
from edl_jax.studies.ablation.seeds import WATCHED_PAIRS
from edl_jax.studies.settings import told_settings
from edl_jax.studies.statistics import INTERVALS
from edl_jax.training import TrainConfig


def protocol(
    config: AblateConfig,
    cells: Cells,
    num_tests: int,
    downstream: Sequence[Mapping[str, Any]],
) -> list[str]:
    """The sentences.

    Args:
      config: its configuration.
      cells: what was measured of each cell.
      num_tests: how many tests there are.
      downstream: what `train_downstream` gave.
    """
    base, seed = config.pretrain, config.pretrain.seed
    failed = sum(int((~np.isfinite(values_of(row, FINAL))).sum()) for row in cells.values())
    sentences = [
        f"Evolution only, no data: {base.network} network, hidden layers {base.hidden}, class "
        f"counts {base.class_counts}, strategy {base.strategy}, {base.generations} generations of "
        f"{base.pairs_per_generation} fresh pairs, where a cell says nothing else; seeds {seed} to "
        f"{seed + config.num_seeds - 1}, the same in every cell, each cell in one program.",
        "Objective: share of the asked margins that is missing (0: none, 1: a constant loss). "
        "Curves, areas and thresholds are of each generation's leader on at "
        f"least {WATCHED_PAIRS:,} pairs of the seed's own that it is not selected on, the same in "
        "every generation; area is the mean over all generations.",
        f"Final: the winner among the last elites on {base.held_out_pairs} held-out pairs, "
        f"measured on as many others. Seeds whose winner has no finite objective: {failed}; they "
        "are left out of means and of paired tests.",
        "Generations to a threshold: Kaplan-Meier's median with the interval of Brookmeyer and "
        "Crowley; a seed that never got there is censored at the last generation.",
        f"Tests: {num_tests} in all, p-values corrected for all of them together (Holm); "
        f"{INTERVALS}; d the mean over the standard deviation of the "
        "paired differences, detectable: the difference that a paired t-test of so many finds four "
        "times in five, before correction. Times are compared by the log-rank test over as many "
        "evaluations as both cells had; their difference counts a seed that never got there as all "
        "of these.",
        "Populations and networks of another size or kind have other networks to begin with, and a "
        "larger population more evaluations in as many generations. Severities have objectives, "
        "and class counts pairs, of their own: they are not compared.",
        told_settings("the evolutions", [config.config_of(cell) for cell in cells]),
    ]
    if downstream:
        train = config.train
        sentences.append(
            f"Downstream: {train.model} on {downstream[0]['data']}, {train.epochs} epochs, "
            f"learning rate {train.learning_rate}, seed {train.seed}, accuracy on "
            f"{train.val_examples} validation images after the last epoch; "
            "no test image was used. Losses are leaders "
            f"after {', '.join(map(str, config.downstream_generations))} generations, each of an "
            "evolution of its own, calibrated to cross-entropy's mean gradient norm. A training "
            "that diverges counts as guessing."
        )
        # The loss is that of each source, whatever the configuration names.
        trainings = dataclasses.replace(train, loss=TrainConfig.loss)
        sentences.append(told_settings("the trainings", [trainings]))
    return sentences
