"""Shot detection with PySceneDetect on small decoded frames, and the timestamps of frames."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, SceneDetector

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import decoding
from fv_jax.data.video.frame import DisplayConfig
from fv_jax.data.video.seeking import WHOLE, Span

ShotDetector = Literal['adaptive', 'content', 'none']

# Height of the frames for detection: enough to find shots, and cheap.
_SCAN_HEIGHT = 144
_RATE = 25.0  # of PySceneDetect's times; shots are counted in frames
# A frame that is shown up to so many frames before a damaged one may be predicted from it (x264's most B-frames).
_PREDICTED = 16


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The timestamps and shots of a video file, or of a span of it.

    Attributes:
      seconds: the time of each frame, from 0 on at the start of the file, increasing.
      shots: (first frame, frame after the last) of every shot, in order, covering all frames but those around damage.
      damage: (last second before, first second after) each damaged part, whose frames are not of the timeline; the
        first one is 0 and the last one infinite at the ends of the file.
    """

    seconds: np.ndarray
    shots: tuple[tuple[int, int], ...]
    damage: tuple[tuple[float, float], ...] = ()


def scan(
    path: str | StoragePath,
    info: decoding.VideoInfo,
    detector: ShotDetector = 'adaptive',
    threshold: float | None = None,
    min_frames: int = 15,
    on_frame: Callable[[], None] = lambda: None,
    *,
    damaged: bool = False,
    display: DisplayConfig | None = None,
    span: Span = WHOLE,
    threads: int = 0,
) -> Timeline:
    """Decodes the whole file, or a span of it, once, so that corruption anywhere in it is found.

    Args:
      path: the file.
      info: of `decoding.probe`.
      detector: 'adaptive' compares a frame's change with those around it, which does not split fast pans; 'content' has
        one threshold for all; 'none' takes the file as one shot.
      threshold: of the detector; None is PySceneDetect's default.
      min_frames: the shortest shot.
      on_frame: called once per frame, for a progress bar.
      damaged: skips what corruption touches instead of raising DamagedError.
      display, span, threads: of `decoding.iter_frames`.

    Raises:
      DamagedError: the file is corrupted at a frame.
      ValueError: it has no frames.
    """
    size = _SCAN_HEIGHT, max(round(_SCAN_HEIGHT * info.width / info.height), 1)
    seconds: list[float] = []
    resumed: list[float] = []

    def read_frames() -> Iterator[Callable[[], np.ndarray]]:
        for frame in decoding.iter_frames(path, resumed.append if damaged else None, display, span, threads):
            seconds.append(frame.seconds)
            yield functools.partial(frame.pixels, size)
            on_frame()

    shots = find_shots(read_frames(), detector, threshold, min_frames)
    require(shots, f'{path}: holds no frames')
    seconds = np.maximum.accumulate(seconds)
    gaps = np.searchsorted(seconds, resumed).tolist()
    ends = [0.0, *seconds.tolist(), np.inf]
    damage = tuple((float(seconds[max(gap - _PREDICTED, 0)]) if gap else 0.0, ends[gap + 1]) for gap in gaps)
    return Timeline(seconds, tuple(_without_gaps(shots, gaps, len(seconds))), damage)


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


def _without_gaps(shots: Iterable[tuple[int, int]], gaps: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """Yields the parts of shots that are apart from gaps before these frames, of `count`.

    The frames beside a gap stand for the time in which there are none, where clips are of another rate.
    """
    parts = [(0, count)]
    for gap in gaps:
        first, last = parts.pop()
        parts += [(first, max(gap - _PREDICTED, first)), (min(gap + 1, last), last)]
    for (a, b), (first, last) in itertools.product(shots, parts):
        if max(a, first) < min(b, last):
            yield max(a, first), min(b, last)


def _detector(name: ShotDetector, threshold: float | None, min_frames: int) -> SceneDetector | None:
    if name == 'none':
        return None
    if name == 'adaptive':
        options = {} if threshold is None else {'adaptive_threshold': threshold}
        return AdaptiveDetector(min_scene_len=min_frames, **options)
    options = {} if threshold is None else {'threshold': threshold}
    return ContentDetector(min_scene_len=min_frames, **options)
