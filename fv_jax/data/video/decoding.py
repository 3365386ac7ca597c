"""Decodes video files and bytes to uint8 FHWC arrays, with PyAV.

All functions raise ValueError with one line that starts with the name of the file: not a video, no video stream,
damaged at frame n.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.video.containers import (
    DamagedError,
    DataSource,
    format_reason,
    mean_rate,
    open_container,
    source_name,
)
from fv_jax.data.video.deinterlacing import deinterlace
from fv_jax.data.video.display import read_orientation
from fv_jax.data.video.frame import DisplayConfig, Frame

log = logging.getLogger(__name__)

# For a file that states no rate.
DEFAULT_FPS = 25


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Properties of a file's first video stream, read without decoding all of it.

    Attributes:
      height, width: pixels as shown: square, after the stored rotation.
      fps: mean frames per second.
      frames: as the container states or as duration times fps; 0 if neither is known. An estimate.
      rotation: degrees counter-clockwise that a decoded frame is rotated by to be shown: 0, 90, 180 or 270; of a
        mirrored one, before its columns are reversed.
      has_audio: whether there is an audio stream.
    """

    height: int
    width: int
    fps: Fraction
    frames: int
    rotation: int
    has_audio: bool


@dataclasses.dataclass(frozen=True)
class Video:
    """A decoded video.

    Attributes:
      frames: uint8 FHWC (RGB).
      fps: frames per second.
    """

    frames: np.ndarray
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames in pixels."""
        return self.frames.shape[1], self.frames.shape[2]


def probe(source: DataSource, *, cut_off: bool = False) -> VideoInfo:
    """Reads size, rate, length and rotation of a file or of bytes; decodes one frame. Raises ValueError.

    What is assumed or converted to show the frames is logged in one line.

    A file that was cut off is an error, unless `cut_off` allows it.
    """
    with open_container(source, cut_off=cut_off) as (container, stream):
        fps = mean_rate(stream)
        seconds = Fraction(0)
        if stream.duration is not None:
            seconds = stream.duration * stream.time_base
        elif container.duration is not None:
            seconds = Fraction(container.duration, av.time_base)
        frames = stream.frames or round(seconds * fps)
        has_audio = bool(container.streams.audio)
        first = next(_decode_frames(source_name(source), container, stream), None)
        require(first is not None, f'{source_name(source)}: holds no frames')
        frame = Frame(source_name(source), 0.0, first, stream.sample_aspect_ratio)
        frame.check(DisplayConfig())
        _log_conversions(frame)
        height, width = frame.size
        rotation = read_orientation(first).rotation
    return VideoInfo(height, width, fps, frames, rotation, has_audio)


def _decode_frames(
    name: str, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    stream.thread_type = 'AUTO'
    count = 0
    try:
        for frame in container.decode(stream):
            # The decoder conceals missing data with grey or smeared frames.
            require(not frame.is_corrupt, f'{name}: damaged at frame {count}', DamagedError)
            yield frame
            count += 1
    except av.FFmpegError as error:
        raise DamagedError(f'{name}: damaged at frame {count} ({format_reason(error)})') from None


def _decode_intact_frames(
    container: av.container.InputContainer, stream: av.VideoStream, on_damage: Callable[[str], None]
) -> Iterator[av.VideoFrame]:
    """Yields frames as `_decode_frames`, but for those from damaged data on until the next key frame."""
    stream.thread_type = 'SLICE'  # decoders with a thread per frame conceal the same damage differently each time
    packets, incomplete, damaged = container.demux(stream), set(), False
    while True:
        try:
            if (packet := next(packets, None)) is None:
                return
            if packet.is_corrupt:
                incomplete.add(packet.pts)
            frames, reason = packet.decode(), 'incomplete data' if packet.is_corrupt else ''
        except av.FFmpegError as error:
            frames, reason = [], format_reason(error)
        bad = [frame.is_corrupt or frame.pts in incomplete for frame in frames]
        reason = reason or ('missing data' if any(bad) else '')
        if reason and not damaged:
            on_damage(reason)
        damaged = damaged or bool(reason)
        for frame, is_bad in zip(frames, bad, strict=True):
            damaged = damaged and (is_bad or not frame.key_frame)
            if not damaged:
                yield frame


def _log_conversions(frame: Frame) -> None:
    if conversions := frame.describe_conversions():
        log.info(f'{frame.source}: {conversions}')


def iter_frames(
    source: DataSource,
    on_damage: Callable[[str], None] | None = None,
    display: DisplayConfig | None = None,
) -> Iterator[Frame]:
    """Yields the frames of a path or of bytes one at a time, without holding the file or earlier frames in memory.

    Times are timestamps, from 0 on; a frame without one follows at the mean rate. Interlaced frames are deinterlaced.
    Raises DamagedError at corruption; of a few corrupted bytes the decoder notices only a part.

    Args:
      source: path or bytes.
      on_damage: called with the reason instead, before the frames until the next key frame are skipped.
      display: which videos are refused, with ValueError; None refuses none that can be shown.
    """
    return deinterlace(_iter_coded_frames(source, on_damage, display or DisplayConfig()))


def _iter_coded_frames(
    source: DataSource, on_damage: Callable[[str], None] | None, display: DisplayConfig
) -> Iterator[Frame]:
    """Yields the frames as they are coded."""
    name = source_name(source)
    with open_container(source, cut_off=on_damage is not None) as (container, stream):
        period = 1 / float(mean_rate(stream) or DEFAULT_FPS)
        start, seconds = None, -period
        if on_damage is None:
            decoded = _decode_frames(name, container, stream)
        else:
            decoded = _decode_intact_frames(container, stream, on_damage)
        for frame in decoded:
            time = frame.time
            start = time if start is None else start
            seconds = seconds + period if time is None else time - start
            shown = Frame(name, seconds, frame, stream.sample_aspect_ratio)
            shown.check(display)
            yield shown


def decode(source: DataSource, max_frames: int | None = None) -> Video:
    """Decodes a path or bytes into memory. Logs what is assumed or converted to show the frames of a path.

    Args:
      source: path or bytes.
      max_frames: stops after so many.

    Raises:
      ValueError: the video cannot be decoded, or the size of its frames changes.
    """
    frames = []
    for shown in iter_frames(source):
        if not frames and not isinstance(source, bytes):  # a record's, which are read in every epoch
            _log_conversions(shown)
        frame = shown.pixels()
        if frames and frame.shape != frames[0].shape:
            raise ValueError(
                f'{source_name(source)}: frame {len(frames)} is {frame.shape[0]}x{frame.shape[1]}, '
                f'the ones before {frames[0].shape[0]}x{frames[0].shape[1]}; re-encode it at one size'
            )
        frames.append(frame)
        if max_frames is not None and len(frames) >= max_frames:
            break
    require(frames, f'{source_name(source)}: holds no frames')
    with open_container(source) as (_, stream):
        fps = float(mean_rate(stream) or DEFAULT_FPS)
    return Video(np.stack(frames), fps)
