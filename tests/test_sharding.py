"""A population divided among the devices of one process."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edl_jax import PretrainConfig, pretrain
from edl_jax.errors import ConfigError
from edl_jax.evolution import make_evolution
from edl_jax.evolution.loop import make_chunk
from edl_jax.evolution.sharding import AXIS
from edl_jax.runs.devices import device_mesh
from tests.test_evolution import TINY

MANY = dataclasses.replace(TINY, class_counts=(3, 5), population_size=32)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        pytest.param(
            dataclasses.replace(MANY, restart_after=2, strategy="ChaoticSNES"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda config: config.strategy,
)
def test_two_devices_reach_what_one_reaches_bit_for_bit(config):
    one, two = pretrain(config, devices=jax.devices()[:1]), pretrain(config)
    for a, b in zip(jax.tree.leaves(one.loss), jax.tree.leaves(two.loss), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in one.history:
        np.testing.assert_array_equal(one.history[name], two.history[name])


def test_only_fitness_crosses_between_devices():
    mesh = device_mesh(AXIS)
    assert mesh.size == 2
    evolution = make_evolution(MANY, shards=mesh.size)
    chunk = make_chunk(MANY.generations_per_chunk, evolution, mesh)
    key, index = jax.random.key(0), jnp.int32(0)
    arguments = key, jax.eval_shape(evolution.init, key), index, index
    lowered = chunk.lower(*arguments)
    crossing = [x for x in lowered.as_text().splitlines() if "stablehlo.all_" in x]
    assert len(crossing) == 1  # 32 float32
    assert crossing[0].endswith("-> tensor<32xf32>")
    for platform in ("cuda", "tpu"):
        exported = jax.export.export(chunk, platforms=[platform])(*arguments)
        assert exported.nr_devices == mesh.size


def test_a_population_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ConfigError, match=r"250, which 8 devices.*such as 256 or 248"):
        make_evolution(PretrainConfig(population_size=250), shards=8)
    with pytest.raises(ConfigError, match=r"4, which 8 devices.*such as 8\."):
        make_evolution(PretrainConfig(population_size=4), shards=8)
    assert jax.device_count() < 8
