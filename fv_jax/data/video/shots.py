"""Shot detection with PySceneDetect on small decoded frames, and the timestamps of frames."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, SceneDetector

from fv_jax.core.checks import require
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import decoding

ShotDetector = Literal['adaptive', 'content', 'none']

# Height of the frames for detection: enough to find shots, and cheap.
_SCAN_HEIGHT = 144


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
    detect = _detector(detector, threshold, min_frames)
    size = _SCAN_HEIGHT, max(round(_SCAN_HEIGHT * info.width / info.height), 1)
    rate = float(info.fps or decoding.DEFAULT_FPS)
    seconds, cuts = [], []
    for index, frame in enumerate(decoding.iter_frames(path)):
        seconds.append(frame.seconds)
        if detect is not None:
            bgr = np.ascontiguousarray(frame.pixels(size)[..., ::-1])
            cuts += detect.process_frame(FrameTimecode(index, rate), bgr)
        on_frame()
    require(seconds, f'{path}: holds no frames')
    if detect is not None:
        cuts += detect.post_process(FrameTimecode(len(seconds) - 1, rate))
    bounds = [0, *sorted({cut.frame_num for cut in cuts} - {0}), len(seconds)]
    return Timeline(np.maximum.accumulate(seconds), tuple(itertools.pairwise(bounds)))


def _detector(name: ShotDetector, threshold: float | None, min_frames: int) -> SceneDetector | None:
    if name == 'none':
        return None
    if name == 'adaptive':
        options = {} if threshold is None else {'adaptive_threshold': threshold}
        return AdaptiveDetector(min_scene_len=min_frames, **options)
    options = {} if threshold is None else {'threshold': threshold}
    return ContentDetector(min_scene_len=min_frames, **options)
