"""Dense optical flow on the host: DIS (Kroeger et al. 2016, arXiv:1603.03590), OpenCV's, at its fast preset.

The same for any number of OpenCV's threads; exactly 0 between two equal frames.
"""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np

SMALLEST = 16  # pixels along a side: below, DIS has no patches


def optical_flows(pairs_HW: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yields the flow from the first to the second frame of each pair.

    Args:
      pairs_HW: luma, uint8, of at least SMALLEST pixels along both sides.

    Yields:
      (H, W, 2) float32: how far right and down, in pixels, what each pixel of the first frame shows is in the second.
    """
    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    for first_HW, second_HW in pairs_HW:
        yield estimator.calc(first_HW, second_HW, None)
