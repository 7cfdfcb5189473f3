"""Baselines: classification losses by hand, and evolved ones of others, to compare with."""

# In the order in which the losses are to be listed.
# isort: off
from edl_jax.baselines.cross_entropies import cross_entropy, focal, label_smoothing, poly, taylor_ce
from edl_jax.baselines.robust import gce, mae, nce_mae, nce_rce, nfl_rce, sce
from edl_jax.baselines.tempered import bi_tempered
from edl_jax.baselines.margins import (
    COSINE_LOSSES,
    MARGIN_LOSSES,
    additive_margin_softmax,
    large_margin_softmax,
    ldam,
    multiclass_hinge,
    smoothed_zero_one,
)
from edl_jax.baselines.adaptive import AdaptiveBarron, barron
from edl_jax.baselines.evolved import baikal, taylor_glo
from edl_jax.baselines.common import LOSSES

# isort: on

__all__ = [
    "COSINE_LOSSES",
    "LOSSES",
    "MARGIN_LOSSES",
    "AdaptiveBarron",
    "additive_margin_softmax",
    "baikal",
    "barron",
    "bi_tempered",
    "cross_entropy",
    "focal",
    "gce",
    "label_smoothing",
    "large_margin_softmax",
    "ldam",
    "mae",
    "multiclass_hinge",
    "nce_mae",
    "nce_rce",
    "nfl_rce",
    "poly",
    "sce",
    "smoothed_zero_one",
    "taylor_ce",
    "taylor_glo",
]
