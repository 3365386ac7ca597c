"""Noise and blocking.

Noise: the response r of the luma to the kernel (1, -2, 1)' (1, -2, 1), which removes planes, has the variance
36 sigma^2 in noise of standard deviation sigma (Immerkaer 1996). It is averaged in blocks of 16 pixels, and sigma is
that of the block at the 10th percentile: blocks with texture are above it.

Blocking: codecs without a deblocking filter, or too strong a quantizer, leave steps between blocks of 8 pixels. With
d(x) the mean of |I(x) - I(x-1)|, limited to 20 levels so that true edges count little, and D(p) the mean of d over all
x = p modulo 8,

  blocking = max_p D(p) / mean_q D(q) - 1, q not p or a neighbour of p                                  (1)

and the mean over rows and columns of it. The grid must have 8 pixels: that of a clip that was resized is not found.
"""

import cv2
import numpy as np

_KERNEL = np.outer((1, -2, 1), (1, -2, 1)).astype(np.float32)
_VARIANCE = 36.0  # of the kernel's response to noise of variance 1
_BLOCK = 16  # pixels
_PERCENTILE = 10
_GRID = 8  # pixels
_STEP_LIMIT = 20  # levels
_DARKEST, _LIGHTEST = 8, 247  # mean levels of blocks whose noise is not clipped


def noise_sigma(frames_FHW: np.ndarray) -> float | None:
    """Estimates the standard deviation of the noise, in 8-bit levels; None where all of a frame is black or white.

    Args:
      frames_FHW: luma, uint8.
    """
    found = []
    for frame_HW in frames_FHW:
        size = max(frame_HW.shape[1] // _BLOCK, 1), max(frame_HW.shape[0] // _BLOCK, 1)
        used = frame_HW[: size[1] * _BLOCK, : size[0] * _BLOCK]
        response = cv2.filter2D(used, cv2.CV_32F, _KERNEL)
        power = cv2.resize(response * response, size, interpolation=cv2.INTER_AREA)
        level = cv2.resize(used, size, interpolation=cv2.INTER_AREA)
        if (chosen := power[(level >= _DARKEST) & (level <= _LIGHTEST)]).size:
            found.append(np.sqrt(np.percentile(chosen, _PERCENTILE) / _VARIANCE))
    return float(np.mean(found)) if found else None


def blocking(frames_FHW: np.ndarray) -> float:
    """Computes the blocking (1), the mean over frames, rows and columns; 0 is none.

    Args:
      frames_FHW: luma, uint8.
    """
    return float(np.mean([(_grid_excess(f) + _grid_excess(f.T)) / 2 for f in frames_FHW]))


def _grid_excess(frame_HW: np.ndarray) -> float:
    if frame_HW.shape[1] <= _GRID:
        return 0.0
    frame_HW = np.ascontiguousarray(frame_HW)
    steps = np.minimum(cv2.absdiff(frame_HW[:, 1:], frame_HW[:, :-1]), _STEP_LIMIT)
    profile = cv2.reduce(steps, 0, cv2.REDUCE_AVG, dtype=cv2.CV_32F)[0]
    usable = len(profile) // _GRID * _GRID
    by_phase = profile[:usable].reshape(-1, _GRID).mean(axis=0)
    best = int(by_phase.argmax())
    others = np.delete(by_phase, [best, (best - 1) % _GRID, (best + 1) % _GRID]).mean()
    return float(by_phase[best] / others - 1) if others > 0 else 0.0
