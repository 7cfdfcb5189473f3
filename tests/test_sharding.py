"""A population divided among the devices of one process."""

import dataclasses

import jax
import numpy as np
import pytest

from edl_jax import StrategyConfig, pretrain
from edl_jax.errors import ConfigError
from edl_jax.evolution.run import POPULATION
from edl_jax.runs.devices import check_share, device_mesh
from tests.test_evolution import TINY, evolution_of

MANY = dataclasses.replace(TINY, class_counts=(3, 5), population_size=32)


def assert_close(two, one):
    for a, b in zip(jax.tree.leaves(two.loss), jax.tree.leaves(one.loss), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for name in one.history:
        np.testing.assert_allclose(two.history[name], one.history[name], rtol=1e-4)


def test_two_devices_reach_what_one_reaches_up_to_rounding(tiny_pretraining):
    _, two = tiny_pretraining
    assert_close(two, pretrain(TINY, devices=jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ChaoticES", "ChaoticSNES"])
def test_so_they_do_with_several_class_counts(strategy):
    config = dataclasses.replace(MANY, strategy=StrategyConfig(strategy))
    assert_close(pretrain(config), pretrain(config, devices=jax.devices()[:1]))


def test_fitness_is_all_that_crosses_between_devices():
    mesh = device_mesh(POPULATION)
    evolution = evolution_of(MANY, mesh=mesh)
    arguments = jax.eval_shape(evolution.begin, jax.random.key(0)), np.int32(2)
    lowered = evolution._advance.lower(*arguments).as_text()
    (crossing,) = [x for x in lowered.splitlines() if "stablehlo.all_" in x]
    assert crossing.endswith("-> tensor<32xf32>")
    exported = jax.export.export(evolution._advance, platforms=["cuda", "tpu"])(*arguments)
    assert exported.nr_devices == mesh.size == 2


def test_a_population_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ConfigError, match=r"250, which 8 devices.*such as 256 or 248"):
        check_share(250, 8)
    with pytest.raises(ConfigError, match=r"4, which 8 devices.*such as 8\."):
        check_share(4, 8)
    check_share(250, 1)
