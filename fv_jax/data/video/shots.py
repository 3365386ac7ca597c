"""Shot detection with PySceneDetect on small decoded frames, and the timestamps of frames."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, SceneDetector

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import decoding

ShotDetector = Literal['adaptive', 'content', 'none']

# Height of the frames for detection: enough to find shots, and cheap.
_SCAN_HEIGHT = 144
_RATE = 25.0  # of PySceneDetect's times; shots are counted in frames


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The timestamps and shots of a video file.

    Attributes:
      seconds: the time of each frame, from 0 on, increasing.
      shots: (first frame, frame after the last) of every shot, in order, covering all frames.
    """

    seconds: np.ndarray
    shots: tuple[tuple[int, int], ...]


def scan(
    path: str | StoragePath,
    info: decoding.VideoInfo,
    detector: ShotDetector = 'adaptive',
    threshold: float | None = None,
    min_frames: int = 15,
    on_frame: Callable[[], None] = lambda: None,
) -> Timeline:
    """Decodes the whole file once, so that corruption anywhere in it is found.

    Args:
      path: the file.
      info: of `decoding.probe`.
      detector: 'adaptive' compares a frame's change with those around it, which does not split fast pans; 'content' has
        one threshold for all; 'none' takes the file as one shot.
      threshold: of the detector; None is PySceneDetect's default.
      min_frames: the shortest shot.
      on_frame: called once per frame, for a progress bar.

    Raises:
      ValueError: the file is corrupted at a frame, or has no frames.
    """
    size = _SCAN_HEIGHT, max(round(_SCAN_HEIGHT * info.width / info.height), 1)
    seconds = []

    def read_frames() -> Iterator[Callable[[], np.ndarray]]:
        for frame in decoding.iter_frames(path):
            seconds.append(frame.seconds)
            yield functools.partial(frame.pixels, size)
            on_frame()

    shots = find_shots(read_frames(), detector, threshold, min_frames)
    require(shots, f'{path}: holds no frames')
    return Timeline(np.maximum.accumulate(seconds), shots)


def find_shots(
    frames: Iterable[Callable[[], np.ndarray]],
    detector: ShotDetector = 'adaptive',
    threshold: float | None = None,
    min_frames: int = 15,
) -> tuple[tuple[int, int], ...]:
    """Finds the shots of a video, as `Timeline` has them; none of one without frames.

    Args:
      frames: return the frames, uint8 RGB, small and of one size; read lazily.
      detector, threshold, min_frames: as in `scan`.
    """
    detect, count, cuts = _detector(detector, threshold, min_frames), 0, set()
    for count, pixels in enumerate(frames, start=1):
        if detect is not None:
            bgr = np.ascontiguousarray(pixels()[..., ::-1])
            cuts |= {cut.frame_num for cut in detect.process_frame(FrameTimecode(count - 1, _RATE), bgr)}
    if detect is not None and count:
        cuts |= {cut.frame_num for cut in detect.post_process(FrameTimecode(count - 1, _RATE))}
    bounds = [0, *sorted(cuts - {0}), count]
    return tuple(itertools.pairwise(bounds)) if count else ()


def _detector(name: ShotDetector, threshold: float | None, min_frames: int) -> SceneDetector | None:
    if name == 'none':
        return None
    if name == 'adaptive':
        options = {} if threshold is None else {'adaptive_threshold': threshold}
        return AdaptiveDetector(min_scene_len=min_frames, **options)
    options = {} if threshold is None else {'threshold': threshold}
    return ContentDetector(min_scene_len=min_frames, **options)
