"""Video metrics. Arrays are float, in [-1, 1], (F, H, W, C), on the host.

PSNR    10 log10(4 / mean (x - y)^2), in dB; 4 is the square of the range
detail  mean over pixels of |grad x|, forward differences of luma: a measure of fine structure
flicker mean |x_{f+1} - x_f|: change from frame to frame
"""

import numpy as np

from fv_jax.evaluation.videos import LUMA_WEIGHTS


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio in dB; infinite for equal videos."""
    error = float(np.mean(np.square(x.astype(np.float64) - y)))
    return float('inf') if error == 0 else 10 * float(np.log10(4 / error))


def detail(x_FHWC: np.ndarray) -> float:
    """Computes the mean gradient magnitude of luma, per pixel step."""
    luma = x_FHWC.astype(np.float32) @ LUMA_WEIGHTS.astype(np.float32)
    down = np.diff(luma, axis=1)[:, :, :-1]
    across = np.diff(luma, axis=2)[:, :-1]
    return float(np.mean(np.sqrt(np.square(down) + np.square(across))))


def flicker(x_FHWC: np.ndarray) -> float:
    """Computes the mean absolute change from one frame to the next; 0 for a single frame."""
    return float(np.mean(np.abs(np.diff(x_FHWC.astype(np.float32), axis=0)))) if len(x_FHWC) > 1 else 0.0
