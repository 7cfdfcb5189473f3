"""Fix the scale that evolution leaves free (docs/method.md, section 6)."""

from collections.abc import Sequence

import jax

from edl_jax.errors import InputError
from edl_jax.losses.evolved_loss import EvolvedLoss
from edl_jax.objective import gradient_norms
from edl_jax.pairs import Pairs


def calibrated(loss: EvolvedLoss, pairs_sets: Sequence[Pairs]) -> EvolvedLoss:
    """Scale a loss so that its mean logit gradient is as long as cross-entropy's.

    A loss is only fixed up to scale, and its scale acts as a learning rate. Cross-entropy's
    gradient is `p - onehot(y)`; the mean of the norms over all pairs is made equal.

    Args:
      loss: the loss; its present scale does not matter.
      pairs_sets: synthetic pairs, one set for each class count.

    Raises:
      InputError: if the loss is flat on the pairs, so that no scale could do it.
    """

    @jax.jit
    def norms(loss: EvolvedLoss, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
        own, reference = gradient_norms(loss, pairs)
        return own.sum(), reference.sum()

    totals = [norms(loss, pairs) for pairs in pairs_sets]
    own, reference = (float(sum(column)) for column in zip(*totals, strict=True))
    if not own > 0:
        raise InputError(f"the loss's gradient on the pairs sums to {own}; expected a slope.")
    return loss.replace(scale=loss.scale * (reference / own))
