import doctest

import jax.numpy as jnp
import pytest

import edl_jax
from edl_jax import registry
from edl_jax.losses import evolved_loss
from edl_jax.pairs import sampler


@pytest.mark.parametrize("module", [sampler, evolved_loss, registry])
def test_docstring_examples(module):
    names = {name: getattr(edl_jax, name) for name in edl_jax.__all__}
    names |= {**vars(module), "jnp": jnp}
    with edl_jax.SEVERITIES.restored():  # the registry's example adds one
        result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
