"""Conversion between arrays of one process and global arrays, sharded over the mesh."""

import contextlib
import functools
from typing import Any

import jax
import numpy as np

from fv_jax.core import axes
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.parallel.rules import Partitioner

Batch = dict[str, jax.Array]
Tree = Any


def check_batch_size(partitioner: Partitioner, size: int, what: str, microbatches: int = 1) -> None:
    """Raises ConfigError when a batch does not divide over the mesh, or the batch of a shard into microbatches."""
    parts = partitioner.num_shards(axes.ACT_BATCH) * microbatches
    if size % parts:
        below = size // parts * parts
        sizes = f'{below} or {below + parts}' if below else f'{parts}'
        over = ' x '.join(f'{axis} {partitioner.mesh.shape[axis]}' for axis in ('data', 'fsdp'))
        times = f', config.loop.microbatches={microbatches}' if microbatches > 1 else ''
        raise ConfigError(f'{what}={size}: does not divide by {parts} (config.parallel: {over}{times}); use {sizes}')


def process_part(partitioner: Partitioner) -> tuple[int, int]:
    """Returns which part of every batch this process reads: (index, number of parts).

    Several processes read the same part where the tokens of an example are split over them.

    Raises ConfigError when the examples on the process's devices are not one of equal parts.
    """
    shards = partitioner.num_shards(axes.ACT_BATCH)
    indices = partitioner.sharding((axes.ACT_BATCH,), (shards,), 'batch').addressable_devices_indices_map((shards,))
    mine = sorted({index.indices(shards)[0] for (index,) in indices.values()})
    first, count = mine[0], len(mine)
    require(
        mine == list(range(first, first + count)) and shards % count == 0 and first % count == 0,
        f'config.parallel: this process would have examples {mine} of every {shards}, which is not one of equal parts; '
        'make data x fsdp a multiple of the processes, or context x tensor a multiple of their devices',
        ConfigError,
    )
    return first // count, shards // count


def batch_sharding(
    partitioner: Partitioner, name: str, shape: tuple[int, ...], latent_spec: LatentSpec
) -> jax.sharding.Sharding:
    """Returns the sharding of an array of a batch: over its examples and, for videos, over their columns."""
    if name.endswith('_BFHWC') and not name.startswith('z_'):
        return partitioner.frames_sharding(shape, shape[3] // latent_spec.spatial, name)
    return partitioner.sharding((axes.ACT_BATCH, *(None,) * (len(shape) - 1)), shape, name)


def to_global(batch: dict[str, np.ndarray], partitioner: Partitioner, latent_spec: LatentSpec) -> Batch:
    """Makes the sharded global batch of the parts that the processes have (`process_part`).

    Args:
      batch: this process's part.
      latent_spec: of the VAE that encodes the videos; its spatial factor decides whether their width can be split.
    """
    part, parts = process_part(partitioner)

    def place(name: str, local: np.ndarray) -> jax.Array:
        examples = len(local)
        shape = (parts * examples, *local.shape[1:])
        sharding = batch_sharding(partitioner, name, shape, latent_spec)

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            return local[start - part * examples : stop - part * examples][(slice(None), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, piece)

    return {name: place(name, np.asarray(local)) for name, local in batch.items()}


def put_sharded(tree: Tree, shardings: Tree) -> Tree:
    """Shards arrays that every process has in full; each device receives only its part.

    ShapeDtypeStructs get the sharding as well.
    """

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array | jax.ShapeDtypeStruct:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def on_cpu_device() -> contextlib.AbstractContextManager:
    """A context in which arrays are created in host memory, which has room for all weights.

    Raises ConfigError where JAX_PLATFORMS leaves the CPU out.
    """
    try:
        return jax.default_device(jax.local_devices(backend='cpu')[0])
    except RuntimeError:
        chosen = jax.config.jax_platforms
        raise ConfigError(
            f'JAX_PLATFORMS={chosen}: weights are read on the CPU first; use JAX_PLATFORMS={chosen},cpu'
        ) from None


def to_host(tree: Tree, partitioner: Partitioner) -> Tree:
    """Gathers global arrays as NumPy arrays in every process. All processes must call it."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return jax.tree.map(np.asarray, _gather(tree, partitioner.replicated))


@functools.partial(jax.jit, static_argnums=1)
def _gather(tree: Tree, replicated: jax.sharding.Sharding) -> Tree:
    return jax.lax.with_sharding_constraint(tree, replicated)
