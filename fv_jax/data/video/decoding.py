"""Decodes video files and bytes to uint8 FHWC arrays, with PyAV.

All functions raise ValueError with one line that starts with the name of the file: not a video, no video stream,
damaged at frame n.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.read_errors import read_errors
from fv_jax.data.video import timing
from fv_jax.data.video.containers import (
    DamagedError,
    DataSource,
    VideoFile,
    format_reason,
    open_container,
    source_name,
    stated_rate,
)
from fv_jax.data.video.deinterlacing import deinterlace
from fv_jax.data.video.display import read_orientation
from fv_jax.data.video.frame import DisplayConfig, Frame
from fv_jax.data.video.seeking import WHOLE, Span, read_packets, seek

log = logging.getLogger(__name__)

# More frames than a decoder reorders.
_REORDERED = 20


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Properties of a file's video stream, read without decoding all of it.

    Attributes:
      height, width: pixels as shown: square, after the stored rotation.
      fps: frames per second, by the times of the frames; the mean if the rate is variable.
      frames: how many there are.
      rotation: degrees counter-clockwise that a decoded frame is rotated by to be shown: 0, 90, 180 or 270; of a
        mirrored one, before its columns are reversed.
      has_audio: whether there is an audio stream that can be decoded.
      is_constant: whether the rate is constant.
    """

    height: int
    width: int
    fps: Fraction
    frames: int
    rotation: int
    has_audio: bool
    is_constant: bool = True


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


def probe(
    source: DataSource,
    *,
    damaged: bool = False,
    display: DisplayConfig | None = None,
    span: Span = WHOLE,
    threads: int = 0,
) -> VideoInfo:
    """Reads size, rate, length and rotation of a file or of bytes; decodes one frame. Raises ValueError.

    What is assumed or converted to show the frames is logged in one line, and streams that are not read in another.

    A file that was cut off, or is damaged at its start, is an error unless `damaged` allows it. Rate and length are
    those of the span. display, threads: as in `iter_frames`.
    """
    with read_errors(source_name(source)), open_container(source, threads=threads) as file:
        measured = _measure(source, span)
        require(damaged or not file.cut, f'{file.name}: damaged at frame {measured.frames} ({file.cut})', DamagedError)
        if others := file.other_streams():
            log.info(f'note: {others}')
        first = next(_decode_intact_frames(file, []) if damaged else _decode_frames(file), None)
        require(first is not None, f'{file.name}: holds no frames')
        frame = Frame(file.name, 0.0, first, _pixel_aspect(file))
        frame.check(display or DisplayConfig())
        _log_conversions(source, frame)
        height, width = frame.size
        rotation, has_audio = read_orientation(first).rotation, file.audio is not None
    return VideoInfo(height, width, measured.fps, measured.frames, rotation, has_audio, measured.is_constant)


def _log_conversions(source: DataSource, frame: Frame) -> None:
    if isinstance(source, bytes):  # a record's, which are read in every epoch
        return
    if conversions := frame.describe_conversions():
        log.info(f'note: {frame.source}: {conversions}')


def _measure(source: DataSource, span: Span = WHOLE) -> timing.Timing:
    """Reads the times of all frames of a span without decoding them."""
    with open_container(source) as file:
        stream, times, count = file.stream, [], 0
        clock = timing.Clock(1 / stated_rate(stream))
        start = (stream.start_time or 0) * stream.time_base
        try:
            if span.first > 0:
                seek(file, start + Fraction(span.first))
            for packet in file.container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                if packet.dts is not None and clock.follow(packet.dts * stream.time_base) - start >= span.last:
                    break
                timestamp = packet.dts if packet.pts is None or _has_no_pts(file) else packet.pts
                time = None if timestamp is None else timestamp * stream.time_base + clock.shift
                if time is not None and span != WHOLE and not span.first <= time - start < span.last:
                    continue
                count += 1
                times += [] if time is None else [float(time)]
        except av.FFmpegError:
            pass  # decoding finds the frame
        stated = stream.average_rate, stream.guessed_rate, stream.base_rate
        if len(times) < 2:
            times, stated = np.arange(count) / float(stated_rate(stream)), (stated_rate(stream),)
        return dataclasses.replace(timing.measure(np.unique(times), stated), frames=count)


def _pixel_aspect(file: VideoFile) -> Fraction | None:
    """Returns width / height of the pixels of the frame that was decoded last; None if nothing states it.

    Broadcasts change it from frame to frame, in formats that do not state it themselves.
    """
    stated_by_codec = file.container.format.name in ('mpegts', 'mpeg', 'h264', 'hevc')
    return (file.stream.codec_context if stated_by_codec else file.stream).sample_aspect_ratio


def _has_no_pts(file: VideoFile) -> bool:
    """Returns whether a container stores no times of presentation; FFmpeg then invents some."""
    return 'avi' in file.container.format.name


def _decode_frames(file: VideoFile, first: Fraction | None = None) -> Iterator[av.VideoFrame]:
    """Yields the frames; those before time `first` may lack what they are predicted from, where reading began."""
    file.stream.thread_type = 'AUTO'
    count = 0
    try:
        for frame in itertools.chain.from_iterable(packet.decode() for packet in read_packets(file, first)):
            # The decoder conceals missing data with grey or smeared frames.
            if frame.is_corrupt and not _is_before(frame, first):
                raise DamagedError(f'{file.name}: damaged at frame {count}{file.cut and f" ({file.cut})"}')
            yield frame
            count += 1
    except av.FFmpegError as error:
        reason = file.cut or format_reason(error)
        raise DamagedError(f'{file.name}: damaged at frame {count} ({reason})') from None
    require(not file.cut, f'{file.name}: damaged at frame {count} ({file.cut})', DamagedError)


def _is_before(frame: av.VideoFrame, first: Fraction | None) -> bool:
    return first is not None and frame.pts is not None and frame.pts * frame.time_base < first


def _decode_intact_frames(
    file: VideoFile, resumed: list[av.VideoFrame | None], first: Fraction | None = None
) -> Iterator[av.VideoFrame]:
    """Yields frames as `_decode_frames`, but for those from damaged data on until the next key frame.

    Appends to `resumed` the frames before which some are missing; None for the end of the file.
    """
    file.stream.thread_type = 'SLICE'  # decoders with a thread per frame conceal the same damage differently each time
    packets, incomplete, damaged = read_packets(file, first), set(), False
    while True:
        try:
            if (packet := next(packets, None)) is None:
                break
            if packet.is_corrupt:
                incomplete.add(packet.pts)
            frames, damaged = packet.decode(), damaged or packet.is_corrupt
        except av.FFmpegError:
            frames, damaged = [], True
        bad = [(frame.is_corrupt and not _is_before(frame, first)) or frame.pts in incomplete for frame in frames]
        damaged = damaged or any(bad)
        for frame, is_bad in zip(frames, bad, strict=True):
            damaged = damaged or is_bad
            if damaged and (is_bad or not frame.key_frame):
                continue
            if damaged:
                resumed.append(frame)
            damaged = False
            yield frame
    if file.cut or damaged:
        resumed.append(None)


def _timed_frames(
    file: VideoFile, resumed: list[av.VideoFrame | None] | None = None, first: Fraction | None = None
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Yields the frames with their times in seconds, increasing, on the clock of the container.

    With `resumed` damage is skipped (`_decode_intact_frames`). first: on that clock, from when on frames are wanted;
    some before it are yielded too.
    """
    frames = _decode_frames(file, first) if resumed is None else _decode_intact_frames(file, resumed, first)
    head = list(itertools.islice(frames, 1))
    by_dts = _has_no_pts(file)
    if head and not by_dts and head[0].dts not in (None, head[0].pts):
        # Some files hold the order of decoding in place of that of presentation.
        head += itertools.islice(frames, _REORDERED)
        timestamps = [frame.pts for frame in head if frame.pts is not None]
        by_dts = any(later < earlier for earlier, later in itertools.pairwise(timestamps))
    clock = timing.Clock(1 / stated_rate(file.stream))
    for frame in itertools.chain(head, frames):
        timestamp = frame.dts if by_dts else frame.pts
        yield clock.follow(None if timestamp is None else timestamp * file.stream.time_base), frame


def start_time(source: DataSource, threads: int = 0) -> Fraction:
    """Returns the time of the first frame that is shown, in seconds on the clock of the container."""
    with open_container(source, threads=threads) as file:
        for time, _ in _timed_frames(file):
            return time
        raise ValueError(f'{file.name}: holds no frames')


def iter_frames(
    source: DataSource,
    on_damage: Callable[[float], None] | None = None,
    display: DisplayConfig | None = None,
    span: Span = WHOLE,
    threads: int = 0,
) -> Iterator[Frame]:
    """Yields the frames of a path or of bytes one at a time, without holding the file or earlier frames in memory.

    Their times are from 0 on, increasing. Interlaced frames are deinterlaced. Raises DamagedError at corruption, and
    where a file was cut off, after the frames before it; of a few corrupted bytes the decoder notices only a part.

    Args:
      source: path or bytes.
      on_damage: if given, frames from damage on until the next key frame are skipped instead; called with the time of
        that one in seconds, infinite for damage until the end.
      display: which videos are refused, with ValueError; None refuses none that can be shown.
      span: which frames; a file that is not seekable is read from its start nevertheless.
      threads: of the decoder; 0 is one for each core.
    """
    return deinterlace(_iter_coded_frames(source, on_damage, display or DisplayConfig(), span, threads))


def _iter_coded_frames(
    source: DataSource, on_damage: Callable[[float], None] | None, display: DisplayConfig, span: Span, threads: int
) -> Iterator[Frame]:
    """Yields the frames as they are coded."""
    with open_container(source, threads=threads) as file:
        stream, start, first = file.stream, None, None
        if span.first > 0:
            start = start_time(source, threads)
            first = start + Fraction(span.first)
        resumed: list[av.VideoFrame | None] | None = None if on_damage is None else []
        for time, frame in _timed_frames(file, resumed, first):
            start = time if start is None else start
            if time - start >= span.last:
                break
            if time - start < span.first:
                if resumed and resumed[0] is frame:
                    resumed.pop(0)
                continue
            duration = float((frame.duration or 0) * stream.time_base)
            shown = Frame(file.name, float(time - start), frame, _pixel_aspect(file), duration)
            shown.check(display)
            if resumed and resumed[0] is frame:
                resumed.pop(0)
                on_damage(shown.seconds)
            yield shown
        if resumed:
            on_damage(math.inf)


def iter_times(source: DataSource) -> Iterator[tuple[float, float]]:
    """Yields (time, duration) of each frame in seconds, the times from 0 on. Raises ValueError as `iter_frames`."""
    return timing.durations((frame.seconds, frame.duration) for frame in iter_frames(source))


def decode(source: DataSource, max_frames: int | None = None) -> Video:
    """Decodes a path or bytes into memory, at a constant rate.

    A video of variable rate is resampled by the times of its frames to the rate of most of them. Logs that, and what is
    assumed or converted to show the frames, of a path.

    Args:
      source: path or bytes.
      max_frames: stops after so many.

    Raises:
      ValueError: the video cannot be decoded, or the size of its frames changes.
    """
    with read_errors(source_name(source)):
        return _decode(source, max_frames)


def _decode(source: DataSource, max_frames: int | None) -> Video:
    measured = _measure(source)
    fps = float(measured.usual_fps)
    frames, seconds = [], []
    for frame in iter_frames(source):
        if not frames:
            _log_conversions(source, frame)
        pixels = frame.pixels()
        _check_size(source, frames, pixels)
        frames.append(pixels)
        seconds.append(frame.seconds)
        end = frame.seconds + frame.duration
        if max_frames is not None and (len(frames) if measured.is_even else frame.seconds * fps) >= max_frames:
            break
    require(frames, f'{source_name(source)}: holds no frames')
    if measured.is_even:
        return Video(np.stack(frames), fps)
    if not isinstance(source, bytes):
        log.info(f'note: {source}: variable frame rate, resampled by time to {fps:g} frames per second')
    count = max(int((seconds[-1] + 1e-6) * fps) + 1, round(end * fps))
    shown = timing.nearest_frames(np.array(seconds), np.arange(count)[:max_frames] / fps)
    return Video(np.stack([frames[index] for index in shown]), fps)


def _check_size(source: DataSource, frames: list[np.ndarray], frame: np.ndarray) -> None:
    if frames and frame.shape != frames[0].shape:
        raise ValueError(
            f'{source_name(source)}: frame {len(frames)} is {frame.shape[0]}x{frame.shape[1]}, '
            f'the ones before {frames[0].shape[0]}x{frames[0].shape[1]}; re-encode it at one size'
        )
