"""Metrics of a video against its ground truth that need no weights. Each returns one value per frame, (F,) float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require
from fv_jax.evaluation.videos import NotApplicableError, check_pair, gaussian_window, luma, map_frames

_PEAK = 255.0
# Of SSIM: Wang et al. 2004
_SIGMA = 1.5
_RADIUS = 5
_K1, _K2 = 0.01, 0.03


def psnr(video: np.ndarray, truth: np.ndarray, *, on_luma: bool = False, border: int = 0) -> np.ndarray:
    """Computes the peak signal-to-noise ratio of every frame, 10 log10(255^2 / mean squared error).

    Source: the convention of video super-resolution; papers take the mean of this over frames, then over clips.
    Range and direction: dB, 0 upwards, infinite for equal frames; higher is better.

    Args:
      video, truth: float (F, H, W, 3) in [-1, 1].
      on_luma: compares Y of BT.601 in studio range (peak 255 as for RGB, so that figures compare with MATLAB's).
      border: pixels that are omitted along every edge.

    Returns:
      (F,) float32.

    Raises:
      ValueError: videos that do not fit each other or the range, or a border that leaves nothing.
    """
    video, truth = _crop(*check_pair(video, truth, 'PSNR'), border, 1)
    return map_frames(functools.partial(_psnr, on_luma=on_luma), video, truth)


@functools.partial(jax.jit, static_argnames='on_luma')
def _psnr(video: jax.Array, truth: jax.Array, on_luma: bool) -> jax.Array:
    x, y = (luma(v)[..., None] if on_luma else v * (_PEAK / 2) for v in (video, truth))
    error = jnp.mean(jnp.square(x - y), axis=(1, 2, 3))
    return 10 * jnp.log10(_PEAK**2 / error)


def ssim(video: np.ndarray, truth: np.ndarray, *, on_luma: bool = False, border: int = 0) -> np.ndarray:
    """Computes the structural similarity of every frame, the mean over RGB.

    The window is a Gaussian of 11x11 pixels, sigma 1.5; K1 = 0.01, K2 = 0.03, a peak of 255; variances are those of the
    population; the mean is over windows that lie within the frame. This is
    `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.

    Source: Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004.
    Range and direction: -1 to 1, 1 for equal frames; higher is better.

    Args:
      video, truth: float (F, H, W, 3) in [-1, 1].
      on_luma: compares Y of BT.601 in studio range, with the same peak.
      border: pixels that are omitted along every edge.

    Returns:
      (F,) float32.

    Raises:
      ValueError: videos that do not fit each other or the range, or frames below 11 pixels without the border.
    """
    video, truth = _crop(*check_pair(video, truth, 'SSIM'), border, 2 * _RADIUS + 1)
    return map_frames(functools.partial(_ssim, on_luma=on_luma), video, truth)


def _filter_separably(x_FHWC: jax.Array, window: np.ndarray) -> jax.Array:
    """Correlates rows and columns with a window where it lies within the frame."""
    weights = jnp.asarray(window)
    for axis in (1, 2):
        size = x_FHWC.shape[axis] - len(window) + 1

        def add(i: jax.Array, total: jax.Array, x: jax.Array = x_FHWC, axis: int = axis, size: int = size) -> jax.Array:
            return total + weights[i] * jax.lax.dynamic_slice_in_dim(x, i, size, axis)

        shape = [size if i == axis else side for i, side in enumerate(x_FHWC.shape)]
        # A loop, as a sum of slices keeps all of them in memory
        x_FHWC = jax.lax.fori_loop(0, len(window), add, jnp.zeros(shape, x_FHWC.dtype))
    return x_FHWC


@functools.partial(jax.jit, static_argnames='on_luma')
def _ssim(video: jax.Array, truth: jax.Array, on_luma: bool) -> jax.Array:
    # Centred at grey: variances lose fewer digits. The means are those of [0, 255] again in (1).
    x, y = (luma(v)[..., None] - _PEAK / 2 if on_luma else v * (_PEAK / 2) for v in (video, truth))
    window = gaussian_window(_RADIUS, _SIGMA).astype(np.float32)
    mean_x, mean_y, xx, yy, xy = (_filter_separably(z, window) for z in (x, y, x * x, y * y, x * y))
    variances = xx - mean_x**2 + yy - mean_y**2
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + _PEAK / 2, mean_y + _PEAK / 2
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)  # (1)
    return jnp.mean(luminance * (2 * covariance + c2) / (variances + c2), axis=(1, 2, 3))


def _crop(video: np.ndarray, truth: np.ndarray, border: int, min_side: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = (side - 2 * border for side in video.shape[1:3])
    require(border >= 0, f'border={border}: must not be negative')
    left = f'border={border}: leaves {height}x{width} pixels of a frame; at least {min_side}x{min_side} are needed'
    require(min(height, width) >= min_side, left, NotApplicableError)
    inner = np.s_[:, border : border + height, border : border + width]
    return video[inner], truth[inner]
