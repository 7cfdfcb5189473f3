import doctest
from unittest import mock

import jax.numpy as jnp
import pytest

import edl_jax
from edl_jax import pairs, registry
from edl_jax.losses import evolved_loss, lift


@pytest.mark.parametrize("module", [pairs, evolved_loss, registry, lift])
def test_docstring_examples(module):
    names = {name: getattr(edl_jax, name) for name in edl_jax.__all__}
    names |= {**vars(module), "jnp": jnp}
    # Examples add to these.
    with mock.patch.dict(edl_jax.SEVERITIES), mock.patch.dict(edl_jax.LOSSES):
        result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
