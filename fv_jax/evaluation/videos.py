"""What all metrics share: the checks of their videos, luma, and computing a few frames at a time.

Videos are float (F, H, W, 3) in [-1, 1] on the host. To compare with figures of others, round them to 8 bits first, as
a file does: `to_float(to_uint8(video))`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require

LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # BT.601, of red, green and blue
_SLACK = 1e-3  # beyond [-1, 1]
_PIXELS = 2**21  # that are computed at a time: a frame at 1080p
# BT.601 of red, green and blue in [0, 1], in studio range (16 to 235): MATLAB's rgb2ycbcr
_Y_WEIGHTS = (65.481, 128.553, 24.966)
_Y_OFFSET = 16.0


class NotApplicableError(ValueError):
    """A metric is not defined for a video: it has too few frames or pixels, or no texture."""


def check_video(
    video: np.ndarray, name: str, min_frames: int = 1, min_side: int = 1, allow_uint8: bool = False
) -> np.ndarray:
    """Returns a video as float32.

    Args:
      video: float (F, H, W, 3) in [-1, 1].
      name: of the video, or of the metric that needs the frames and the side, for the error.
      min_frames, min_side: the least number of frames, and of pixels along both sides.
      allow_uint8: accepts a uint8 video as well, and returns it as it is, which takes a quarter of the memory.

    Raises:
      NotApplicableError: too few frames or pixels.
      ValueError: another shape or dtype, or values that are not finite or beyond [-1, 1].
    """
    video = np.asarray(video)
    require(video.ndim == 4, f'{name}: shape {video.shape}; must be (frames, height, width, 3)')
    grey = '; repeat a grey channel three times' if video.shape[-1] == 1 else ''
    require(video.shape[-1] == 3, f'{name}: {video.shape[-1]} channel(s); must be 3, red, green and blue{grey}')
    is_uint8, floating = allow_uint8 and video.dtype == np.uint8, np.issubdtype(video.dtype, np.floating)
    require(
        is_uint8 or floating,
        f'{name}: dtype {video.dtype}; must be float in [-1, 1], which data.transforms.to_float gives',
    )
    few = f'{name}: {len(video)} frame(s); needs at least {min_frames}'
    require(len(video) >= min_frames, few, NotApplicableError)
    height, width = video.shape[1:3]
    small = f'{name}: frames of {height}x{width}; needs at least {min_side}x{min_side} pixels'
    require(min(height, width) >= min_side, small, NotApplicableError)
    if is_uint8:
        return video
    low, high = float(np.min(video)), float(np.max(video))  # NaN if any value is
    require(np.isfinite(low) and np.isfinite(high), f'{name}: has values that are not finite (NaN or infinity)')
    inside = low >= -1 - _SLACK and high <= 1 + _SLACK
    require(inside, f'{name}: values from {low:g} to {high:g}; must be in [-1, 1], clip or rescale them')
    return video.astype(np.float32, copy=False)


def check_pair(
    video: np.ndarray,
    truth: np.ndarray,
    metric: str,
    min_frames: int = 1,
    min_side: int = 1,
    allow_uint8: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns two videos of one shape as float32; arguments and errors are those of `check_video`.

    uint8 is accepted of both or of neither.
    """
    shapes = np.shape(video), np.shape(truth)
    require(shapes[0] == shapes[1], f'{metric}: video {shapes[0]} and ground truth {shapes[1]} differ in shape')
    allow_uint8 = allow_uint8 and np.asarray(video).dtype == np.asarray(truth).dtype
    limits = min_frames, min_side, allow_uint8
    return check_video(video, f'{metric}: video', *limits), check_video(truth, f'{metric}: ground truth', *limits)


def luma(video_FHWC: jax.Array) -> jax.Array:
    """Computes Y of BT.601 in studio range, (F, H, W) in [16, 235], not rounded."""
    weights = jnp.array(_Y_WEIGHTS, jnp.float32)
    return jnp.sum((video_FHWC + 1) / 2 * weights[None, None, None], axis=-1) + _Y_OFFSET


def full_range_luma(video_FHWC: jax.Array) -> jax.Array:
    """Computes luma by BT.601's weights, (F, H, W) in [0, 255], not rounded."""
    weights = jnp.array(LUMA_WEIGHTS, jnp.float32)
    return jnp.sum((video_FHWC + 1) * 127.5 * weights[None, None, None], axis=-1)


def gaussian_window(radius: int, sigma: float) -> np.ndarray:
    """Returns the weights of a Gaussian at -radius to radius, float64, of sum 1."""
    weights = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / sigma))
    return weights / weights.sum()


def map_frames(function: Callable[..., jax.Array], *videos: np.ndarray) -> np.ndarray:
    """Applies a function of frames to a few frames at a time, so that one program and little memory are enough.

    Args:
      function: (n, H, W, C), ... -> (n, ...), where n is 1 at 1080p and larger for small frames.
      videos: (F, H, W, C), of one length.

    Returns:
      (F, ...).
    """
    frames, height, width = videos[0].shape[:3]
    batch = min(frames, max(1, _PIXELS // (height * width)))
    found = []
    for first in range(0, frames, batch):
        parts = [video[first : first + batch] for video in videos]
        missing = batch - len(parts[0])  # the last frame is repeated, so that no other program is compiled
        padded = [np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part for part in parts]
        found.append(np.asarray(function(*map(jnp.asarray, padded)))[: len(parts[0])])
    return np.concatenate(found)
