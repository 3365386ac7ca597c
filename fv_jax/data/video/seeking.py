"""Parts of a video by time, and how a file is read from the middle."""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction

import av

from fv_jax.data.video.containers import VideoFile, format_reason

# Containers that store the time of presentation of every frame and where the key frames are, and whose clock never
# jumps back: after a seek the times of frames are those of reading from the start.
_SEEKABLE = {'mov', 'mp4', 'matroska', 'webm'}
# A seek finds the key frame by its time of decoding, which is before that of presentation by up to 20 frames.
_LEAD_S = Fraction(2)


@dataclasses.dataclass(frozen=True)
class Span:
    """The frames of a video whose times are in [first, last) seconds."""

    first: float = 0.0
    last: float = math.inf

    def widen(self, seconds: float) -> 'Span':
        """Returns the span with so many seconds more at both ends, from 0 on."""
        return Span(max(self.first - seconds, 0.0), self.last + seconds)


WHOLE = Span()


def is_seekable(file: VideoFile) -> bool:
    """Returns whether frames after a seek have the times that reading from the start gives."""
    return not _SEEKABLE.isdisjoint(file.container.format.name.split(','))


def duration(file: VideoFile) -> float | None:
    """Returns the seconds that the header of a file states; None if it states none."""
    return None if file.container.duration is None else file.container.duration / av.time_base


def read_packets(file: VideoFile, first: Fraction | None = None) -> Iterator[av.Packet]:
    """Yields the packets of the video stream, from the last key frame on that is shown at or before a time.

    Args:
      file: open, and not read yet.
      first: on the clock of the container; None is the start. A file that is not seekable is read from the start.

    Raises:
      ValueError: the file is damaged.
    """
    if first is not None:
        seek(file, first)
    packets = file.container.demux(file.stream)
    if first is None or not is_seekable(file):
        yield from packets
        return
    # Damage before that key frame is none of the frames that are wanted.
    waiting: list[av.Packet] = []
    for packet in packets:
        if packet.is_keyframe and packet.pts is not None and packet.pts * packet.time_base <= first:
            waiting.clear()
        waiting.append(packet)
        if packet.dts is None or packet.dts * packet.time_base > first:
            break
    yield from waiting
    yield from packets


def seek(file: VideoFile, seconds: Fraction) -> None:
    """Moves to a key frame at or before a time on the clock of the container. A file that is not seekable stays put.

    Raises:
      ValueError: the file is damaged.
    """
    if is_seekable(file):
        try:
            file.container.seek(int((seconds - _LEAD_S) / file.stream.time_base), stream=file.stream, backward=True)
        except av.FFmpegError as error:
            raise ValueError(
                f'{file.name}: cannot be read from {float(seconds):.2f} s on ({format_reason(error)})'
            ) from None
