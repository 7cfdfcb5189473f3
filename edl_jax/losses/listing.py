"""The list of losses that have names."""

import inspect
import re
from typing import NamedTuple

from edl_jax.losses import LOSSES, PRETRAINED, EvolvedLoss


class LossEntry(NamedTuple):
    """A line of the list of losses.

    Attributes:
      name: what `resolve_loss` takes.
      summary: the first line of the docstring.
      reference: the docstring's references, on one line; empty if it has none.
    """

    name: str
    summary: str
    reference: str


def list_losses() -> list[LossEntry]:
    """Every loss of `LOSSES` and `PRETRAINED`."""
    entries = [_entry(name, inspect.getdoc(part) or "") for name, part in LOSSES.items()]
    evolved = _entry("", inspect.getdoc(EvolvedLoss) or "").reference
    return entries + [
        LossEntry(name, f"An evolved loss, {summary}.", evolved)
        for name, summary in PRETRAINED.items()
    ]


def _entry(name: str, doc: str) -> LossEntry:
    references = re.search(r"^References:\n((?:[ ]+.*(?:\n|$))+)", doc, re.MULTILINE)
    text = " ".join(references[1].split()) if references else ""
    return LossEntry(name, doc.partition("\n")[0], text)
