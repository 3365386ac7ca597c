"""Letterbox and pillarbox: black bars at the edges of all frames of a clip.

The brightest level of every pixel over the frames is taken, so that a dark frame does not hide where the content is. A
bar is a run of rows from an edge in which at most a quarter of the pixels (a subtitle) are brighter than the edge by 6
levels, where the edge is black, and behind which at least half of the pixels are within a few rows: content in the
dark begins gradually, and a bar ends in a straight line.

Bars that are not black (blurred copies of the video, logos over their whole width) are not found.
"""

import dataclasses

import numpy as np

from fv_jax.data.curation.samples import ClipSample

_BLACK = 32  # brightest level of a bar
_BRIGHTER = 6  # levels above the bar
_MARKED = 0.25  # of a bar's row: the most that is brighter
_FILLED = 0.5  # of the rows behind: the least that is brighter
_BEHIND = slice(1, 6)  # rows behind the end of a bar; interpolation and codecs blur the first
_LEAST = 2  # rows; encoders leave one


@dataclasses.dataclass(frozen=True)
class Bars:
    """The width of the bars at each edge, in pixels."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def crop(self, frame_HW: np.ndarray) -> np.ndarray:
        """Returns the part of a frame (H, W, ...) between the bars, as a view."""
        height, width, *_ = frame_HW.shape
        return frame_HW[self.top : height - self.bottom, self.left : width - self.right]


def find_bars(frames_FHW: np.ndarray) -> Bars:
    """Finds the bars of a clip.

    Args:
      frames_FHW: luma, uint8; a few frames of the clip.
    """
    brightest = frames_FHW.max(axis=0)
    top, bottom = _find_end(brightest), _find_end(brightest[::-1])
    inner = brightest[top : brightest.shape[0] - bottom]
    return Bars(top, bottom, _find_end(inner.T), _find_end(inner.T[::-1]))


def crop_bars(frames: list[np.ndarray], size: tuple[int, int], max_upscale: float) -> list[np.ndarray]:
    """Crops the bars of a clip, unless what is between them would have to be enlarged too much.

    Args:
      frames: uint8 RGB (H, W, 3), all frames of a clip, of one size.
      size: (height, width) that the frames are resized to later.
      max_upscale: by how much they may be enlarged then.
    """
    found = find_bars(ClipSample(frames, 1.0).detailed_FHW)
    cropped = [found.crop(frame) for frame in frames]
    height, width, _ = cropped[0].shape
    fits = max(size[0] / height, size[1] / width) <= max_upscale * (1 + 1e-6)
    return cropped if fits else frames


def _find_end(image_HW: np.ndarray) -> int:
    """Returns how many rows from the top are a bar."""
    edge = np.median(image_HW[0])
    if edge > _BLACK:
        return 0
    brighter = (image_HW > edge + _BRIGHTER).mean(axis=1)
    content = np.flatnonzero(brighter > _MARKED)
    if not len(content) or not _LEAST <= content[0] < len(brighter) - _BEHIND.stop:
        return 0
    end = int(content[0])
    return end if brighter[end:][_BEHIND].mean() >= _FILLED else 0
