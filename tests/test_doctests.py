import doctest

import jax.numpy as jnp
import pytest

import edl_jax
from edl_jax.frozen import evolved_loss
from edl_jax.pairs import sampler


@pytest.mark.parametrize("module", [sampler, evolved_loss])
def test_docstring_examples(module):
    names = {**vars(edl_jax), **vars(module), "jnp": jnp}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
