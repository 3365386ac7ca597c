"""Whole clips through the VAE, cut into chunks of frames as the official system cuts them (model guide 4.3).

Group norms take their statistics per chunk, so the chunks are part of the result: the official VAE encodes 49 frames
as 17, 16, 16 and decodes 13 latent frames as 3, 2, 2, 2, 2, 2. The convolutions' caches carry over.
`chunks=None` means these sizes for any valid length; `chunks=(n,)` with the clip's own length processes the
whole clip at once. `vae_tiling` also cuts frames into spatial tiles.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.latent_spec import LATENT_FRAME_STEP, LatentSpec
from fv_jax.models.vae import VAE

ENCODE_LATENT_FRAMES = 4  # latent frames that the encoder makes of a chunk; one more of a clip's first chunk
DECODE_CHUNKS = (3, 2)  # latent frames in the decoder's first chunk, and in every later one
SLICE_OVERLAP = 16  # latent columns of the official two-slice decode

Chunk = Callable[[jax.Array, dict], tuple[jax.Array, dict]]


def encode_chunks(latent_spec: LatentSpec) -> tuple[int, int]:
    """Returns the frames in the encoder's first chunk, and in every later one: 17 and 16 for the official VAE."""
    later = ENCODE_LATENT_FRAMES * latent_spec.temporal
    return 1 + later, later


def check_size(latent_spec: LatentSpec, height: int, width: int) -> None:
    """Raises ValueError for a height or width that is no multiple of the VAE's spatial factor."""
    divides = height % latent_spec.spatial == 0 and width % latent_spec.spatial == 0
    require(divides, f'size {height}x{width}: both sides must be multiples of {latent_spec.spatial}')


def pad_to_valid(video_BFHWC: np.ndarray, latent_spec: LatentSpec) -> np.ndarray:
    """Repeats the last frame up to the next valid length, on the host; `[:, :frames]` removes it after decoding."""
    frames = video_BFHWC.shape[1]
    missing = latent_spec.padded_length(frames) - frames
    return np.concatenate([video_BFHWC, np.repeat(video_BFHWC[:, -1:], missing, axis=1)], axis=1)


def chunk_sizes(length: int, pattern: tuple[int, int]) -> tuple[int, ...]:
    """Computes the official chunks of a clip of `length`: pattern[0], then pattern[1] repeated, then the remainder."""
    first, later = pattern
    sizes = [min(length, first)]
    while (left := length - sum(sizes)) > 0:
        sizes.append(min(left, later))
    return tuple(sizes)


def _check(chunks: tuple[int, ...], frames: int, step: int) -> None:
    """Raises ValueError for chunks that do not add up, or a later one that does not hold whole groups of `step`."""
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
    """Encodes video in [-1, 1] as moments (mean | logvar), before any scale factor.

    Args:
      vae: the network, or anything with its `encoder` and `config`.
      video_BFHWC: (B, F, H, W, 3), a length and a size of the VAE's `LatentSpec`.
      chunks: frames per chunk, adding up to F, all but the first multiples of the VAE's factor in time; None for the
        official ones.

    Returns:
      (B, F', H', W', 2C), of the size that the VAE's `LatentSpec` gives.

    Raises:
      ValueError: a length or a size that the VAE cannot take, chunks that do not add up.
    """
    frames, latent_spec = video_BFHWC.shape[1], vae.config.latent_spec
    lengths = f'1 or {latent_spec.frame_step}k + 1 frames'
    require(latent_spec.is_valid_length(frames), f'{frames} frames: the VAE takes {lengths}; pad with pad_to_valid')
    check_size(latent_spec, *video_BFHWC.shape[2:4])
    chunks = chunk_sizes(frames, encode_chunks(latent_spec)) if chunks is None else chunks
    _check(chunks, frames, latent_spec.temporal)
    return _chunked(vae.encoder, video_BFHWC, chunks)


def slice_columns(width: int, width_slices: int) -> list[tuple[int, int, int, int]]:
    """Computes (left, start, stop, right) of each slice of the latents: decodes left:right and keeps start:stop."""
    overlap = SLICE_OVERLAP if width >= SLICE_OVERLAP * width_slices else 0
    kept = [(i * width // width_slices, (i + 1) * width // width_slices) for i in range(width_slices)]
    return [(max(start - overlap, 0), start, stop, min(stop + overlap, width)) for start, stop in kept]


def decode(vae: VAE, z_BFHWC: jax.Array, chunks: tuple[int, ...] | None = None, *, width_slices: int = 1) -> jax.Array:
    """Decodes latents (already divided by the scale factor) as video, nominally in [-1, 1], not clipped.

    Args:
      vae: the network, or anything with its `decoder` and `config`.
      z_BFHWC: (B, F', H', W', C).
      chunks: latent frames per chunk, adding up to F', all but the first even; None for the official ones.
      width_slices: 2 decodes the left and the right half separately, as the official final decode does: with 16 latent
        columns of overlap where the latents are at least 32 wide, and a hard crop, which leaves a seam.

    Returns:
      (B, F, H, W, 3), of the size that the VAE's `LatentSpec` gives for an odd F', which every valid clip has. For an
      even F' in a single chunk, every latent frame is decoded as `temporal` frames.

    Raises:
      ValueError: chunks that do not add up or do not fit, more slices than columns.
    """
    _, frames, _, width, _ = z_BFHWC.shape
    chunks = chunk_sizes(frames, DECODE_CHUNKS) if chunks is None else chunks
    _check(chunks, frames, LATENT_FRAME_STEP)
    require(1 <= width_slices <= width, f"width_slices={width_slices}: must be from 1 to {width}, the latents' width")
    if width_slices == 1:
        return _chunked(vae.decoder, z_BFHWC, chunks)
    spatial, slices = vae.config.latent_spec.spatial, []
    for left, start, stop, right in slice_columns(width, width_slices):
        video = _chunked(vae.decoder, z_BFHWC[:, :, :, left:right], chunks)
        slices.append(video[:, :, :, spatial * (start - left) : spatial * (stop - left)])
    return jnp.concatenate(slices, axis=3)
