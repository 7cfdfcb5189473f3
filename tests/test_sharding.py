"""A population divided among 8 devices of one process: forced CPU devices, in its own process."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from edl_jax import PretrainConfig
from edl_jax.errors import ConfigError
from edl_jax.evolution import make_evolution

ROOT = Path(__file__).parents[1]
SCRIPT = """
import dataclasses
import jax, numpy as np
from edl_jax import pretrain
from edl_jax.evolution import make_evolution
from edl_jax.evolution.loop import make_chunk
from edl_jax.runs.devices import device_mesh, to_every_device
from edl_jax.evolution.sharding import AXIS
from tests.test_evolution import TINY

assert jax.device_count() == 8
config = dataclasses.replace(
    TINY, class_counts=(3, 5), population_size=32, restart_after=2, strategy={strategy!r}
)
one, eight = pretrain(config, devices=jax.devices()[:1]), pretrain(config)
for a, b in zip(jax.tree.leaves(one.loss), jax.tree.leaves(eight.loss), strict=True):
    np.testing.assert_array_equal(a, b)
for name in one.history:
    np.testing.assert_array_equal(one.history[name], eight.history[name])

mesh = device_mesh(AXIS)
evolution = make_evolution(config, shards=mesh.size)
chunk = make_chunk(config.generations_per_chunk, evolution, mesh)
state = to_every_device(evolution.init(jax.random.key(0)), mesh)
arguments = jax.random.key(1), state, jax.numpy.int32(0), jax.numpy.int32(2)
lowered = chunk.lower(*arguments)
# Fitness is all that crosses between devices: 32 float32.
crossing = [x for x in lowered.as_text().splitlines() if "stablehlo.all_" in x]
assert len(crossing) == 1 and crossing[0].endswith("-> tensor<32xf32>"), crossing
for platform in {platforms!r}:
    exported = jax.export.export(chunk, platforms=[platform])(*arguments)
    assert exported.nr_devices == 8
print("equal")
"""


@pytest.mark.parametrize(
    ("strategy", "platforms"), [("ChaoticES", ("cuda", "tpu")), ("ChaoticSNES", ())]
)
def test_eight_devices_reach_what_one_reaches_bit_for_bit(strategy, platforms, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    command = [sys.executable, "-W", "error::DeprecationWarning:edl_jax", "-c"]
    result = subprocess.run(
        [*command, SCRIPT.format(strategy=strategy, platforms=platforms)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "equal"


def test_a_population_that_the_devices_cannot_share_is_refused():
    with pytest.raises(ConfigError, match=r"250, which 8 devices.*such as 256 or 248"):
        make_evolution(PretrainConfig(population_size=250), shards=8)
    with pytest.raises(ConfigError, match=r"4, which 8 devices.*such as 8\."):
        make_evolution(PretrainConfig(population_size=4), shards=8)
    assert jax.device_count() == 1
