"""What a generation costs, as a formula fitted to measurements, and what it says of a TPU slice."""

import dataclasses
import itertools
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.common import FLOAT_BYTES, Work
from benchmarks.report import number
from benchmarks.timing import Row

# Published for TPU v5e, a chip: https://cloud.google.com/tpu/docs/v5e
PEAK_FLOPS = 197e12  # bfloat16
HBM_BYTES = 819e9  # per second
ICI_BYTES = 1600e9 / 8  # per second, between chips
ARRAY = 128  # the matrix unit multiplies 128 x 128
CHIPS = 256
# Not published: the time of one hop between chips. 16 x 16 chips in a torus are 16 hops wide.
HOP_SECONDS, HOPS = 1e-6, 16

ESTIMATE_HEAD = [
    "population",
    "pairs",
    "one chip, ms",
    "256 chips, ms",
    "generations/s",
    "efficiency",
    "if the replicated part ran as here, ms",
]


@dataclasses.dataclass(frozen=True)
class Model:
    """Seconds of a generation: `fixed + networks P + pairs N + both P N k + exchange (D - 1)`.

    The first three are the replicated part, which every device does in full; `both P N` is the
    evaluation, which is divided.

    Attributes:
      fixed: s, a generation.
      networks: s, for each network: ask and tell.
      pairs: s, for each pair: sampling and features.
      both: s, for each pair evaluation.
      relative_error: median of |model / measured - 1| on one device.
      cores: cores that the devices share; None for accelerators, which share nothing.
      dividing: k, cost of an evaluation on forced devices / on one.
      exchange: s, for each device beyond the first.
      devices_relative_error: as above, on several devices.
    """

    fixed: float
    networks: float
    pairs: float
    both: float
    relative_error: float
    cores: int | None
    dividing: float
    exchange: float
    devices_relative_error: float

    def replicated(self, population: int, pairs: int) -> float:
        """Seconds of what every device does in full."""
        return self.fixed + self.networks * population + self.pairs * pairs


def fit(rows: list[Row], cores: int | None) -> Model:
    """Non-negative least squares of relative errors."""
    usual = [row for row in rows if row["hidden"] == [16, 16]]
    one = [row for row in usual if row["devices"] == 1]
    seconds = np.asarray([row["generation"]["median_s"] for row in one])
    terms = np.asarray(
        [[1, r["population"], r["pairs"], r["population"] * r["pairs"]] for r in one], float
    )
    # Columns of like size, or the solver takes the small ones for zero.
    scale = terms.max(axis=0)
    weights, _ = nnls(terms / scale / seconds[:, None], np.ones(len(one)))
    fixed, networks, pairs, both = (float(w) for w in weights / scale)
    error = float(np.median(np.abs(terms @ (weights / scale) / seconds - 1)))
    model = Model(fixed, networks, pairs, both, error, cores, 1.0, 0.0, 0.0)
    several = [row for row in usual if row["devices"] > 1]
    if not several:
        return model
    seconds = np.asarray([row["generation"]["median_s"] for row in several])
    # The replicated part is done by every device: more often than there are cores, it queues.
    replicated = np.asarray(
        [
            model.replicated(r["population"], r["pairs"]) * max(1.0, r["devices"] / (cores or 1e9))
            for r in several
        ]
    )
    terms = np.asarray(
        [
            [
                both * r["population"] * r["pairs"] / (1 if cores else r["devices"]),
                r["devices"] - 1,
            ]
            for r in several
        ],
        float,
    )
    scale = terms.max(axis=0)
    scale[scale == 0] = 1.0
    weights, _ = nnls(terms / scale / seconds[:, None], 1 - replicated / seconds)
    dividing, exchange = (float(w) for w in weights / scale)
    modelled = replicated + terms @ (weights / scale)
    error = float(np.median(np.abs(modelled / seconds - 1)))
    return dataclasses.replace(
        model, dividing=dividing, exchange=exchange, devices_relative_error=error
    )


def describe(model: Model) -> str:
    """The fitted formula."""
    return (
        "Model of a generation on one device, fitted to the measurements above: "
        f"T = {1e3 * model.fixed:.3g} ms + P {1e6 * model.networks:.3g} us + "
        f"N {1e6 * model.pairs:.3g} us + P N {1e9 * model.both:.3g} ns, P networks and N pairs; "
        f"median error {model.relative_error:.0%}. The first three terms are ask, tell and "
        "sampling, which every device does in full; the last is the evaluation, which is divided. "
        + (
            f"On D devices sharing {model.cores} cores: replicated x max(1, D / cores) + "
            f"{model.dividing:.2f} x evaluation"
            if model.cores
            else f"On D devices: replicated + {model.dividing:.2f} x evaluation / D"
        )
        + f" + (D - 1) {1e3 * model.exchange:.3g} ms; median error "
        f"{model.devices_relative_error:.0%}."
    )


def along(rows: list[Row], axis: str, population: int, pairs: int) -> list[Row]:
    """The measurements on one device in which only `axis` changes."""
    fixed = {"population": population, "pairs": pairs, "hidden": [16, 16], "devices": 1}
    del fixed["hidden" if axis == "parameters" else axis]
    return [row for row in rows if all(row[name] == value for name, value in fixed.items())]


def exponents(rows: list[Row], population: int, pairs: int) -> list[list[Any]]:
    """Slopes of log time against log size: [of, against, range, slope, standard error, points]."""
    lines = []
    for of, axis in itertools.product(
        ("generation", "evaluation"), ("population", "pairs", "parameters")
    ):
        here = [
            (row[axis], row[of]["median_s"])
            for row in along(rows, axis, population, pairs)
            if row.get(of, {}).get("status") == "ok"
        ]
        x, y = np.log(np.asarray(here).T)
        deviation = x - x.mean()
        slope = float(deviation @ y / (deviation @ deviation))
        residual = y - y.mean() - slope * deviation
        variance = residual @ residual / max(1, len(x) - 2) / (deviation @ deviation)
        sizes = sorted(size for size, _ in here)
        error = float(np.sqrt(variance))
        lines.append([of, axis, f"{sizes[0]} to {sizes[-1]}", slope, error, len(here)])
    return lines


def _evaluation_on_chip(work: Work) -> float:
    """Seconds of an evaluation on one TPU chip: padded products, and all layers through memory."""
    shapes = list(itertools.pairwise(work.sizes))
    padded = sum(_padded(fan_in) * _padded(fan_out) for fan_in, fan_out in shapes)
    moved = FLOAT_BYTES * sum(fan_in + fan_out for fan_in, fan_out in shapes)
    return work.pair_evaluations * (2 * padded / PEAK_FLOPS + moved / HBM_BYTES)


def _padded(size: int) -> int:
    return -(-size // ARRAY) * ARRAY


def estimates(model: Model, activation: str) -> list[dict[str, float]]:
    """For several populations, the time of a generation on one chip and on the slice."""
    found = []
    for population, pairs in ((4096, 4096), (65536, 4096), (65536, 65536), (1048576, 4096)):
        evaluation = _evaluation_on_chip(Work(population, pairs, activation=activation))
        here = model.replicated(population, pairs)
        # The replicated part's share as measured here: it gains as much as the evaluation does.
        replicated = here * evaluation / max(model.both * population * pairs, 1e-12)
        gather = population * FLOAT_BYTES / ICI_BYTES + HOPS * HOP_SECONDS
        one, slice_ = replicated + evaluation, replicated + evaluation / CHIPS + gather
        found.append(
            {
                "population": population,
                "pairs": pairs,
                "one_chip_s": one,
                "slice_s": slice_,
                "efficiency": one / (CHIPS * slice_),
                "slice_if_replicated_as_here_s": here + evaluation / CHIPS + gather,
                "replicated_s": replicated,
                "evaluation_s": evaluation,
                "gather_s": gather,
            }
        )
    return found


def estimate_lines(found: list[dict[str, float]]) -> list[list[str]]:
    """The lines of the table under `ESTIMATE_HEAD`."""
    return [
        [
            number(row["population"], 7),
            number(row["pairs"], 7),
            number(1e3 * row["one_chip_s"]),
            number(1e3 * row["slice_s"]),
            number(1 / row["slice_s"]),
            f"{row['efficiency']:.0%}",
            number(1e3 * row["slice_if_replicated_as_here_s"]),
        ]
        for row in found
    ]


def describe_estimate(model: Model) -> str:
    """What the estimate assumes."""
    return (
        "No TPU was used. T(D) = replicated + evaluation / D + all-gather of the fitness. "
        f"Published of a v5e chip: {PEAK_FLOPS / 1e12:.0f} TFLOP/s in bfloat16 (products of "
        f"float32 arrays run so by default), {HBM_BYTES / 1e9:.0f} GB/s of memory and "
        f"{ICI_BYTES / 1e9:.0f} GB/s between chips. Evaluation: every product padded to the "
        f"matrix unit's {ARRAY} x {ARRAY}, plus every layer's input and output through memory, "
        "neither overlapping the other. Replicated part (ask, tell, sampling): the share that it "
        "has in the model fitted here, so it gains from the chip what the evaluation gains; the "
        "last column is the other extreme, in which it gains nothing over this machine. "
        f"All-gather: 4 bytes a network at the link's rate and {HOPS} hops of an assumed "
        f"{1e6 * HOP_SECONDS:g} us. Efficiency: time of one chip / (256 x time of the slice). "
        f"Memory of a chip is not checked. Measured errors of the model: see above "
        f"({model.relative_error:.0%} in the median, on this machine)."
    )
