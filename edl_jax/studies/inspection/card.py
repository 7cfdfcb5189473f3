"""The words and tables of a loss's card (`edl inspect`), made from the numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from edl_jax.losses import EvolvedLoss
from edl_jax.losses.by_name import Loss
from edl_jax.pairs import REGIMES
from edl_jax.runs.describing import describe
from edl_jax.runs.environment import NOT_INSTALLED
from edl_jax.studies.inspection import loss_shape as shape
from edl_jax.studies.results import ABSENT, Column, Row, Table, number, span

PAIRS = 1000 * len(REGIMES)
POINTS = (0.01, 0.1, 0.5, 0.9, 0.99)  # of the true class's probability, where gradients are listed
CURVES = (
    "Loss, pull on the true class's logit (minus the gradient by it: below 0 descent lowers the "
    "true class), and norm of the logit gradient beside cross-entropy's, against the true class's "
    "probability. The rest goes to one rival, or to all other classes alike; cross-entropy and "
    "focal: to one rival. Grey: below 1 % of cross-entropy's gradient."
)
RIVALS = (
    "Loss and norm of the logit gradient over the probabilities of the true class and of its "
    "strongest rival, on one colour scale in each row. Right of the dotted line the true class "
    "leads. Beyond the scale's ends the loss has their colours."
)
SIMPLEX = (
    "The same over all predictions of three classes; corners are certain predictions. One colour "
    "scale in each row."
)


def ranges(found: Sequence[tuple[float, float]]) -> str:
    """Intervals of probabilities as text."""
    return ", ".join(f"{low:.2g} to {high:.4g}" for low, high in found) or "nowhere"


def parts_table(parts: Sequence[shape.Part]) -> Table:
    """The parts of a loss with their parameters, and all of them."""
    rows = [part._asdict() for part in parts]
    rows.append({"name": "all", "arrays": "", "parameters": sum(p.parameters for p in parts)})
    return Table(
        "layers",
        "What it is made of: parameters, input first",
        rows,
        (
            Column("layer", lambda row: row["name"], is_number=False),
            Column("arrays, inputs × outputs", lambda row: row["arrays"], is_number=False),
            Column("parameters", number("parameters", ",d")),
        ),
    )


def paths_table(rows: Sequence[Row]) -> Table:
    """What a loss does along each path, from the rows of `inspect`."""
    ratios = [Column(f"{p:g}", number(f"ratio_{p:g}", ".2f")) for p in POINTS]
    ratios[0] = ratios[0]._replace(heading=f"gradient ÷ cross-entropy's at p = {POINTS[0]:g}")
    return Table(
        "paths",
        "As the true class's probability p grows from 0.0001 to 0.9999",
        rows,
        (
            Column("classes", number("classes", "d")),
            Column("the rest goes to", lambda row: row["others"], is_number=False),
            *ratios,
            Column("falls all the way", lambda r: "yes" if r["falls"] else "no", is_number=False),
            Column("convex in the logit, % of the way", number("convex", ".0f")),
            Column("turns at p", lambda row: row["turns"], is_number=False),
            Column("vanishes at p", lambda row: row["vanishes"], is_number=False),
            Column("loss at p = 1", number("at_perfect", ".3g")),
        ),
    )


def regimes_table(shares: Mapping[int, Mapping[str, shape.Shares]]) -> Table:
    """What a loss's gradient does on pairs, by regime, from `shares` by class count."""
    rows = [
        {"regime": regime}
        | {
            f"{field}_{count}": getattr(found[regime], field) * (1 if field == "ratio" else 100)
            for field in shape.Shares._fields
            for count, found in shares.items()
        }
        for regime in ("all", *REGIMES)
    ]
    counts = " / ".join(map(str, shares))

    def cell(field: str, form: str) -> Any:
        cells = [number(f"{field}_{count}", form) for count in shares]
        return lambda row: " / ".join(one(row) for one in cells)

    return Table(
        "regimes",
        f"On synthetic pairs of {counts} classes",
        rows,
        (
            Column("pairs", lambda row: row["regime"].replace("_", " "), is_number=False),
            Column("gradient turns, %", cell("turns", ".1f")),
            Column("gradient vanishes, %", cell("vanishes", ".1f")),
            Column("mean gradient ÷ cross-entropy's", cell("ratio", ".2f")),
        ),
    )


def finding(
    name: str,
    loss: Loss,
    parts: Sequence[shape.Part],
    paths: Sequence[Row],
    shares: Mapping[int, Mapping[str, shape.Shares]],
) -> str:
    """A paragraph that says what the figures show."""
    size = sum(part.parameters for part in parts)
    made = f"a formula without parameters, {describe(loss)}"
    if isinstance(loss, EvolvedLoss):
        built = loss.architecture
        widths = ", ".join(map(str, built.hidden))
        made = (
            f"a {built.network.replace('_', '-')} network with hidden layers of {widths} units "
            f"({built.activation}) and {size:,} parameters"
        )
    elif parts:
        made = f"a formula with {size} learned parameters, {describe(loss)}"
    sentences = [f"{name} is {made}."]

    rising = [row for row in paths if not row["falls"]]
    if not rising:
        sentences.append("It falls all the way as the true class gains probability.")
    else:
        where = "; ".join(f"{r['classes']} classes, the rest to {r['others']}" for r in rising)
        sentences.append(f"It does not fall all the way as the true class gains ({where}).")
    ratios = {p: [row[f"ratio_{p:g}"] for row in paths] for p in POINTS}
    spans = ", ".join(f"{span(values, '.2f')} at p = {p:g}" for p, values in ratios.items())
    sentences.append(f"Its logit gradient's norm is cross-entropy's times {spans}.")
    convex = span([row["convex"] for row in paths], ".0f")
    sentences.append(
        f"It is convex in the true class's logit on {convex} % of the way (cross-entropy: 100)."
    )
    for field, what in (("turns", "turns away from the true class"), ("vanishes", "vanishes")):
        worst, count, regime = max(
            (getattr(found[regime], field), count, regime)
            for count, found in shares.items()
            for regime in REGIMES
        )
        if worst == 0:
            sentences.append(f"Its gradient {what} on none of the synthetic pairs.")
            continue
        overall = " / ".join(f"{100 * getattr(f['all'], field):.1f}" for f in shares.values())
        sentences.append(
            f"Its gradient {what} on {overall} % of the synthetic pairs of "
            f"{' / '.join(map(str, shares))} classes, most often on those that are "
            f"{regime.replace('_', ' ')}, of {count} classes ({100 * worst:.1f} %)."
        )
    costs = span([row["at_perfect"] for row in paths], ".3g")
    sentences.append(f"A perfect prediction costs {costs}, with cross-entropy 0.")
    return " ".join(sentences)


def protocol(loss: Loss) -> list[str]:
    """How it was measured, and where an evolved loss says it comes from."""
    sentences = [
        "Logits are log-probabilities, but along a path, where the true class's alone changes; the "
        "true class is class 0, the rival class 1. All in float32, from p = 0.0001 to 0.9999.",
        "Turns: the gradient by the true class's logit is not negative, so that descent does not "
        "raise it. Vanishes: the gradient's norm is below 1 % of cross-entropy's; such a gradient "
        "is not said to turn.",
        f"Synthetic pairs: {PAIRS:,} of each class count, all regimes alike, seed 0; those where "
        f"cross-entropy's gradient is below {shape.LEAST_REFERENCE:g} are left out.",
        "Where a loss depends on how often each class occurs, all occur alike.",
    ]
    if isinstance(loss, EvolvedLoss):
        told = loss.provenance
        how = ", ".join(
            f"{key.replace('_', ' ')} {told.config[key]}"
            for key in ("severity", "margin", "mutation", "population_size", "generations", "seed")
            if key in told.config
        )
        made = ", ".join(
            f"{key} {value}" for key, value in told.versions.items() if value != NOT_INSTALLED
        )
        accuracy = told.metrics.get("pairwise_accuracy")
        ordered = ABSENT if accuracy is None else f"{100 * accuracy:.4f} %"
        sentences += [
            f"The loss file says it was evolved with {how or ABSENT}; libraries: {made or ABSENT}; "
            f"held-out pairwise accuracy: {ordered}.",
            f"Calibration multiplies the network's output by {float(loss.scale):.4g}.",
        ]
    return sentences
