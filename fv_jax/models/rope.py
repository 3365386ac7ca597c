"""Rotary positions (RoPE, arXiv:2104.09864) in three dimensions (model guide 1.5).

A head's channels are split t | h | w. Within a part of width c, pair j of adjacent channels (2j, 2j+1)
is rotated by the angle position * 10000^(-2j/c), where positions are integers from 0 in units of
latent frames and patches:

    out[2j]   = x[2j] cos - x[2j+1] sin
    out[2j+1] = x[2j+1] cos + x[2j] sin

Tables are a function of the sizes and are not cached. Tokens without a position (text, padding) get the
angle 0, which leaves them unchanged.

Dimensions: S video tokens (frame-major, then row, then column), L text tokens, M = L + S joint tokens, N heads,
K head size, B batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.array_typing import Array, Float, typed
from fv_jax.core.checks import require

BASE = 10000.0


class Rope(NamedTuple):
    """cos and sin of every token's angles, (M, K) float32 each, repeated for the two channels of a pair."""

    cos: jax.Array
    sin: jax.Array


def rope_axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Splits a head's channels into the parts that encode (t, h, w): 64 into (16, 24, 24).

    Raises:
      ValueError: `head_dim` does not split into three even parts.
    """
    t = head_dim // 4
    h = (head_dim - t) // 2
    require(
        head_dim % 4 == 0 and t % 2 == 0 and h % 2 == 0 and t + 2 * h == head_dim,
        f'a head of {head_dim} channels does not split into even t | h | w parts; use a multiple of 16',
    )
    return t, h, h


def rope_table(frames: int, height: int, width: int, head_dim: int, num_text: int = 0, num_padding: int = 0) -> Rope:
    """Computes cos and sin for a grid of video tokens; tokens before and after them are not rotated.

    Args:
      frames, height, width: the grid, in latent frames and patches.
      head_dim: K.
      num_text: L, tokens before the video's.
      num_padding: tokens after the video's.

    Returns:
      Two float32 tables of shape (L + frames * height * width + num_padding, K).
    """
    grid = (frames, height, width)
    parts = []
    for axis, channels in enumerate(rope_axis_dims(head_dim)):
        # Angles are rounded once, from float64. Only these small per-axis tables are constants of the program.
        frequencies = BASE ** (-np.arange(0, channels, 2) / channels)
        angles = np.repeat(np.arange(grid[axis])[:, None] * frequencies, 2, axis=1).astype(np.float32)
        shape = [1, 1, 1, channels]
        shape[axis] = grid[axis]
        parts.append(jnp.broadcast_to(jnp.asarray(angles).reshape(shape), (*grid, channels)))
    angles_SK = jnp.concatenate(parts, axis=-1).reshape(frames * height * width, head_dim)
    angles_MK = jnp.pad(angles_SK, ((num_text, num_padding), (0, 0)))
    return Rope(jnp.cos(angles_MK), jnp.sin(angles_MK))


def _swap_by_roll(x: jax.Array) -> jax.Array:
    even = (np.arange(x.shape[-1]) % 2 == 0).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.where(even, jnp.roll(x, -1, axis=-1), jnp.roll(x, 1, axis=-1))


def _swap_by_matmul(x: jax.Array) -> jax.Array:
    channels = np.arange(x.shape[-1])
    return jnp.matmul(x, jnp.asarray(channels[:, None] == channels ^ 1, x.dtype), precision=jax.lax.Precision.HIGHEST)


def swap_pairs(x: jax.Array) -> jax.Array:
    """Swaps the channels of every pair, exactly: (..., K) in the order 1, 0, 3, 2, ...

    On accelerators by a product with a permutation matrix. XLA for TPU implements a roll by slicing and concatenating,
    and slices of 1 and 63 channels are padded to 128 each: 12 GiB for 105,000 tokens of 30 heads. A CPU has no matrix
    unit, and XLA for CPU does not materialize the slices.
    """
    return jax.lax.platform_dependent(x, cpu=_swap_by_roll, default=_swap_by_matmul)


@typed
def apply_rope(x_BMNK: Float[Array, 'b m n k'], rope: Rope) -> Float[Array, 'b m n k']:
    """Rotates every pair of channels by its token's angle (arXiv:2104.09864, eq. 34).

    Args:
      x_BMNK: queries or keys, of any floating dtype.
      rope: of `rope_table`.

    Returns:
      (B, M, N, K), computed in and returned as float32.
    """
    x = x_BMNK.astype(jnp.float32)
    # (x0, x1) -> (-x1, x0)
    sign_K = jnp.asarray(np.where(np.arange(x.shape[-1]) % 2, 1.0, -1.0), jnp.float32)
    return x * rope.cos[None, :, None, :] + swap_pairs(x) * (sign_K[None] * rope.sin)[None, :, None, :]
