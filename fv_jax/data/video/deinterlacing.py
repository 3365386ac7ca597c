"""Deinterlaces frames with FFmpeg's bwdif, which is a part of PyAV: one frame for each frame."""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Iterator

import av

from fv_jax.data.video.frame import Frame

log = logging.getLogger(__name__)


def deinterlace(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yields the frames of a video at their times, the interlaced ones deinterlaced.

    A frame shows its first field; what is missing is computed from the frames around it. Frames that are not flagged as
    interlaced stay as they are.
    """
    graph = None
    for index, frame in enumerate(frames):
        if graph is None and frame.decoded.interlaced_frame:
            if index:
                log.info(f'note: {frame.source}: interlaced from frame {index} on, and deinterlaced')
            graph = _Deinterlacer(frame.decoded)
        if graph is None:
            yield frame
            continue
        if not graph.takes(frame.decoded):
            yield from graph.flush()
            graph = _Deinterlacer(frame.decoded)
        yield from graph.push(frame)
    if graph is not None:
        yield from graph.flush()


class _Deinterlacer:
    """A filter graph for frames of one size and format."""

    def __init__(self, first: av.VideoFrame):
        self._format = self._format_of(first)
        self._waiting: collections.deque[Frame] = collections.deque()
        self._graph = av.filter.Graph()
        source = self._graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=first.time_base
        )
        bwdif = self._graph.add('bwdif', 'mode=send_frame:parity=auto:deint=interlaced')
        sink = self._graph.add('buffersink')
        source.link_to(bwdif)
        bwdif.link_to(sink)
        self._graph.configure()

    @staticmethod
    def _format_of(frame: av.VideoFrame) -> tuple[int, int, str]:
        return frame.width, frame.height, frame.format.name

    def takes(self, frame: av.VideoFrame) -> bool:
        return self._format_of(frame) == self._format

    def push(self, frame: Frame) -> Iterator[Frame]:
        """Adds a frame and yields those that are ready: the filter needs the next frame first."""
        self._waiting.append(frame)
        self._graph.push(frame.decoded)
        yield from self._pull()

    def flush(self) -> Iterator[Frame]:
        """Yields the frames that are left."""
        self._graph.push(None)
        yield from self._pull()

    def _pull(self) -> Iterator[Frame]:
        while self._waiting:
            try:
                decoded = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            # The filter counts time in other units, and a frame may have none.
            yield dataclasses.replace(self._waiting.popleft(), decoded=decoded)
