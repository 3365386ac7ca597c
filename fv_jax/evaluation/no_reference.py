"""Metrics of a video alone that need no weights. Each returns one value per frame, (F,) float32.

All are of luma by BT.601's weights in [0, 255]. None says whether a video is good: noise raises sharpness, fine texture
raises the noise level. They are read beside the same figures of the ground truth.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.evaluation.videos import check_video, full_range_luma, map_frames

JPEG_BLOCK = 8  # pixels, from the left and the top edge
_MIN_SIDE = 3
_EPSILON = 1e-3  # grey levels
_LAPLACIAN = ((0, 1, 0), (1, -4, 1), (0, 1, 0))
_IMMERKAER = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))  # the difference of two Laplacians; its weights' squares sum to 36


def sharpness(video: np.ndarray) -> np.ndarray:
    """Computes the variance of the Laplacian of every frame.

    Source: Pech-Pacheco et al., ICPR 2000 (the measure LAPV of autofocus).
    Range and direction: squared grey levels, 0 upwards; higher is sharper, and noisier.

    Raises:
      ValueError: another shape or range than float (F, H, W, 3) in [-1, 1], or frames below 3 pixels.
    """
    return map_frames(_sharpness, check_video(video, 'sharpness', min_side=_MIN_SIDE))


@jax.jit
def _sharpness(video: jax.Array) -> jax.Array:
    return jnp.var(_filter(full_range_luma(video), _LAPLACIAN), axis=(1, 2))


def noise_level(video: np.ndarray) -> np.ndarray:
    """Estimates the standard deviation of white noise in every frame, as sqrt(pi/2) times a mean absolute value.

    The filter removes linear structure; edges and fine texture that are left count as noise.

    Source: Immerkaer, Computer Vision and Image Understanding 64(2), 1996.
    Range and direction: grey levels, 0 upwards; lower is less noise, and less texture.

    Raises:
      ValueError: another shape or range than float (F, H, W, 3) in [-1, 1], or frames below 3 pixels.
    """
    return map_frames(_noise_level, check_video(video, 'noise level', min_side=_MIN_SIDE))


@jax.jit
def _noise_level(video: jax.Array) -> jax.Array:
    norm = math.sqrt(sum(weight**2 for row in _IMMERKAER for weight in row))
    filtered = jnp.abs(_filter(full_range_luma(video), _IMMERKAER))
    return math.sqrt(math.pi / 2) / norm * jnp.mean(filtered, axis=(1, 2))


def blockiness(video: np.ndarray) -> np.ndarray:
    """Computes how much larger the steps across the edges of 8x8 blocks are than all other steps.

    The mean absolute difference of neighbours across the edges of blocks, over that of all other neighbours, of rows
    and columns together. Blocks start at the left and the top edge: a video that was resized or cropped since it was
    compressed shows little.

    Source: the ratio of the two differences in Wang, Sheikh, Bovik, ICIP 2002, without their fitted coefficients.
    Range and direction: 0 upwards, about 1 without blocks, 1 for a frame of one colour; lower is better.

    Raises:
      ValueError: another shape or range than float (F, H, W, 3) in [-1, 1], or frames below 9 pixels.
    """
    return map_frames(_blockiness, check_video(video, 'blockiness', min_side=JPEG_BLOCK + 1))


@jax.jit
def _blockiness(video: jax.Array) -> jax.Array:
    luma = full_range_luma(video)
    edges, others = [], []
    for axis in (1, 2):
        steps = jnp.moveaxis(jnp.abs(jnp.diff(luma, axis=axis)), axis, 1)
        at_edge = np.arange(1, steps.shape[1] + 1) % JPEG_BLOCK == 0
        edges.append(steps[:, at_edge].reshape(len(luma), -1))
        others.append(steps[:, ~at_edge].reshape(len(luma), -1))
    edge, other = (jnp.mean(jnp.concatenate(steps, axis=1), axis=1) for steps in (edges, others))
    return (edge + _EPSILON) / (other + _EPSILON)


def _filter(luma_FHW: jax.Array, weights: tuple[tuple[int, ...], ...]) -> jax.Array:
    """Correlates frames with weights (3, 3) where they lie within the frame."""
    height, width = (side - 2 for side in luma_FHW.shape[1:])
    return sum(
        weight * luma_FHW[:, i : i + height, j : j + width]
        for i, row in enumerate(weights)
        for j, weight in enumerate(row)
        if weight
    )
