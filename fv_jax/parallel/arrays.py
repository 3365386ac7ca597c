"""Between a process's memory and arrays over the mesh."""

import contextlib
from typing import Any

import jax
import numpy as np

from fv_jax.core import axes
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.parallel.rules import Names, Placement

Batch = dict[str, jax.Array]
Tree = Any


def check_rows(placement: Placement, rows: int, what: str, microbatches: int = 1) -> None:
    """Raises ConfigError when a batch of so many rows does not divide over the mesh, each share into microbatches."""
    parts = placement.shards(axes.ACT_BATCH) * microbatches
    if rows % parts:
        below = rows // parts * parts
        sizes = f'{below} or {below + parts}' if below else f'{parts}'
        over = ' x '.join(f'{axis} {placement.mesh.shape[axis]}' for axis in ('data', 'fsdp'))
        times = f', config.loop.microbatches={microbatches}' if microbatches > 1 else ''
        raise ConfigError(f'{what}={rows}: does not divide by {parts} (config.parallel: {over}{times}); use {sizes}')


def process_rows(placement: Placement) -> tuple[int, int]:
    """Which part of every batch this process has to read: (index, number of parts).

    Several processes read the same part where the tokens of one row are split over them.

    Raises ConfigError when a process's devices hold rows that do not make such a part.
    """
    shards = placement.shards(axes.ACT_BATCH)
    indices = placement.sharding((axes.ACT_BATCH,), (shards,), 'rows').addressable_devices_indices_map((shards,))
    mine = sorted({index.indices(shards)[0] for (index,) in indices.values()})
    first, count = mine[0], len(mine)
    require(
        mine == list(range(first, first + count)) and shards % count == 0 and first % count == 0,
        f'config.parallel: this process would hold rows {mine} of every {shards}, which is not one part of equal '
        'ones; let data x fsdp be a multiple of the processes, or context x tensor a multiple of their devices',
        ConfigError,
    )
    return first // count, shards // count


def picture_axes(placement: Placement, shape_BFHWC: tuple[int, ...], stride: int) -> Names:
    """The logical axes of a video. Columns are split where those of its latents divide, which are `stride` times fewer;
    else the pictures are whole on every chip.
    """
    divides = shape_BFHWC[3] % (stride * placement.shards(axes.ACT_WIDTH)) == 0
    return (axes.ACT_BATCH, None, None, axes.ACT_WIDTH if divides else None, None)


def batch_axes(placement: Placement, name: str, shape: tuple[int, ...], latent_spec: LatentSpec) -> Names:
    """The logical axes of an array of a batch: rows and, of videos, columns. Latents and texts are small."""
    if name.endswith('_BFHWC') and not name.startswith('z_'):
        return picture_axes(placement, shape, latent_spec.spatial)
    return (axes.ACT_BATCH, *(None,) * (len(shape) - 1))


def to_global(batch: dict[str, np.ndarray], placement: Placement, latent_spec: LatentSpec) -> Batch:
    """This process's part of a batch (`process_rows`) -> the global batch, over the mesh. latent_spec: of the VAE that
    videos go to, whose latents say where their columns can be split.
    """
    part, parts = process_rows(placement)

    def place(name: str, local: np.ndarray) -> jax.Array:
        rows = len(local)
        shape = (parts * rows, *local.shape[1:])
        sharding = placement.sharding(batch_axes(placement, name, shape, latent_spec), shape, name)

        def piece(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            return local[start - part * rows : stop - part * rows][(slice(None), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, piece)

    return {name: place(name, np.asarray(local)) for name, local in batch.items()}


def place(tree: Tree, shardings: Tree) -> Tree:
    """Arrays that every process has whole -> arrays over the mesh. Each device receives its part only. Shapes become
    shapes that know where they are to live.
    """

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array | jax.ShapeDtypeStruct:
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def in_host_memory() -> contextlib.AbstractContextManager:
    """Within it, arrays are made in the host's memory, where a whole network has room."""
    return jax.default_device(jax.local_devices(backend='cpu')[0])


def to_host(tree: Tree, placement: Placement) -> Tree:
    """The whole arrays in every process's memory. All processes must call it."""
    whole = jax.jit(lambda x: x, out_shardings=placement.replicated)(tree)
    return jax.tree.map(np.asarray, whole)
