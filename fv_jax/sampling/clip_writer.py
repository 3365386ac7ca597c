"""Writes an enhanced clip to an mp4: streams the frames, copies their times and the audio of the input, atomically."""

import logging
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from fv_jax.core.files import atomic_write
from fv_jax.core.paths import StoragePath
from fv_jax.data.transforms import to_uint8
from fv_jax.data.video import audio, decoding, encoding
from fv_jax.data.video.encoding import Codec

log = logging.getLogger(__name__)


def write_clip(
    output: StoragePath,
    blocks: Iterable[np.ndarray],
    source: StoragePath,
    info: decoding.VideoInfo,
    *,
    codec: Codec = 'h264',
    crf: float,
    comment: str,
) -> int:
    """Writes frames and the audio of `source` to an mp4.

    Args:
      output: the mp4; replaced when the new one is complete.
      blocks: float32 FHWC in [-1, 1], read lazily.
      source: the video whose audio and frame times are copied. Audio that an mp4 cannot hold is converted, which is
        logged before the first block is read.
      info: of `source`.
      codec: 'hevc10' is made without rounding to 8 bits.
      crf: x264's or x265's rate factor, 0 (lossless) to 51.
      comment: of the mp4.

    Returns:
      The number of frames written.
    """
    count = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal count
        for block in blocks:
            for frame in block if codec == 'hevc10' else to_uint8(block):
                count += 1
                yield frame

    with atomic_write(output) as partial:
        has_audio = info.has_audio and audio.can_copy(source)
        times = None if info.is_constant else decoding.iter_times(source)
        encoding.encode(partial, frames(), info.fps, crf=crf, comment=comment, times=times, codec=codec)
        if has_audio:
            _copy_audio(source, partial)
    return count


def _copy_audio(source: StoragePath, partial: pathlib.Path) -> None:
    try:
        audio.copy_audio(source, partial)
    except ValueError as error:  # the frames have taken long, and are kept
        log.warning(f'{error}; the output is silent')
