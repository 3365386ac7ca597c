"""Splits a clip of any length into windows of the model's length, and blends the enhanced windows to one clip.

The causal VAE turns frame 0 of a window into one latent frame and every t frames after it into another (model guide 4;
t is 4 for the official VAE), so windows start at multiples of t: latent frame j of a window that starts at frame s ends
at frame s + t j, like latent frame s/t + j of the whole clip. With W frames of the model and an overlap of o, windows
start every W - o frames; the last one starts earlier so that it ends with the clip, at the next such multiple (it may
be shorter by up to t - 1 frames).

Where two windows overlap, frame i = 0 ... o - 1 of the overlap is

    (1 - w_i) earlier + w_i later,      w_i = (i + 1) / (o + 1)                               (1)

At most one window of output and two of input are in memory.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a clip is split.

    Attributes:
      frames: length of a window, that of the model.
      overlap: frames that neighbouring windows share.
      latent_spec: of the model's VAE; windows start at multiples of its temporal factor.
    """

    frames: int
    overlap: int
    latent_spec: LatentSpec

    def __post_init__(self):
        self.latent_spec.check_frames('frames', self.frames)
        choices = range(self.frames % self.alignment, self.frames, self.alignment)
        if self.overlap not in choices:
            raise ConfigError(
                f'overlap={self.overlap}: windows of {self.frames} frame(s) must start at multiples of '
                f'{self.alignment}; use {_nearest(self.overlap, choices)}'
            )

    @classmethod
    def create(cls, frames: int, overlap: int | None, latent_spec: LatentSpec) -> 'Windows':
        """Creates windows of `frames` frames.

        Args:
          frames: length of a window, a valid clip length.
          overlap: of neighbouring windows in frames; None is about a sixth of the window, 5 of 17 frames or 9 of 49
            with the official VAE, and 0 for windows of one frame.
          latent_spec: of the VAE.

        Raises:
          ConfigError: the overlap is too large or not a multiple of the frames per latent frame.
        """
        if overlap is None:
            shared = max(1, round((frames - 1) / (6 * latent_spec.temporal)))  # latent frames
            overlap = 1 + latent_spec.temporal * shared if frames > 1 else 0
        return cls(frames, overlap, latent_spec)

    @property
    def alignment(self) -> int:
        """Frames per latent frame; windows start at multiples of it."""
        return self.latent_spec.temporal if self.frames > 1 else 1

    @property
    def stride(self) -> int:
        return self.frames - self.overlap

    def count(self, clip_frames: int) -> int:
        """Returns the number of windows of a clip."""
        return 1 + max(0, -(-(clip_frames - self.frames) // self.stride))


def _nearest(value: int, choices: range) -> str:
    below = [c for c in choices if c < value][-1:]
    above = [c for c in choices if c > value][:1]
    return ' or '.join(map(str, below + above))


class Window(NamedTuple):
    """Frames of a clip from index `start` on.

    A clip shorter than the model's window, and sometimes the last window, has fewer frames than the model takes.
    """

    start: int
    video_FHWC: np.ndarray
    last: bool


def split_windows(frames: Iterable[np.ndarray], windows: Windows) -> Iterator[Window]:
    """Yields the windows of a clip's frames (HWC), which are read lazily. Raises ValueError if there are none."""
    source = iter(frames)
    start, held = 0, list(itertools.islice(source, windows.frames))
    require(held, 'the clip has no frames')
    while True:
        new = list(itertools.islice(source, windows.stride))
        yield Window(start, np.stack(held), last=not new)
        if not new:
            return
        step = -(-len(new) // windows.alignment) * windows.alignment
        start, held = start + step, (held + new)[step:]


def check_sizes(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields frames (HWC) of one size. Raises ValueError at a frame of another size."""
    first = None
    for index, frame in enumerate(frames):
        first = frame.shape if first is None else first
        if frame.shape != first:
            size, before = (f'{shape[0]}x{shape[1]}' for shape in (frame.shape, first))
            raise ValueError(f'frame {index} is {size}, the ones before {before}; re-encode the clip at one size')
        yield frame


def crossfade(pieces: Iterable[Window], overlap: int) -> Iterator[np.ndarray]:
    """Blends enhanced windows (float) by (1); yields one block of finished frames (FHWC) per window.

    The last window may start earlier than the usual stride; its frames before the usual overlap are dropped, as they
    were yielded already.
    """
    pending, begin = None, 0  # frames from `begin` on, which overlap with the next window
    for start, video_FHWC, last in pieces:
        if pending is not None:
            video_FHWC = _blend(pending, video_FHWC[begin - start :])
        finished = len(video_FHWC) if last else len(video_FHWC) - overlap
        pending, begin = video_FHWC[finished:].copy(), (start if pending is None else begin) + finished
        yield video_FHWC[:finished]


def _blend(earlier_FHWC: np.ndarray, later_FHWC: np.ndarray) -> np.ndarray:
    shared = len(earlier_FHWC)
    weights = (np.arange(1, shared + 1, dtype=np.float32) / np.float32(shared + 1)).reshape(-1, 1, 1, 1)
    mixed = earlier_FHWC + weights * (later_FHWC[:shared] - earlier_FHWC)
    return np.concatenate([mixed, later_FHWC[shared:]])
