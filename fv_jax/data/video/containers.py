"""Opens video files and bytes with PyAV: formats, the choice of streams, truncated files.

All functions raise ValueError with one line that starts with the name of the file.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av

from fv_jax.core import files, paths
from fv_jax.core.checks import require
from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.data.video.truncation import is_cut_off

DataSource = str | StoragePath | bytes


class DamagedError(ValueError):
    """Raised where a file is cut off or damaged; the frames before, and some after, can be used."""


# The formats that are read, whatever the suffix of a file. Playlists are not: they make FFmpeg open other files and
# URLs.
FORMATS = (
    'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,mxf,yuv4mpegpipe,h264,hevc,ivf,'
    'mpegvideo,m4v,obu,av1,dv,rm,nut'
)
# The suffixes of these formats: of the files that commands look for in a folder.
VIDEO_SUFFIXES = (
    *('.mp4', '.mov', '.m4v', '.webm', '.mkv', '.avi'),
    *('.qt', '.3gp', '.3g2', '.mj2', '.f4v', '.ismv', '.insv', '.mk3d', '.divx'),
    *('.ts', '.mts', '.m2ts', '.m2t', '.tod', '.mpg', '.mpeg', '.mpe', '.m2p', '.vob', '.mod', '.vro', '.evo'),
    *('.flv', '.ogv', '.ogm', '.ogx', '.gif', '.wmv', '.asf', '.dvr-ms', '.mxf', '.y4m'),
    *('.h264', '.264', '.avc', '.h265', '.265', '.hevc', '.ivf', '.obu', '.m1v', '.m2v', '.mpv'),
    *('.dv', '.dif', '.rm', '.rmvb', '.nut'),
)
# Of videos that are not read (camera raw, games, Flash, playlists, incomplete downloads); commands name them.
OTHER_VIDEO_SUFFIXES = (
    *('.braw', '.r3d', '.ari', '.crm', '.cine', '.vc1', '.wtv', '.gxf', '.swf', '.fla', '.nsv', '.bik', '.bk2', '.smk'),
    *('.amv', '.avs', '.vpy', '.yuv', '.ogg', '.lrv', '.avchd', '.m3u8', '.m3u', '.mpd', '.ism', '.iso'),
    *('.part', '.partial', '.crdownload', '.download', '.filepart'),
)
# For a file that states no rate.
DEFAULT_FPS = 25


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """An open video file.

    Attributes:
      name: for messages.
      container: the file.
      stream: its video stream: the default one, else the largest.
      cut: where the file was cut off, as a clause of a message; '' if it is complete.
    """

    name: str
    container: av.container.InputContainer
    stream: av.VideoStream
    cut: str = ''

    @property
    def audio(self) -> av.AudioStream | None:
        """The default audio stream, else the first that can be decoded; None if there is none."""
        audio = [stream for stream in self.container.streams.audio if _has_decoder(stream)]
        return max(audio, key=_is_default, default=None)

    def other_streams(self) -> str:
        """Describes the streams that are not read, as a line; '' if there are none."""
        chosen = [stream.index for stream in (self.stream, self.audio) if stream is not None]
        streams = [*_shown_streams(self.container), *self.container.streams.audio]
        others = [_describe_stream(stream) for stream in streams if stream.index not in chosen]
        used = f'stream{"s" if len(chosen) > 1 else ""} {" and ".join(map(str, chosen))}'
        return f'{self.name}: reads {used}, not {", ".join(others)}' if others else ''


def source_name(source: DataSource) -> str:
    return f'<{len(source)} bytes>' if isinstance(source, bytes) else str(source)


def format_reason(error: Exception) -> str:
    return (getattr(error, 'strerror', None) or str(error)).strip().partition('\n')[0]


@contextlib.contextmanager
def open_container(source: DataSource, *, only_header: bool = False, threads: int = 0) -> Iterator[VideoFile]:
    """Opens a video and chooses its video stream. A remote file is copied first, unless `only_header`.

    threads: of its decoder; 0 is one for each core.
    """
    name = source_name(source)
    with contextlib.ExitStack() as stack:
        cut = False
        if isinstance(source, bytes):
            file, length = io.BytesIO(source), len(source)
            cut = is_cut_off(io.BytesIO(source), length)
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
                local = stack.enter_context(open_copy(path))
                with local.open('rb') as opened:
                    cut = is_cut_off(opened, length)
                file = str(paths.absolute(local))
        where = f'the file is cut off at byte {length}'
        try:
            container = stack.enter_context(av.open(file, options={'format_whitelist': FORMATS}))
        except (av.FFmpegError, OSError) as error:
            reason = where if cut else format_reason(error)
            raise ValueError(f'{name}: not a video that can be read ({reason})') from None
        stream = _choose_video(name, container)
        stream.codec_context.thread_count = threads
        cut = cut or any(entry.pos + entry.size > length for entry in stream.index_entries)
        yield VideoFile(name, container, stream, where if cut else '')


def _choose_video(name: str, container: av.container.InputContainer) -> av.VideoStream:
    streams = _shown_streams(container)
    require(streams, f'{name}: has no video stream')
    known = [stream for stream in streams if _has_decoder(stream)]
    require(known, f'{name}: no decoder for its video format')
    return max(known, key=lambda stream: (_is_default(stream), stream.width * stream.height))


def _shown_streams(container: av.container.InputContainer) -> Sequence[av.VideoStream]:
    # The cover image of an audio file is a video stream too.
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def _has_decoder(stream: av.stream.Stream) -> bool:
    return stream.codec_context is not None


def _is_default(stream: av.stream.Stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.default)


def _describe_stream(stream: av.stream.Stream) -> str:
    codec = stream.codec_context.name if _has_decoder(stream) else 'unknown codec'
    language = stream.language
    return f'{stream.type} {stream.index} ({codec}{f", {language}" if language and language != "und" else ""})'


def stated_rate(stream: av.VideoStream) -> Fraction:
    """Returns the frames per second that the file states, for frames that have no times of their own."""
    return Fraction(stream.guessed_rate or stream.average_rate or stream.base_rate or DEFAULT_FPS)


def read_comment(source: DataSource) -> str:
    """Reads the comment tag of a video; '' if there is none. Raises ValueError."""
    with open_container(source, only_header=True) as file:
        return file.container.metadata.get('comment', '')
