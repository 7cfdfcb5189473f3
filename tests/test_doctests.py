import doctest

import jax.numpy as jnp
import pytest

import edl_jax
from edl_jax import pairs
from edl_jax.losses import evolved_loss


@pytest.mark.parametrize("module", [pairs, evolved_loss])
def test_docstring_examples(module):
    names = {name: getattr(edl_jax, name) for name in edl_jax.__all__}
    names |= {**vars(module), "jnp": jnp}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
