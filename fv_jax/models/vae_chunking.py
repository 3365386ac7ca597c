"""Whole clips through the VAE, cut into chunks of frames as the official system cuts them (model guide 4.3).

Group norms take their statistics per chunk, so the chunks are part of the result: 49 frames are encoded
as 17, 16, 16 and 13 latent frames decoded as 3, 2, 2, 2, 2, 2. The convolutions' caches carry over.
`chunks=None` means these sizes for any valid length; `chunks=(n,)` with the clip's own length is the
whole clip at once. `vae_tiling` cuts frames, too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fv_jax.core.checks import require
from fv_jax.models.vae import SPATIAL_FACTOR, TEMPORAL_FACTOR, VAE

ENCODE_CHUNKS = (17, 16)  # the first, every later one
DECODE_CHUNKS = (3, 2)
FRAME_STEP = 2 * TEMPORAL_FACTOR  # valid clips have 1 + FRAME_STEP * k frames
DECODE_STEP = FRAME_STEP // TEMPORAL_FACTOR
SLICE_OVERLAP = 16  # latent columns of the official two-slice decode

Chunk = Callable[[jax.Array, dict], tuple[jax.Array, dict]]


def is_valid_length(frames: int) -> bool:
    return frames >= 1 and frames % FRAME_STEP == 1


def check_size(height: int, width: int) -> None:
    """Raises ValueError for frames that the VAE cannot take."""
    if height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
        raise ValueError(f'size {height}x{width}: both sides must be multiples of {SPATIAL_FACTOR}')


def pad_to_valid(video_BFHWC: jax.Array) -> jax.Array:
    """Repeats the last frame up to the next valid length; cut the result of the way back with `[:, :frames]`."""
    missing = -(video_BFHWC.shape[1] - 1) % FRAME_STEP
    return jnp.concatenate([video_BFHWC, jnp.repeat(video_BFHWC[:, -1:], missing, axis=1)], axis=1)


def chunk_sizes(length: int, pattern: tuple[int, int]) -> tuple[int, ...]:
    """The official chunks of a clip of `length`: the first of `pattern`, then the second, then what is left."""
    first, later = pattern
    sizes = [min(length, first)]
    while (left := length - sum(sizes)) > 0:
        sizes.append(min(left, later))
    return tuple(sizes)


def _check(chunks: tuple[int, ...], frames: int, step: int) -> None:
    """The first frame stands for itself and the others go in groups: later chunks must hold whole groups."""
    if sum(chunks) != frames or min(chunks) < 1:
        raise ValueError(f'chunks {chunks} add up to {sum(chunks)}, the clip has {frames} frames')
    if any(size % step for size in chunks[1:]):
        raise ValueError(f'chunks {chunks}: all but the first must be multiples of {step}')


def _chunked(run: Chunk, x_BFHWC: jax.Array, chunks: tuple[int, ...]) -> jax.Array:
    outputs, cache, start = [], {}, 0
    for size in chunks:
        output, cache = run(x_BFHWC[:, start : start + size], cache)
        outputs.append(output)
        start += size
    return jnp.concatenate(outputs, axis=1)


def encode(vae: VAE, video_BFHWC: jax.Array, chunks: tuple[int, ...] | None = None) -> jax.Array:
    """Video in [-1, 1] to moments (mean | logvar), before any scale factor.

    Args:
      vae: the network, or anything with its `encoder`.
      video_BFHWC: (B, F, H, W, 3); F = 1 + 8k, H and W multiples of 8.
      chunks: frames per chunk, adding up to F, all but the first multiples of 4; None for the official ones.

    Returns:
      (B, 1 + (F - 1) / 4, H / 8, W / 8, 2C).

    Raises:
      ValueError: a length or a size that the VAE cannot take, chunks that do not add up.
    """
    frames = video_BFHWC.shape[1]
    require(is_valid_length(frames), f'{frames} frames: the VAE takes 1 or 8k + 1; pad with pad_to_valid')
    check_size(*video_BFHWC.shape[2:4])
    chunks = chunk_sizes(frames, ENCODE_CHUNKS) if chunks is None else chunks
    _check(chunks, frames, TEMPORAL_FACTOR)
    return _chunked(vae.encoder, video_BFHWC, chunks)


def decode(vae: VAE, z_BFHWC: jax.Array, chunks: tuple[int, ...] | None = None, *, width_slices: int = 1) -> jax.Array:
    """Latents (scale factor already divided out) to video, nominally in [-1, 1], unclamped.

    Args:
      vae: the network, or anything with its `decoder`.
      z_BFHWC: (B, F', H', W', C).
      chunks: latent frames per chunk, adding up to F', all but the first even; None for the official ones.
      width_slices: 2 decodes the left and the right half by themselves, as the official final decode does: 16
        latent columns of overlap where the latents are at least 32 wide, and a hard crop. It costs a seam.

    Returns:
      (B, 1 + 4 (F' - 1), 8 H', 8 W', 3) for an odd F', which every valid clip has; 4 F' frames for an even one in a
      single chunk.

    Raises:
      ValueError: chunks that do not add up or do not fit, more slices than columns.
    """
    _, frames, _, width, _ = z_BFHWC.shape
    chunks = chunk_sizes(frames, DECODE_CHUNKS) if chunks is None else chunks
    _check(chunks, frames, DECODE_STEP)
    require(1 <= width_slices <= width, f"width_slices={width_slices}: must be from 1 to {width}, the latents' width")
    if width_slices == 1:
        return _chunked(vae.decoder, z_BFHWC, chunks)
    overlap = SLICE_OVERLAP if width >= SLICE_OVERLAP * width_slices else 0
    slices = []
    for i in range(width_slices):
        start, stop = i * width // width_slices, (i + 1) * width // width_slices
        left, right = max(start - overlap, 0), min(stop + overlap, width)
        video = _chunked(vae.decoder, z_BFHWC[:, :, :, left:right], chunks)
        slices.append(video[:, :, :, SPATIAL_FACTOR * (start - left) : SPATIAL_FACTOR * (stop - left)])
    return jnp.concatenate(slices, axis=3)
