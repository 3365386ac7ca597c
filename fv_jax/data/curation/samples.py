"""The frames of a clip that its scores are computed from.

Scores of detail (resolution, sharpness, noise, text, bars) need all pixels, but not all frames: they take a few frames,
evenly spaced. Scores of time (motion, static frames, cuts) need all frames, but not all pixels: they take every frame,
shrunk by a whole number, which costs little.
"""

import dataclasses
import functools

import cv2
import numpy as np

from fv_jax.core.checks import require

_DETAILED = 3  # frames with all their pixels
_SMALL_HEIGHT = 270  # approximate height of the shrunk frames


@dataclasses.dataclass(frozen=True)
class ClipSample:
    """The frames of a clip, reduced to what the scores need; each is computed once, when it is asked for.

    Attributes:
      frames_FHWC: uint8 RGB, all frames.
      fps: frames per second.
    """

    frames_FHWC: np.ndarray
    fps: float

    def __post_init__(self):
        frames = self.frames_FHWC
        valid = frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == np.uint8 and frames.size
        require(valid, f'frames {frames.dtype}{list(frames.shape)}: must be uint8 (F, H, W, 3) and not empty')
        require(0 < self.fps < float('inf'), f'fps={self.fps}: must be positive')

    @functools.cached_property
    def detailed_FHWC(self) -> np.ndarray:
        """A few evenly spaced frames, uint8 RGB, with all their pixels."""
        count = len(self.frames_FHWC)
        chosen = np.unique(np.linspace(0, count - 1, min(_DETAILED, count)).round().astype(int))
        return self.frames_FHWC[chosen]

    @functools.cached_property
    def detailed_FHW(self) -> np.ndarray:
        """The luma of `detailed_FHWC`, uint8."""
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.detailed_FHWC])

    @functools.cached_property
    def small_FHWC(self) -> np.ndarray:
        """All frames, shrunk by a whole number to about 270 rows, uint8 RGB."""
        _, height, width, _ = self.frames_FHWC.shape
        factor = max(round(height / _SMALL_HEIGHT), 1)
        size = max(width // factor, 1), max(height // factor, 1)
        if factor == 1:
            return self.frames_FHWC
        # Rows and columns that do not fill a cell are cropped: OpenCV is fast where the factor is a whole number.
        used = self.frames_FHWC[:, : size[1] * factor, : size[0] * factor]
        return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in used])

    @functools.cached_property
    def small_FHW(self) -> np.ndarray:
        """The luma of `small_FHWC`, uint8."""
        return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in self.small_FHWC])
