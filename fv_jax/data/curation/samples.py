"""The frames of a clip that its scores are computed from.

Scores of detail (resolution, sharpness, noise, text, bars) need all pixels, but not all frames: they take a few frames,
evenly spaced. Scores of time (motion, static frames, cuts) need all frames, but not all pixels: they take every frame,
shrunk by a whole number, which costs little.
"""

import dataclasses
import functools
from collections.abc import Sequence

import cv2
import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.even_indices import even_indices

_DETAILED = 3  # frames with all their pixels
_SMALL_HEIGHT = 270  # approximate height of the shrunk frames


@dataclasses.dataclass(frozen=True)
class ClipSample:
    """The frames of a clip, reduced to what the scores need; each is computed once, when it is asked for.

    Attributes:
      frames: uint8 RGB (H, W, 3), all frames of the clip, of one size.
      fps: frames per second.
    """

    frames: Sequence[np.ndarray]
    fps: float

    def __post_init__(self):
        require(len(self.frames), 'frames: must be at least one')
        kinds = {(frame.dtype.name, frame.shape) for frame in self.frames}
        (dtype, shape), *others = kinds
        valid = not others and dtype == 'uint8' and len(shape) == 3 and shape[-1] == 3 and 0 not in shape
        require(valid, f'frames {sorted(map(str, kinds))}: must be uint8 (H, W, 3), of one size, not empty')
        require(0 < self.fps < float('inf'), f'fps={self.fps}: must be positive')

    @functools.cached_property
    def detailed_FHWC(self) -> np.ndarray:
        """A few evenly spaced frames, uint8 RGB, with all their pixels."""
        return np.stack([self.frames[i] for i in even_indices(len(self.frames), _DETAILED)])

    @functools.cached_property
    def detailed_FHW(self) -> np.ndarray:
        """The luma of `detailed_FHWC`, uint8."""
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.detailed_FHWC])

    @functools.cached_property
    def small_FHWC(self) -> np.ndarray:
        """All frames, shrunk by a whole number to about 270 rows, uint8 RGB."""
        height, width, _ = self.frames[0].shape
        factor = max(round(height / _SMALL_HEIGHT), 1)
        size = max(width // factor, 1), max(height // factor, 1)
        if factor == 1:
            return np.stack(self.frames)
        # Rows and columns that do not fill a cell are cropped: OpenCV is fast where the factor is a whole number.
        used = slice(size[1] * factor), slice(size[0] * factor)
        return np.stack([cv2.resize(frame[used], size, interpolation=cv2.INTER_AREA) for frame in self.frames])

    @functools.cached_property
    def small_FHW(self) -> np.ndarray:
        """The luma of `small_FHWC`, uint8."""
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.small_FHWC])
