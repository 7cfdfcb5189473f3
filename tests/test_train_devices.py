"""A batch divided among 8 devices of one process: forced CPU devices, in its own process."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import cast

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from edl_jax.errors import ConfigError
from edl_jax.runs.devices import device_mesh
from edl_jax.training import Augmentation
from edl_jax.training.programs import make_train
from edl_jax.training.steps import AXIS
from edl_jax.training.training import load_config_dataset
from tests.test_training import CROSS_ENTROPY, DIGITS

ROOT = Path(__file__).parents[1]
SCRIPT = """
import dataclasses
import jax, numpy as np
from edl_jax.runs.devices import device_mesh
from edl_jax.losses import load_pretrained
from edl_jax.training import Augmentation
from edl_jax.training.programs import make_train
from edl_jax.training.steps import AXIS
from edl_jax.training.training import load_config_dataset
from tests.test_pure_loss import Watched
from tests.test_training import DIGITS

class Loss(Watched):  # whose state is to come out equal too
    inner = staticmethod(load_pretrained())

assert jax.device_count() == 8
base = dataclasses.replace(
    DIGITS, sync_batch_norm=True, accumulate=2, train_examples=192, test_examples=101,
    augmentation=Augmentation(cutmix=1.0), ema_decay=0.5, warmup_epochs=0,
)

def trained(devices, **changes):
    config = dataclasses.replace(base, **changes)
    dataset = load_config_dataset(config)
    mesh = device_mesh(AXIS, jax.devices()[:devices])
    functions = make_train(config, dataset, Loss(), mesh)
    state = functions.init(jax.random.key(0))
    state = functions.advance(state, jax.random.key(1), 3)
    seen = ()
    if not changes:
        seen = functions.outputs(state, jax.random.key(1), "train", np.arange(2 * 64)[::-1])
    return jax.device_get((state, functions.evaluate(state, "test"), seen))

def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)

one, eight = trained(1), trained(8)
assert int(eight[0].loss_state["calls"][...]) == 6 and float(eight[0].loss_state["mean"][...]) > 0
assert_close(eight, one)
streamed = trained(8, stream=True)
for a, b in zip(jax.tree.leaves(streamed[:2]), jax.tree.leaves(eight[:2]), strict=True):
    np.testing.assert_array_equal(a, b)
local = trained(8, sync_batch_norm=False)[0]
changed = [not np.allclose(a, b, rtol=2e-3, atol=2e-4) for a, b in zip(
    jax.tree.leaves(local.params), jax.tree.leaves(one[0].params), strict=True)]
assert any(changed)
print("equal")
"""


def test_eight_devices_train_as_one_does_with_synchronised_statistics(monkeypatch):
    """To rounding: sums over the batch are taken in another order. Streamed images, to the bit."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    command = [sys.executable, "-W", "error::DeprecationWarning:edl_jax", "-c", SCRIPT]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "equal"


def test_a_batch_that_the_devices_cannot_share_is_refused():
    class Five:
        devices, size = np.array(jax.devices()), 5

    config, mesh = dataclasses.replace(DIGITS, accumulate=2), cast("Mesh", Five())
    with pytest.raises(ConfigError, match=r"batch_size is 64 with 5 devices .* multiple of 10\."):
        make_train(config, load_config_dataset(config), CROSS_ENTROPY, mesh)


def test_images_that_cannot_be_mixed_two_and_two_are_refused():
    mixup = Augmentation(mixup=1.0)
    config = dataclasses.replace(DIGITS, batch_size=6, accumulate=2, augmentation=mixup)
    with pytest.raises(ConfigError, match="3 images at a time; mixup and cutmix mix two and two"):
        make_train(config, load_config_dataset(config), CROSS_ENTROPY, device_mesh(AXIS, None))
