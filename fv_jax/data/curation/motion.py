"""Motion: optical flow (DIS) and the share of static frames, on shrunk frames.

Motion is the mean length of the flow, in percent of the frame's height per second, so that it depends neither on the
size nor on the rate of a clip: 1 is a movement by 11 pixels a second in 1080p.
"""

import itertools

import cv2
import numpy as np

from fv_jax.data.even_indices import even_indices
from fv_jax.data.optical_flow import SMALLEST, optical_flows

_PAIRS = 6  # of consecutive frames, evenly spaced
_STATIC = 0.2  # levels: mean difference of two frames that show the same
_PERCENT = 100.0


def motion(frames_FHW: np.ndarray, fps: float) -> float:
    """Computes the mean length of the optical flow, in percent of the height per second; 0 of one frame.

    Args:
      frames_FHW: luma, uint8, all frames, shrunk.
      fps: frames per second.
    """
    count = len(frames_FHW) - 1
    if count < 1 or min(frames_FHW.shape[1:]) < SMALLEST:
        return 0.0
    pairs = ((frames_FHW[first], frames_FHW[first + 1]) for first in even_indices(count, _PAIRS))
    lengths = [cv2.magnitude(flow_HW2[..., 0], flow_HW2[..., 1]).mean() for flow_HW2 in optical_flows(pairs)]
    return float(np.mean(lengths) * fps * _PERCENT / frames_FHW.shape[1])


def static_share(frames_FHW: np.ndarray) -> float:
    """Computes the share of frames that show the same as the frame before; 0 of one frame.

    Args:
      frames_FHW: luma, uint8, all frames, shrunk.
    """
    if len(frames_FHW) < 2:
        return 0.0
    same = [cv2.norm(a, b, cv2.NORM_L1) < _STATIC * a.size for a, b in itertools.pairwise(frames_FHW)]
    return float(np.mean(same))
