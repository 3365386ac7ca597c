"""An enhanced clip as a file: frames as they come, the input's rate and sound, all of it or nothing."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fv_jax.core.files import atomic_write
from fv_jax.data.video import video_io

log = logging.getLogger(__name__)


def write_clip(
    output: Path,
    blocks: Iterable[np.ndarray],
    source: Path,
    info: video_io.VideoInfo,
    *,
    crf: float,
) -> int:
    """Writes blocks of frames (uint8 FHWC), and the audio of `source`; returns how many frames there were.

    info: of `source`. What cannot be kept is reported before the work.
    """
    count = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal count
        for block in blocks:
            for frame in block:
                count += 1
                yield frame

    fps = info.fps or video_io.DEFAULT_FPS
    with atomic_write(output) as partial:
        audio = info.has_audio and _can_hold_audio(partial, source, fps)
        video_io.encode(partial, frames(), fps, crf=crf)
        if audio:
            video_io.copy_audio(source, partial)
    return count


def _can_hold_audio(partial: Path, source: Path, fps: float) -> bool:
    """Tries the audio on a film of one frame; where an mp4 cannot hold it, says so."""
    video_io.encode(partial, np.zeros((1, 16, 16, 3), np.uint8), fps)
    try:
        return video_io.copy_audio(source, partial)
    except ValueError as error:
        log.info(f'note: {error}; the output will be silent')
        return False
