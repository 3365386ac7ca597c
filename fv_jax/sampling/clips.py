"""Clips to enhance: the frames of a video file, or frames in memory."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import decoding
from fv_jax.sampling.metadata import GenerationMetadata
from fv_jax.sampling.windows import Windows


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip.

    Attributes:
      name: of its file; '' for frames in memory.
      size: (height, width) in pixels.
      fps: frames per second; None if it is unknown.
      frames: returns its frames, uint8 HWC RGB, in order.
      times: returns (time, duration) of each frame in seconds; None for a constant rate.
    """

    name: str
    size: tuple[int, int]
    fps: Fraction | None
    frames: Callable[[], Iterable[np.ndarray]]
    times: Callable[[], Iterable[tuple[float, float]]] | None = None


@dataclasses.dataclass(frozen=True)
class EnhancedClip:
    """A clip that is enhanced while its blocks are read.

    Attributes:
      size: (height, width) of the result.
      num_steps: of the sampler.
      windows: how a shot is split.
      shots: (first frame, frame after the last) of each.
      notes: what was found and assumed, one line each.
      blocks: yields the result, float32 FHWC in [-1, 1], a block for each window.
      metadata: returns how it is made.
    """

    size: tuple[int, int]
    num_steps: int
    windows: Windows
    shots: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]
    blocks: Callable[[], Iterator[np.ndarray]]
    metadata: Callable[[], GenerationMetadata]

    @property
    def num_windows(self) -> int:
        return sum(self.windows.count(end - first) for first, end in self.shots)


def open_clip(path: StoragePath, info: decoding.VideoInfo) -> Clip:
    """Opens a video file. info: as `decoding.probe` returns it."""

    def frames() -> Iterator[np.ndarray]:
        return (frame.pixels() for frame in decoding.iter_frames(path))

    times = None if info.is_constant else functools.partial(decoding.iter_times, path)
    return Clip(path.name, (info.height, info.width), info.fps, frames, times)


def clip_of_frames(video_FHWC: np.ndarray) -> Clip:
    """Returns frames as a clip. Raises ValueError unless they are (F, H, W, 3) uint8."""
    require(
        video_FHWC.ndim == 4 and video_FHWC.shape[3] == 3 and len(video_FHWC) and video_FHWC.dtype == np.uint8,
        f'frames: an array of shape {video_FHWC.shape}, {video_FHWC.dtype}; give (F, H, W, 3) of uint8, in RGB',
    )
    return Clip('', video_FHWC.shape[1:3], None, lambda: video_FHWC)
