"""The MLP of a loss network as one Pallas kernel, for GPU and TPU.

XLA runs layer after layer: each hidden layer of a whole population goes out to memory and comes
back. Here a block of examples passes all layers in one go, so that only features are read and only
losses written.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from edl_jax.errors import ConfigError
from edl_jax.networks.loss_network import ACTIVATIONS, LossNetwork

BLOCK = 512  # examples that pass the layers together
LEAST_WIDTH, GREATEST_WIDTH = 16, 128  # a GPU's products need 16; beyond 128, blocks grow too big


def fused_from_features(
    network: LossNetwork, features: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """What `network.from_features` gives, up to rounding, by one kernel.

    Products are in full float32.

    Args:
      network: the network; `jax.vmap` over its state evaluates a population.
      features: `[num_features, ...]` float32.
      interpret: run the kernel's steps one by one by XLA, so that it can be tested on a CPU.

    Returns:
      The losses, `[...]` float32.

    Raises:
      ConfigError: if a layer is wider than 128.
    """
    layers = network.weights()
    widths = [kernel.shape[0] for kernel, _ in layers]
    check_widths(widths)
    # Padding by zeros changes no loss: what comes of an added unit meets weights of 0.
    padded = [max(LEAST_WIDTH, 1 << (width - 1).bit_length()) for width in widths]
    num_examples = math.prod(features.shape[1:])
    num_blocks = -(-num_examples // BLOCK)
    operands = [_padded(features.reshape(widths[0], -1), padded[0], num_blocks * BLOCK)]
    specs = [pl.BlockSpec((padded[0], BLOCK), lambda block: (0, block))]
    for (kernel, bias), (fan_in, fan_out) in zip(
        layers, itertools.pairwise((*padded, 1)), strict=True
    ):
        is_last = fan_out == 1
        matrix = kernel if is_last else kernel.T
        shape = (fan_in, 1) if is_last else (fan_out, fan_in)
        operands += [_padded(matrix, *shape), _padded(bias[:, None], fan_out, 1)]
        specs += [_whole(shape), _whole((fan_out, 1))]
    activation = ACTIVATIONS[network.activation]

    def kernel_of_block(features_ref, *refs):
        *weights, losses_ref = refs
        x = features_ref[...]
        for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = jnp.dot(
                matrix[...],
                x,
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            x = activation(x + bias[...])
        last, bias = weights[-2:]
        losses_ref[...] = jax.nn.softplus(jnp.sum(last[...] * x, axis=0, keepdims=True) + bias[...])

    call = partial(
        pl.pallas_call,
        kernel_of_block,
        out_shape=jax.ShapeDtypeStruct((1, num_blocks * BLOCK), jnp.float32),
        grid=(num_blocks,),
        in_specs=specs,
        out_specs=pl.BlockSpec((1, BLOCK), lambda block: (0, block)),
    )
    if interpret:
        losses = call(interpret=True)(*operands)
    else:
        by_triton = call(compiler_params=triton.CompilerParams())
        losses = jax.lax.platform_dependent(
            *operands, cuda=by_triton, rocm=by_triton, default=call()
        )
    return losses[0, :num_examples].reshape(features.shape[1:])


def check_widths(widths: Sequence[int]) -> None:
    """Refuse layers that the kernel cannot hold, by how many inputs each has.

    Raises:
      ConfigError: if a layer is wider than 128.
    """
    if max(widths) > GREATEST_WIDTH:
        raise ConfigError(
            f"a layer of the loss network has {max(widths)} inputs; the fused kernel holds at most "
            f"{GREATEST_WIDTH}. Use kernel='xla'."
        )


def _whole(shape: tuple[int, int]) -> pl.BlockSpec:
    """A small array that every block of examples needs whole."""
    return pl.BlockSpec(shape, lambda block: (0, 0))


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1])))
