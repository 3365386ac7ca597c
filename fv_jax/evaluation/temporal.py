"""Metrics of how a video changes from frame to frame, on the host: OpenCV computes the optical flow."""

import cv2
import numpy as np

from fv_jax.evaluation.videos import LUMA_WEIGHTS, check_pair, check_video

_MIN_SIDE = 16  # pixels: below, DIS flow has no patches
# Of the occlusion check: Sundaram, Brox, Keutzer, ECCV 2010
_RELATIVE, _ABSOLUTE = 0.01, 0.5
_LUMA = LUMA_WEIGHTS.astype(np.float32)


def warping_error(video: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """Computes the squared difference of every frame to the next one, warped to it along the optical flow.

    The flow is OpenCV's DIS at its medium preset, where papers use FlowNet2 or RAFT: compare only figures of one flow.
    A pixel counts if the forward and the backward flow cancel, |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5, and stay within
    the frame. The mean is over the pixels that count, of values in [0, 1], and over RGB.

    Source: E_warp of Lai et al., ECCV 2018, arXiv 1808.00449.
    Range and direction: 0 to 1; lower is steadier. A blurred video has a lower one than its ground truth.

    Args:
      video: float (F, H, W, 3) in [-1, 1], of two frames or more.
      truth: the video that the flow is computed on; None is `video`.

    Returns:
      (F - 1,) float32; NaN where no pixel counts, as at a cut.

    Raises:
      ValueError: one frame, frames below 16 pixels, or videos that do not fit each other or the range.
    """
    if truth is None:
        video = truth = check_video(video, 'warping error', min_frames=2, min_side=_MIN_SIDE)
    else:
        video, truth = check_pair(video, truth, 'warping error', min_frames=2, min_side=_MIN_SIDE)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [np.rint((frame @ _LUMA + 1).clip(0, 2) * 127.5).astype(np.uint8) for frame in truth]
    errors = []
    for f in range(len(video) - 1):
        forth, back = dis.calc(grey[f], grey[f + 1], None), dis.calc(grey[f + 1], grey[f], None)
        points = _targets(forth)
        counts = _is_visible(forth, _sample(back, points), points)
        difference = np.mean(np.square((video[f] - _sample(video[f + 1], points)) / 2), axis=-1)
        errors.append(np.mean(difference[counts]) if counts.any() else np.nan)
    return np.array(errors, np.float32)


def _targets(flow_HWC: np.ndarray) -> np.ndarray:
    """Returns where the flow leads from every pixel, (H, W, 2) as x and y."""
    height, width = flow_HWC.shape[:2]
    return flow_HWC + np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)


def _sample(image_HWC: np.ndarray, points: np.ndarray) -> np.ndarray:
    return cv2.remap(image_HWC, points, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _is_visible(forth: np.ndarray, back: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the pixels (H, W) whose flow, and the flow back from where it leads, cancel within the frame."""
    height, width = forth.shape[:2]
    inside = np.all((points >= 0) & (points <= (width - 1, height - 1)), axis=-1)
    lengths = np.sum(np.square(forth) + np.square(back), axis=-1)
    return inside & (np.sum(np.square(forth + back), axis=-1) <= _RELATIVE * lengths + _ABSOLUTE)


def flicker(video: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """Computes the mean absolute change of every frame to the next one, of values in [-1, 1].

    Source: none; the plainest measure of change.
    Range and direction: 0 to 2; motion counts as well, so that the ground truth's figure is the one to reach. With
    `truth`, the mean absolute difference of both videos' changes: 0 for equal videos, lower is better.

    Args:
      video: float (F, H, W, 3) in [-1, 1], of two frames or more.
      truth: the ground truth.

    Returns:
      (F - 1,) float32.

    Raises:
      ValueError: one frame, or videos that do not fit each other or the range.
    """
    if truth is None:
        change = np.diff(check_video(video, 'flicker', min_frames=2), axis=0)
    else:
        video, truth = check_pair(video, truth, 'flicker', min_frames=2)
        change = np.diff(video - truth, axis=0)
    return np.mean(np.abs(change), axis=(1, 2, 3))
