"""Video files and bytes to uint8 FHWC arrays and back, with PyAV.

Everything here raises ValueError with one line that begins with the file's name: not a video, no
video stream, damaged at frame n, a size that cannot be encoded.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from fv_jax.core.checks import require
from fv_jax.core.files import atomic_write

DataSource = str | Path | bytes

DEFAULT_CRF = 18
PRESETS = ('ultrafast', 'superfast', 'veryfast', 'faster', 'fast', 'medium', 'slow', 'slower', 'veryslow')
# For a file that states no rate.
DEFAULT_FPS = 25
# What players assume of a file that does not name its colour matrix: BT.709 from this height on, BT.601 below.
HD_HEIGHT = 720
# What is read, whatever a file's name says. Playlists and their like are not: they make FFmpeg open other files, and
# addresses.
FORMATS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,mxf,yuv4mpegpipe,h264,hevc,ivf'
_UNSPECIFIED = 2  # in FFmpeg's numbering of colour matrices
# The scaler's fast defaults round every value down by about one level and repeat chroma: 3 dB on a round trip.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Of chroma on its way up, where a linear filter is as near to what was filmed and takes two thirds of the time.
EXACT_UP = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Properties of a file's first video stream, read without decoding all of it.

    height, width: pixels as shown, after the rotation a phone may have written down.
    fps: mean frames a second.
    frames: as the container says or as length times fps; 0 if neither is known. An estimate.
    rotation: degrees counter-clockwise that a decoded frame is turned by to be shown: 0, 90, 180 or 270.
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
    """Decoded frames uint8 FHWC (RGB) and their rate in frames a second."""

    frames: np.ndarray
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        """The frames' (height, width) in pixels."""
        return self.frames.shape[1], self.frames.shape[2]


def _name(source: DataSource) -> str:
    return f'<{len(source)} bytes>' if isinstance(source, bytes) else str(source)


def _reason(error: Exception) -> str:
    return (getattr(error, 'strerror', None) or str(error)).strip().partition('\n')[0]


@contextlib.contextmanager
def _open(source: DataSource) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    name = _name(source)
    require(isinstance(source, bytes) or Path(source).is_file(), f'{name}: no such file')
    try:
        # An absolute path is never taken for an address, as a file called http:... would be.
        place = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
        container = av.open(place, options={'format_whitelist': FORMATS})
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f'{name}: not a video that can be read ({_reason(error)})') from None
    with container:
        # A cover picture of an audio file is a video stream too, but not film.
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        require(streams, f'{name}: has no video stream')
        require(streams[0].codec_context is not None, f'{name}: its video is in a format that cannot be decoded here')
        _check_complete(source, streams[0])
        yield container, streams[0]


def _check_complete(source: DataSource, stream: av.VideoStream) -> None:
    """A file that was cut off ends quietly: ask its index whether all of it is there."""
    length = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    for index, entry in enumerate(stream.index_entries):
        if entry.pos + entry.size > length:
            raise ValueError(f'{_name(source)}: damaged at frame {index} (the file is cut off at byte {length})')


def _fps(stream: av.VideoStream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)


def probe(source: DataSource) -> VideoInfo:
    """Size, rate, length and rotation of a file or of bytes; decodes one frame. Raises ValueError."""
    with _open(source) as (container, stream):
        fps = _fps(stream)
        seconds = Fraction(0)
        if stream.duration is not None:
            seconds = stream.duration * stream.time_base
        elif container.duration is not None:
            seconds = Fraction(container.duration, av.time_base)
        frames = stream.frames or round(seconds * fps)
        has_audio = bool(container.streams.audio)
        first = next(_decoded(_name(source), container, stream), None)
        require(first is not None, f'{_name(source)}: holds no frames')
        rotation = int(first.rotation) % 360
        height, width = (first.width, first.height) if rotation in (90, 270) else (first.height, first.width)
    return VideoInfo(height, width, fps, frames, rotation, has_audio)


def _decoded(name: str, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    stream.thread_type = 'AUTO'
    count = 0
    try:
        for frame in container.decode(stream):
            # The decoder conceals missing data; a clip with a grey or smeared frame is not what was filmed.
            require(not frame.is_corrupt, f'{name}: damaged at frame {count}')
            yield frame
            count += 1
    except av.FFmpegError as error:
        raise ValueError(f'{name}: damaged at frame {count} ({_reason(error)})') from None


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame: its time in seconds from the first one's, and its pixels on demand."""

    seconds: float
    _frame: av.VideoFrame

    def pixels(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 HWC (RGB), upright.

        size: (height, width) the frame is scaled to on the way, ignoring its aspect ratio (area averaging: good for
          looking at, not for training); None keeps the size.
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
    """Yields the frames of a path or bytes one at a time; neither the file nor the frames before are held.

    The times are the frames' timestamps, from 0 on; a frame without one follows at the mean rate. Raises ValueError
    when damage is reached; of damage of a few bytes the decoder notices only a part.
    """
    with _open(source) as (container, stream):
        period = 1 / float(_fps(stream) or DEFAULT_FPS)
        start, seconds = None, -period
        for frame in _decoded(_name(source), container, stream):
            time = frame.time
            start = time if start is None else start
            seconds = seconds + period if time is None else time - start
            yield Frame(seconds, frame)


def decode(source: DataSource, max_frames: int | None = None) -> Video:
    """Decodes a path or bytes into memory. Raises ValueError, also when the size changes on the way.

    Args:
      source: path or bytes.
      max_frames: stop after so many.
    """
    frames = []
    for frame in (f.pixels() for f in iter_frames(source)):
        if frames and frame.shape != frames[0].shape:
            raise ValueError(
                f'{_name(source)}: frame {len(frames)} is {frame.shape[0]}x{frame.shape[1]}, '
                f'the ones before {frames[0].shape[0]}x{frames[0].shape[1]}; re-encode it at one size'
            )
        frames.append(frame)
        if max_frames is not None and len(frames) >= max_frames:
            break
    require(frames, f'{_name(source)}: holds no frames')
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
    """An H.264 (yuv420p) mp4 of uint8 HWC frames, or of an FHWC array.

    Args:
      frames: at least one; both sides even, because chroma has half their resolution.
      fps: frames a second.
      crf: x264's constant rate factor: 0 is lossless, 18 hardly shows, 23 is x264's default.
      preset: x264's trade of time for size, 'ultrafast' to 'veryslow'.
      comment: a text for the file's comment tag, which `read_comment` reads; any length.
    """
    buffer = io.BytesIO()
    _write(buffer, frames, fps, crf, preset, comment)
    return buffer.getvalue()


def encode(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    crf: float = DEFAULT_CRF,
    preset: str = 'medium',
    comment: str = '',
) -> None:
    """Like `encode_bytes`, to the file `path`, which appears (or is replaced) only when it is complete."""
    with atomic_write(Path(path)) as partial:
        _write(str(partial), frames, fps, crf, preset, comment)


def read_comment(source: DataSource) -> str:
    """The text in a video's comment tag; '' if there is none. Raises ValueError."""
    with _open(source) as (container, _):
        return container.metadata.get('comment', '')


def _write(
    target: str | io.BytesIO, frames: Iterable[np.ndarray], fps: float | Fraction, crf: float, preset: str, comment: str
) -> None:
    require(fps > 0, f'fps={fps}: must be above 0')
    # A BytesIO has no name to tell the format by, a path may have an unusual one.
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
    # Written down, because players guess by height what a file does not say.
    codec = stream.codec_context
    codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
    codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def to_yuv(frame: np.ndarray) -> av.VideoFrame:
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
    return rgb.reformat(
        format='yuv420p', dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, interpolation=EXACT
    )


def copy_audio(source: str | Path, target: str | Path) -> bool:
    """Puts the audio of `source`, as it is, beside the video of the mp4 `target`, cut to the video's length.

    Returns:
      Whether there was audio. `target` is untouched if not, and replaced in one step if so.

    Raises:
      ValueError: one of them cannot be read, or the audio's format cannot be stored in an mp4.
    """
    with _open(source) as (audio_in, _), _open(target) as (video_in, video):
        if not audio_in.streams.audio:
            return False
        audio = audio_in.streams.audio[0]
        with atomic_write(Path(target)) as partial:
            try:
                with av.open(str(partial), 'w', format='mp4') as out:
                    _remux(out, video_in, video, audio_in, audio)
            except (av.FFmpegError, ValueError) as error:
                codec = audio.codec_context.name
                raise ValueError(
                    f'{source}: its audio ({codec}) cannot be stored in an mp4 ({_reason(error)})'
                ) from None
    return True


def _remux(out, video_in, video, audio_in, audio) -> None:
    out_video, out_audio = out.add_stream_from_template(video), out.add_stream_from_template(audio)
    end = 0.0
    for packet in video_in.demux(video):
        if packet.dts is None:
            continue
        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        packet.stream = out_video
        out.mux(packet)
    # Both start at 0 here, whatever offset the source's container gave them.
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
