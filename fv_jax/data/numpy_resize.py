"""Antialiased resizing with NumPy, for loader threads, which must not start JAX.

Half-pixel centres, edges clamped. With s = size_in / size_out and r = max(s, 1), output i is the mean
of the inputs j weighted by

  w_ij = k((j + 1/2 - (i + 1/2) s) / r)                                                         (1)

normalized over j, where k is the triangle (bilinear: the official resize between the stages, model guide 5.4;
`core/resize.py` is the same in JAX) or Keys' cubic with a = -1/2 (bicubic: sharper, for extracting clips from
larger videos).
"""

import math

import cv2
import numpy as np
from PIL import Image


def resize_bilinear(frames_FHWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes frames by (1) with the triangle.

    Args:
      frames_FHWC: float32, of any range.
      size: (height, width) of the output.

    Returns:
      float32 (F, height, width, C).
    """
    # OpenCV is the fastest, but does not widen the triangle (r = 1): correct only for enlarging.
    grows = size[0] >= frames_FHWC.shape[1] and size[1] >= frames_FHWC.shape[2]
    one = _enlarge if grows else _shrink
    out = np.empty((len(frames_FHWC), *size, frames_FHWC.shape[3]), np.float32)
    for frame, into in zip(frames_FHWC, out, strict=True):
        one(frame, into)
    return out


def _enlarge(frame_HWC: np.ndarray, out_HWC: np.ndarray) -> None:
    cv2.resize(frame_HWC, out_HWC.shape[1::-1], dst=out_HWC, interpolation=cv2.INTER_LINEAR)


def _shrink(frame_HWC: np.ndarray, out_HWC: np.ndarray) -> None:
    """Resizes rows first, then columns, each output line from the few input lines with weight in (1)."""
    rows_PWC = _resample_lines(frame_HWC, out_HWC.shape[0])
    out_HWC[...] = _resample_lines(rows_PWC.swapaxes(0, 1), out_HWC.shape[1]).swapaxes(0, 1)


def _resample_lines(lines: np.ndarray, count: int) -> np.ndarray:
    """Resamples along the first axis to `count` lines by (1)."""
    ratio = len(lines) / count
    reach = max(ratio, 1.0)
    flat = np.ascontiguousarray(lines, np.float32).reshape(len(lines), -1)
    out = np.empty((count, flat.shape[1]), np.float32)
    for i in range(count):
        centre = (i + 0.5) * ratio
        first, last = max(math.ceil(centre - reach - 0.5), 0), min(math.floor(centre + reach + 0.5), len(lines))
        weights = reach - np.abs(np.arange(first, last) + 0.5 - centre)
        np.dot((weights / weights.sum()).astype(np.float32), flat[first:last], out=out[i])
    return out.reshape(count, *lines.shape[1:])


def resize_uint8(frames_FHWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes frames by (1) with the cubic.

    Args:
      frames_FHWC: uint8 RGB.
      size: (height, width) of the output.

    Returns:
      uint8 (F, height, width, 3), rounded and clipped.
    """
    if frames_FHWC.shape[1:3] == size:
        return frames_FHWC
    frames = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames_FHWC)
    return np.stack([np.asarray(frame.resize(size[::-1], Image.Resampling.BICUBIC)) for frame in frames])


def crop_to_aspect(frames_FHWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the largest centred crop with the aspect ratio of `size`, to a pixel, as a view."""
    height, width = frames_FHWC.shape[1:3]
    scale = min(height / size[0], width / size[1])
    crop = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return frames_FHWC[:, top : top + crop[0], left : left + crop[1]]
