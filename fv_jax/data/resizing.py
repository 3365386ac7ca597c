"""Antialiased resizing for the workers that must not start JAX: Pillow's filters, and OpenCV where they agree.

Half-pixel centres, edges clamped. With s = size_in / size_out and r = max(s, 1), output i is the mean
of the inputs j weighted by

  w_ij = k((j + 1/2 - (i + 1/2) s) / r)                                                         (1)

normalised over j, where k is the triangle (bilinear: the official resize between the stages, FACTS 5.4;
`core/resize.py` is the same in JAX) or Keys' cubic with a = -1/2 (bicubic: sharper, for cutting clips from
larger film).
"""

import cv2
import numpy as np
from PIL import Image


def resize_bilinear(frames_FHWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 frames to float32 frames of `size` = (height, width), (1) with the triangle."""
    # OpenCV is 25 times faster; it does not widen the triangle (r = 1), which is right only where nothing shrinks.
    grows = size[0] >= frames_FHWC.shape[1] and size[1] >= frames_FHWC.shape[2]
    one = _enlarge if grows else _resize_planes
    return np.stack([one(frame, size) for frame in frames_FHWC])


def _enlarge(frame_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(frame_HWC, size[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size, -1)


def _resize_planes(frame_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(frame_HWC, -1, 0))
    return np.stack([np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR)) for plane in planes], axis=-1)


def resize_uint8(frames_FHWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 RGB frames to uint8 frames of `size` = (height, width), (1) with the cubic, rounded and clipped."""
    if frames_FHWC.shape[1:3] == size:
        return frames_FHWC
    frames = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames_FHWC)
    return np.stack([np.asarray(frame.resize(size[::-1], Image.Resampling.BICUBIC)) for frame in frames])


def crop_to_aspect(frames_FHWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest centred part of the frames that has the aspect ratio of `size`, to a pixel. A view."""
    height, width = frames_FHWC.shape[1:3]
    scale = min(height / size[0], width / size[1])
    crop = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    return frames_FHWC[:, top : top + crop[0], left : left + crop[1]]
