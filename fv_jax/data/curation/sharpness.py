"""Sharpness: the variance of the Laplacian of the luma (Pech-Pacheco et al. 2000), of 8-bit levels.

SimpleGVR (arXiv 2506.19838) keeps clips above 30. It grows with contrast and with noise, and falls when a clip is
enlarged.
"""

import cv2
import numpy as np


def laplacian_variance(frames_FHW: np.ndarray) -> float:
    """Computes the mean over frames of the variance of the Laplacian; frames_FHW: luma, uint8."""
    return float(np.mean([cv2.meanStdDev(cv2.Laplacian(frame, cv2.CV_16S))[1][0, 0] ** 2 for frame in frames_FHW]))
