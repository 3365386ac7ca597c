"""Tiled encoding and decoding: frames in overlapping spatial tiles, where memory does not suffice for whole frames.

All tiles have one size, so that they share compiled functions, and are spread evenly over the frame. Each is encoded or
decoded as a clip of its own, with its own chunks and caches (`vae_chunking`). Overlaps are blended. Along one axis, for
the tile i from s_i to e_i:

    w_i(x) = min(x + 1/2 - s_i, e_i - x - 1/2)         (1)   a linear ramp from each edge that is not the frame's edge
    y(x)   = sum_i w_i(x) y_i(x) / sum_i w_i(x)        (2)   over the tiles that contain x; separable over the two axes

The result differs from that of whole frames: group norms take their statistics over a tile, which lacks what is around
it. `python tests/benchmarks/vae_cost.py` measures the difference.

Dimensions: as in `vae`; h and w are a tile's height and width.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import check_multiple
from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAE

DEFAULT_OVERLAP = 64


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How frames are cut into tiles for one VAE.

    Attributes:
      tile_size: (height, width) in pixels; a frame that is no larger is one tile.
      tile_overlap: pixels that neighbouring tiles share at least.
      spatial: the VAE's spatial factor, of which all sizes here are multiples.
    """

    tile_size: tuple[int, int]
    tile_overlap: int
    spatial: int

    def __post_init__(self):
        for side, size in zip(('height', 'width'), self.tile_size, strict=True):
            check_multiple(f'tile_size: {side}', size, self.spatial)
        if self.tile_overlap:
            check_multiple('tile_overlap', self.tile_overlap, self.spatial)
        if self.tile_overlap >= min(self.tile_size):
            height, width = self.tile_size
            raise ConfigError(
                f'tile_overlap={self.tile_overlap}: must be less than both sides of a tile, {height}x{width}; use '
                f'{min(self.tile_size) - self.spatial} at the most'
            )

    def clamp_tile(self, height: int, width: int) -> tuple[int, int]:
        """Computes the (height, width) in pixels of each tile of a frame of this size."""
        return min(height, self.tile_size[0]), min(width, self.tile_size[1])

    def count(self, height: int, width: int) -> int:
        """Counts the tiles of a frame of this size in pixels."""
        sides = zip((height, width), self.tile_size, strict=True)
        down, across = (self._starts(size // self.spatial, tile // self.spatial) for size, tile in sides)
        return len(down) * len(across)

    def tile_ranges(self, axis: int, cells: int, points: int) -> 'list[TileRange]':
        """Computes the tiles along one axis of a frame.

        Args:
          axis: 0 for height, 1 for width.
          cells: the frame's size along the axis, in latents.
          points: weights (2) to a latent: 1 to blend latents, the spatial factor to blend pixels.
        """
        tile = min(cells, self.tile_size[axis] // self.spatial)
        starts = self._starts(cells, tile)
        ramps_ix = np.zeros((len(starts), points * cells))
        inner = np.arange(points * tile) + 0.5
        for ramp_x, start in zip(ramps_ix, starts, strict=True):
            left = inner if start > 0 else np.full_like(inner, points * cells)
            right = inner[::-1] if start + tile < cells else np.full_like(inner, points * cells)
            ramp_x[points * start : points * (start + tile)] = np.minimum(left, right)  # (1)
        weights_ix = (ramps_ix / ramps_ix.sum(0)).astype(np.float32)  # (2)
        return [
            TileRange(start, tile, weight_x[points * start : points * (start + tile)])
            for start, weight_x in zip(starts, weights_ix, strict=True)
        ]

    def _starts(self, cells: int, tile: int) -> list[int]:
        """Returns the starts, in latents, of the fewest tiles that cover the axis, spread evenly."""
        if tile >= cells:
            return [0]
        steps = -(-(cells - tile) // (tile - self.tile_overlap // self.spatial))
        return [i * (cells - tile) // steps for i in range(steps + 1)]


class TileRange(NamedTuple):
    """A tile along one axis: start and length in latents, and the blending weights of its points, float32."""

    start: int
    length: int
    weights: np.ndarray


def encode(vae: VAE, video_BFHWC: jax.Array, tiling: Tiling) -> jax.Array:
    """Encodes tile by tile as `vae_chunking.encode` with the official chunks, and returns float32 moments.

    Raises what `vae_chunking.encode` raises.
    """
    vae_chunking.check_size(vae.config.latent_spec, *video_BFHWC.shape[2:4])
    run = functools.partial(vae_chunking.encode, vae)
    return _tiled(run, video_BFHWC, tiling, given=tiling.spatial, made=1)


def decode(vae: VAE, z_BFHWC: jax.Array, tiling: Tiling) -> jax.Array:
    """Decodes tile by tile as `vae_chunking.decode` with the official chunks, and returns float32 video.

    Raises what `vae_chunking.decode` raises.
    """
    return _tiled(functools.partial(vae_chunking.decode, vae), z_BFHWC, tiling, given=1, made=tiling.spatial)


def _tiled(
    run: Callable[[jax.Array], jax.Array], x_BFHWC: jax.Array, tiling: Tiling, *, given: int, made: int
) -> jax.Array:
    """Runs every tile and adds up the weighted results.

    Args:
      run: encodes or decodes one tile.
      x_BFHWC: whole frames or latents.
      tiling: the tiles.
      given, made: points to a latent along each side, of input and output.
    """
    height, width = (side // given for side in x_BFHWC.shape[2:4])
    y_BFHWC = None
    for rows in tiling.tile_ranges(0, height, made):
        for columns in tiling.tile_ranges(1, width, made):
            down, across = (slice(given * s.start, given * (s.start + s.length)) for s in (rows, columns))
            tile_BFhwC = run(x_BFHWC[:, :, down, across])
            if y_BFHWC is None:
                batch, frames, *_, channels = tile_BFhwC.shape
                y_BFHWC = jnp.zeros((batch, frames, made * height, made * width, channels), jnp.float32)
            start = made * rows.start, made * columns.start
            y_BFHWC = _add_tile(y_BFHWC, tile_BFhwC, rows.weights, columns.weights, start)
    return y_BFHWC


@functools.partial(jax.jit, donate_argnums=0)  # donated, so that only one copy of the whole video exists
def _add_tile(
    y_BFHWC: jax.Array, tile_BFhwC: jax.Array, rows_h: jax.Array, columns_w: jax.Array, start: tuple[int, int]
) -> jax.Array:
    weighted = rows_h.reshape(1, 1, -1, 1, 1) * columns_w.reshape(1, 1, 1, -1, 1) * tile_BFhwC.astype(jnp.float32)
    at = (0, 0, *start, 0)
    here = jax.lax.dynamic_slice(y_BFHWC, at, tile_BFhwC.shape)
    return jax.lax.dynamic_update_slice(y_BFHWC, here + weighted, at)
