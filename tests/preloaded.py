"""All that a run imports, for the process from which runs are forked (`tests.forked`).

JAX's backend must not start in it: its threads would be missing in what is forked.
"""

import gc
from unittest import mock

import numpy as np
from jax._src import xla_bridge

with mock.patch("jax.numpy.asarray", np.asarray):  # a constant of evosax starts the backend
    import evosax.algorithms  # noqa: F401

import orbax.checkpoint  # noqa: F401
from tensorboardX import event_file_writer, summary  # noqa: F401
from tensorboardX.proto import event_pb2  # noqa: F401

import edl_jax.evolution.pretraining  # noqa: F401
import tests.test_evolution  # noqa: F401

assert not xla_bridge.backends_are_initialized()

gc.freeze()  # so that what is forked shares it
