"""Videos with tags, shapes and interlacing, made with PyAV."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from tests import scheduling

EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Tags of ITU-T H.273.
BT709, BT601, BT2020, DISPLAY_P3, PQ, HLG = 1, 6, 9, 12, 16, 18


def to_yuv(rgb: np.ndarray, matrix: int, pixels: str = 'yuv420p', *, full: bool = False) -> av.VideoFrame:
    """Converts uint8 RGB with FFmpeg's scaler; matrix: of Colorspace."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format='rgb24').reformat(
        format=pixels,
        dst_colorspace=Colorspace(matrix),
        dst_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        interpolation=EXACT,
    )


def through(frame: av.VideoFrame, filters: Sequence[str]) -> av.VideoFrame:
    """Returns what FFmpeg's filters, each as NAME or NAME=OPTIONS, make of a frame: another frame in any case."""
    graph = av.filter.Graph()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 24))
    for name, _, options in (text.partition('=') for text in (*filters, 'buffersink')):
        added = graph.add(name, options or None)
        last.link_to(added)
        last = added
    graph.configure()
    graph.push(frame)
    graph.push(None)
    return graph.pull()


def encode(
    frames: Sequence[av.VideoFrame],
    codec: str = 'libx264',
    container: str = 'mp4',
    *,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    display_matrix: Sequence[int] | None = None,
    tags: dict[str, int] | None = None,
    rate: Fraction | int = 24,
    offset: int = 0,
) -> bytes:
    """Encodes frames of one format.

    Args:
      frames: the frames, in the encoder's format.
      codec, container, options: names of FFmpeg.
      aspect: width of a pixel / its height.
      display_matrix: nine numbers in FFmpeg's fixed point.
      tags: of the codec context: colorspace, color_range, color_primaries, color_trc.
      rate: frames per second.
      offset: of the first frame's time, in frames.
    """
    buffer = io.BytesIO()
    with scheduling.restored_policy(), av.open(buffer, 'w', format=container) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        first = frames[0]
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if display_matrix is not None:
            stream.set_display_matrix(display_matrix)
        for index, frame in enumerate(frames):
            copy = through(frame, ['null'])  # as encoders take a frame, and its time, later
            copy.pts, copy.time_base = offset + index, 1 / Fraction(rate)
            for name, value in (tags or {}).items():
                setattr(copy, name, value)  # some encoders take them from the frames
            out.mux(stream.encode(copy))
        out.mux(stream.encode())
    return buffer.getvalue()
