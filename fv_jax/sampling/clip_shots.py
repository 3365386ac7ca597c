"""Finds the shots of a clip, so that no window of it contains a cut.

Frames that repeat the one before (animation on threes, a rate that was converted) are skipped, because a detector that
compares a change with those around it would take every new frame after them for a cut. The frames at both ends are
mirrored, so that it also sees cuts beside them.
"""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.video.shots import ShotDetector, find_shots
from fv_jax.sampling.windows import check_sizes

# Finds 358 of 360 cuts that are planted between clips in the package, and none in these; PySceneDetect's 3.0 finds 347.
ADAPTIVE_THRESHOLD = 2.0
_HEIGHT = 144  # of the frames that are compared
_SAME = 0.25  # mean difference of two frames, in levels of 255, up to which one repeats the other
_MAX_NAMED = 5  # cuts in a message
_MARGIN = 2  # frames on each side of a change that the adaptive detector compares it with


def find_clip_shots(
    frames: Iterator[np.ndarray], detector: ShotDetector, threshold: float | None = None
) -> tuple[tuple[int, int], ...]:
    """Finds the shots of a clip, each (first frame, frame after the last), in order.

    Args:
      frames: uint8 HWC RGB, read lazily.
      detector: as in `shots.scan`.
      threshold: of the detector; None is `ADAPTIVE_THRESHOLD`, or PySceneDetect's for 'content'.

    Raises:
      ValueError: no frames, or frames of several sizes.
    """
    if detector == 'adaptive' and threshold is None:
        threshold = ADAPTIVE_THRESHOLD
    starts, count = [], 0  # of the frames that differ from the one before

    def read_changes() -> Iterator[np.ndarray]:
        nonlocal count
        last = None
        for count, frame in enumerate(check_sizes(frames), start=1):
            small = _shrink(frame)
            if last is None or cv2.absdiff(small, last).mean() > _SAME:
                starts.append(count - 1)
                last = small
                yield small

    shots = find_shots(_mirror_ends(read_changes()), detector, threshold, min_frames=1)
    require(count, 'the clip has no frames')
    margin = min(_MARGIN, len(starts) - 1)
    found = [starts[first - margin] for first, _ in shots if margin < first < len(starts) + margin]
    return tuple(itertools.pairwise([0, *found, count]))


def _mirror_ends(frames: Iterator[np.ndarray]) -> Iterator[Callable[[], np.ndarray]]:
    """Yields frames after the first ones in reverse, and before the last ones in reverse."""
    head = list(itertools.islice(frames, _MARGIN + 1))
    last = collections.deque(maxlen=_MARGIN + 1)
    for frame in itertools.chain(head[:0:-1], head, frames):
        last.append(frame)
        yield lambda frame=frame: frame
    for frame in [*last][-2::-1] if len(head) > _MARGIN else head[-2::-1]:
        yield lambda frame=frame: frame


def _shrink(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    size = max(round(_HEIGHT * width / height), 1), _HEIGHT
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def describe_cuts(shots: Sequence[tuple[int, int]]) -> str:
    """Describes in one line the cuts between the shots of a clip; '' for none."""
    cuts = [first for first, _ in shots[1:]]
    if not cuts:
        return ''
    named = ', '.join(map(str, cuts[:_MAX_NAMED])) + (', ...' if len(cuts) > _MAX_NAMED else '')
    return f'{len(cuts)} cut(s), at frame {named}, each of which starts a new window; --shots=none ignores them'
