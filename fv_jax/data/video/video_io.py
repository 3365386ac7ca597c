"""Decodes video files and bytes to uint8 FHWC arrays and encodes them, with PyAV.

All functions raise ValueError with one line that starts with the name of the file: not a video, no video stream,
damaged at frame n, a size that cannot be encoded.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from fv_jax.core import files, paths
from fv_jax.core.checks import require
from fv_jax.core.files import atomic_write
from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath, as_path

DataSource = str | StoragePath | bytes

# Of the files that commands look for in a folder.
VIDEO_SUFFIXES = ('.mp4', '.mov', '.m4v', '.webm', '.mkv', '.avi')
DEFAULT_CRF = 18
PRESETS = ('ultrafast', 'superfast', 'veryfast', 'faster', 'fast', 'medium', 'slow', 'slower', 'veryslow')
# For a file that states no rate.
DEFAULT_FPS = 25
# Players assume BT.709 for a file without a colour matrix from this height on, BT.601 below.
HD_HEIGHT = 720
# The formats that are read, whatever the suffix of a file. Playlists are not: they make FFmpeg open other files and
# URLs.
FORMATS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,mxf,yuv4mpegpipe,h264,hevc,ivf'
_UNSPECIFIED = 2  # in FFmpeg's numbering of colour matrices
# The scaler's fast defaults round every value down by about one level and repeat chroma: 3 dB on a round trip.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# For upsampling chroma: a linear filter is as accurate as a cubic one in two thirds of the time.
EXACT_UP = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Properties of a file's first video stream, read without decoding all of it.

    Attributes:
      height, width: pixels as shown, after the stored rotation.
      fps: mean frames per second.
      frames: as the container states or as duration times fps; 0 if neither is known. An estimate.
      rotation: degrees counter-clockwise that a decoded frame is rotated by to be shown: 0, 90, 180 or 270.
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


def _source_name(source: DataSource) -> str:
    return f'<{len(source)} bytes>' if isinstance(source, bytes) else str(source)


def _format_reason(error: Exception) -> str:
    return (getattr(error, 'strerror', None) or str(error)).strip().partition('\n')[0]


@contextlib.contextmanager
def _open(
    source: DataSource, *, only_header: bool = False
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens a video and its first video stream. A remote file is copied first, unless `only_header`."""
    name = _source_name(source)
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes):
            file, length = io.BytesIO(source), len(source)
        else:
            path = as_path(source)
            try:
                length = files.info(path).size
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise ValueError(f'{name}: no such file') from None
            if only_header:
                file = stack.enter_context(path.open('rb'))
            else:
                # FFmpeg reads a path faster. An absolute one is never taken for a URL, unlike a file named http:...
                file = str(paths.absolute(stack.enter_context(open_copy(path))))
        try:
            container = stack.enter_context(av.open(file, options={'format_whitelist': FORMATS}))
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f'{name}: not a video that can be read ({_format_reason(error)})') from None
        # The cover image of an audio file is a video stream too.
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        require(streams, f'{name}: has no video stream')
        require(streams[0].codec_context is not None, f'{name}: no decoder for its video format')
        _check_complete(name, streams[0], length)
        yield container, streams[0]


def _check_complete(name: str, stream: av.VideoStream, length: int) -> None:
    """Raises ValueError for a truncated file, which ends without an error, by comparing it with its index."""
    for index, entry in enumerate(stream.index_entries):
        if entry.pos + entry.size > length:
            raise ValueError(f'{name}: damaged at frame {index} (the file is cut off at byte {length})')


def _fps(stream: av.VideoStream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)


def probe(source: DataSource) -> VideoInfo:
    """Reads size, rate, length and rotation of a file or of bytes; decodes one frame. Raises ValueError."""
    with _open(source) as (container, stream):
        fps = _fps(stream)
        seconds = Fraction(0)
        if stream.duration is not None:
            seconds = stream.duration * stream.time_base
        elif container.duration is not None:
            seconds = Fraction(container.duration, av.time_base)
        frames = stream.frames or round(seconds * fps)
        has_audio = bool(container.streams.audio)
        first = next(_decode_frames(_source_name(source), container, stream), None)
        require(first is not None, f'{_source_name(source)}: holds no frames')
        rotation = int(first.rotation) % 360
        height, width = (first.width, first.height) if rotation in (90, 270) else (first.height, first.width)
    return VideoInfo(height, width, fps, frames, rotation, has_audio)


def _decode_frames(
    name: str, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    stream.thread_type = 'AUTO'
    count = 0
    try:
        for frame in container.decode(stream):
            # The decoder conceals missing data with grey or smeared frames.
            require(not frame.is_corrupt, f'{name}: damaged at frame {count}')
            yield frame
            count += 1
    except av.FFmpegError as error:
        raise ValueError(f'{name}: damaged at frame {count} ({_format_reason(error)})') from None


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame: its time in seconds from the first one, and its pixels on demand."""

    seconds: float
    _frame: av.VideoFrame

    def pixels(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Converts the frame to uint8 HWC (RGB), upright.

        Args:
          size: (height, width) to scale to, ignoring the aspect ratio (by area averaging: for display and detection,
            not for training); None keeps the size.
        """
        turns = int(self._frame.rotation) % 360 // 90
        options = {'interpolation': EXACT_UP}
        if size is not None:
            height, width = size[::-1] if turns % 2 else size
            options = {'height': height, 'width': width, 'interpolation': Interpolation.AREA}
        if self._frame.colorspace == _UNSPECIFIED:
            options['src_colorspace'] = Colorspace.ITU709 if self._frame.height >= HD_HEIGHT else Colorspace.ITU601
        image = self._frame.to_ndarray(format='rgb24', **options)
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def iter_frames(source: DataSource) -> Iterator[Frame]:
    """Yields the frames of a path or of bytes one at a time, without holding the file or earlier frames in memory.

    Times are timestamps, from 0 on; a frame without one follows at the mean rate. Raises ValueError at corruption; of
    a few corrupted bytes the decoder notices only a part.
    """
    with _open(source) as (container, stream):
        period = 1 / float(_fps(stream) or DEFAULT_FPS)
        start, seconds = None, -period
        for frame in _decode_frames(_source_name(source), container, stream):
            time = frame.time
            start = time if start is None else start
            seconds = seconds + period if time is None else time - start
            yield Frame(seconds, frame)


def decode(source: DataSource, max_frames: int | None = None) -> Video:
    """Decodes a path or bytes into memory.

    Args:
      source: path or bytes.
      max_frames: stops after so many.

    Raises:
      ValueError: the video cannot be decoded, or the size of its frames changes.
    """
    frames = []
    for frame in (f.pixels() for f in iter_frames(source)):
        if frames and frame.shape != frames[0].shape:
            raise ValueError(
                f'{_source_name(source)}: frame {len(frames)} is {frame.shape[0]}x{frame.shape[1]}, '
                f'the ones before {frames[0].shape[0]}x{frames[0].shape[1]}; re-encode it at one size'
            )
        frames.append(frame)
        if max_frames is not None and len(frames) >= max_frames:
            break
    require(frames, f'{_source_name(source)}: holds no frames')
    with _open(source) as (_, stream):
        fps = float(_fps(stream) or DEFAULT_FPS)
    return Video(np.stack(frames), fps)


def encode_bytes(
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    crf: float = DEFAULT_CRF,
    preset: str = 'medium',
    comment: str = '',
) -> bytes:
    """Encodes frames as an H.264 (yuv420p) mp4.

    Args:
      frames: at least one, uint8 (H, W, 3); both sides even, as chroma has half their resolution.
      fps: frames per second.
      crf: x264's constant rate factor: 0 is lossless, 18 is visually near lossless, 23 is x264's default.
      preset: x264's trade of time for size, 'ultrafast' to 'veryslow'.
      comment: a text of any length for the file's comment tag, which `read_comment` reads.

    Raises:
      ValueError: no frames, frames of different sizes, or of an odd size.
    """
    buffer = io.BytesIO()
    _write(buffer, frames, fps, crf, preset, comment)
    return buffer.getvalue()


def encode(
    path: str | StoragePath,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    crf: float = DEFAULT_CRF,
    preset: str = 'medium',
    comment: str = '',
) -> None:
    """Encodes frames to the file `path` atomically; see `encode_bytes`."""
    with atomic_write(as_path(path)) as partial:
        _write(str(partial), frames, fps, crf, preset, comment)


def read_comment(source: DataSource) -> str:
    """Reads the comment tag of a video; '' if there is none. Raises ValueError."""
    with _open(source, only_header=True) as (container, _):
        return container.metadata.get('comment', '')


def _write(
    target: str | io.BytesIO, frames: Iterable[np.ndarray], fps: float | Fraction, crf: float, preset: str, comment: str
) -> None:
    require(fps > 0, f'fps={fps}: must be above 0')
    # A BytesIO has no suffix that gives the format, and a path may have an unusual one.
    with av.open(target, 'w', format='mp4') as container:
        if comment:
            container.metadata['comment'] = comment
        stream = None
        for index, frame in enumerate(frames):
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f'frame {index}: expected uint8 (H, W, 3), got {frame.dtype} {frame.shape}')
            height, width = frame.shape[:2]
            if stream is None:
                if height % 2 or width % 2:
                    raise ValueError(
                        f'cannot encode {height}x{width}: H.264 with yuv420p needs an even height and width; '
                        f'crop to {height - height % 2}x{width - width % 2}'
                    )
                stream = _h264_stream(container, height, width, fps, crf, preset)
            if (stream.height, stream.width) != (height, width):
                raise ValueError(f'frame {index} is {height}x{width}, the first {stream.height}x{stream.width}')
            for packet in stream.encode(to_yuv(frame)):
                container.mux(packet)
        require(stream is not None, 'cannot encode a video of no frames')
        for packet in stream.encode():
            container.mux(packet)


def _h264_stream(container, height: int, width: int, fps: float | Fraction, crf: float, preset: str) -> av.VideoStream:
    rate = Fraction(fps).limit_denominator(1001)
    stream = container.add_stream('libx264', rate=rate, options={'crf': str(crf), 'preset': preset})
    stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
    # Stored explicitly, as players otherwise guess by height.
    codec = stream.codec_context
    codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
    codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def to_yuv(frame: np.ndarray) -> av.VideoFrame:
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
    return rgb.reformat(
        format='yuv420p', dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, interpolation=EXACT
    )


def copy_audio(source: str | StoragePath, target: str | StoragePath) -> bool:
    """Copies the audio stream of `source` into the mp4 `target`, cut to the length of its video.

    Returns:
      Whether there was audio. `target` is untouched if not, and replaced atomically if so.

    Raises:
      ValueError: one of them cannot be read, or the audio's format cannot be stored in an mp4.
    """
    with _open(source) as (audio_in, _), _open(target) as (video_in, video):
        if not audio_in.streams.audio:
            return False
        audio = audio_in.streams.audio[0]
        with atomic_write(as_path(target)) as partial:
            try:
                with av.open(str(partial), 'w', format='mp4') as out:
                    _remux(out, video_in, video, audio_in, audio)
            except (av.FFmpegError, ValueError) as error:
                codec = audio.codec_context.name
                raise ValueError(
                    f'{source}: its audio ({codec}) cannot be stored in an mp4 ({_format_reason(error)})'
                ) from None
    return True


def _remux(out, video_in, video, audio_in, audio) -> None:
    out_video, out_audio = out.add_stream_from_template(video), out.add_stream_from_template(audio)
    if 'comment' in video_in.metadata:
        out.metadata['comment'] = video_in.metadata['comment']
    end = 0.0
    for packet in video_in.demux(video):
        if packet.dts is None:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        packet.stream = out_video
        out.mux(packet)
    # Both start at 0 here, without the offsets of the source's container.
    start = None
    for packet in audio_in.demux(audio):
        if packet.dts is None:
            continue
        start = packet.pts if start is None else start
        packet.pts, packet.dts = packet.pts - start, packet.dts - start
        if packet.pts * packet.time_base >= end:
            break
        packet.stream = out_audio
        out.mux(packet)
