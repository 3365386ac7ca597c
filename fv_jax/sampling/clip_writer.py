"""Writes an enhanced clip to an mp4: streams the frames, copies frame rate and audio of the input, atomically."""

import logging
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from fv_jax.core.files import atomic_write
from fv_jax.core.paths import StoragePath
from fv_jax.data.video import audio, decoding, encoding

log = logging.getLogger(__name__)


def write_clip(
    output: StoragePath,
    blocks: Iterable[np.ndarray],
    source: StoragePath,
    info: decoding.VideoInfo,
    *,
    crf: float,
    comment: str,
) -> int:
    """Writes frames and the audio of `source` to an mp4.

    Args:
      output: the mp4; replaced when the new one is complete.
      blocks: uint8 FHWC, read lazily.
      source: the video whose audio is copied. Audio that an mp4 cannot hold is reported before the first block is read.
      info: of `source`.
      crf: x264's rate factor, 0 (lossless) to 51.
      comment: of the mp4.

    Returns:
      The number of frames written.
    """
    count = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal count
        for block in blocks:
            for frame in block:
                count += 1
                yield frame

    fps = info.fps or decoding.DEFAULT_FPS
    with atomic_write(output) as partial:
        has_audio = info.has_audio and _can_hold_audio(partial, source, fps)
        encoding.encode(partial, frames(), fps, crf=crf, comment=comment)
        if has_audio:
            audio.copy_audio(source, partial)
    return count


def _can_hold_audio(partial: pathlib.Path, source: StoragePath, fps: float) -> bool:
    """Returns whether an mp4 can hold the audio, by copying it to a video of one frame; logs a note if it cannot."""
    encoding.encode(partial, np.zeros((1, 16, 16, 3), np.uint8), fps)
    try:
        return audio.copy_audio(source, partial)
    except ValueError as error:
        log.info(f'note: {error}; the output will be silent')
        return False
