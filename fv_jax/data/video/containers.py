"""Opens video files and bytes with PyAV: formats, streams, truncated files.

All functions raise ValueError with one line that starts with the name of the file.
"""

import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction

import av

from fv_jax.core import files, paths
from fv_jax.core.checks import require
from fv_jax.core.local_copies import open_copy
from fv_jax.core.paths import StoragePath, as_path

DataSource = str | StoragePath | bytes


class DamagedError(ValueError):
    """Raised where a file is cut off or damaged; the frames before, and some after, can be used."""


# Of the files that commands look for in a folder.
VIDEO_SUFFIXES = ('.mp4', '.mov', '.m4v', '.webm', '.mkv', '.avi')
# The formats that are read, whatever the suffix of a file. Playlists are not: they make FFmpeg open other files and
# URLs.
FORMATS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif,asf,mxf,yuv4mpegpipe,h264,hevc,ivf'


def source_name(source: DataSource) -> str:
    return f'<{len(source)} bytes>' if isinstance(source, bytes) else str(source)


def format_reason(error: Exception) -> str:
    return (getattr(error, 'strerror', None) or str(error)).strip().partition('\n')[0]


@contextlib.contextmanager
def open_container(
    source: DataSource, *, only_header: bool = False, cut_off: bool = False
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens a video and its first video stream. A remote file is copied first, unless `only_header`.

    Raises DamagedError for a file that was cut off, unless `cut_off` allows it.
    """
    name = source_name(source)
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
            raise ValueError(f'{name}: not a video that can be read ({format_reason(error)})') from None
        # The cover image of an audio file is a video stream too.
        cover = av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        require(streams, f'{name}: has no video stream')
        require(streams[0].codec_context is not None, f'{name}: no decoder for its video format')
        if not cut_off:
            _check_complete(name, streams[0], length)
        yield container, streams[0]


def _check_complete(name: str, stream: av.VideoStream, length: int) -> None:
    """Raises DamagedError for a truncated file, which ends without an error, by comparing it with its index."""
    for index, entry in enumerate(stream.index_entries):
        if entry.pos + entry.size > length:
            raise DamagedError(f'{name}: damaged at frame {index} (the file is cut off at byte {length})')


def mean_rate(stream: av.VideoStream) -> Fraction:
    return Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)


def read_comment(source: DataSource) -> str:
    """Reads the comment tag of a video; '' if there is none. Raises ValueError."""
    with open_container(source, only_header=True) as (container, _):
        return container.metadata.get('comment', '')
