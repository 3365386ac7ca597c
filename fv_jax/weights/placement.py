"""Places parameters on devices as they are read, so that the host holds one tensor of a file beside the shards."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fv_jax.parallel.arrays import put_sharded
from fv_jax.weights.parameters import Layer, Parameter, Shape

# Stacked parameters up to this size are assembled on the host: placing them layer by layer compiles two programs.
SMALL_BYTES = 2**25


def place_parameter(parameter: Parameter, sharding: NamedSharding | None) -> jax.Array:
    """Reads a parameter and places it, a large stacked one layer by layer. All processes of the sharding call this.

    Args:
      parameter: which every process can read in full.
      sharding: each device receives its part only; None is the default device.
    """
    if parameter.layer is None or parameter.nbytes <= SMALL_BYTES:
        return _place_array(parameter.numpy(), sharding)
    return _place_layers(parameter.layer, parameter.shape, parameter.dtype, sharding)


def _place_array(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    return jnp.asarray(array) if sharding is None else put_sharded(array, sharding)


def _place_layers(layer: Layer, shape: Shape, dtype: np.dtype, sharding: NamedSharding | None) -> jax.Array:
    """Places a stacked array: the host holds one layer at a time, and each device its part and that of a layer."""
    of_layer = None
    if sharding is not None:
        split, *rest = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
        assert split is None, f'{sharding.spec} splits the layers'
        of_layer = NamedSharding(sharding.mesh, PartitionSpec(*rest))
    stack = jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)()
    set_layer = jax.jit(_set_layer, donate_argnums=0, out_shardings=sharding)
    for i in range(shape[0]):
        stack = set_layer(stack, _place_array(layer(i), of_layer), i)
        stack.block_until_ready()  # or the host would read further layers meanwhile
        gc.collect(0)  # frees the host's copy: JAX keeps the buffers that it has copied until a collection or a call
    return stack


def _set_layer(stack: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)
