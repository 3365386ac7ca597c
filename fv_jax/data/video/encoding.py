"""Encodes uint8 frames as H.264 (yuv420p, BT.709) in an mp4, with PyAV."""

import io
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from fv_jax.core.checks import require
from fv_jax.core.files import atomic_write
from fv_jax.core.paths import StoragePath, as_path

DEFAULT_CRF = 18
# Of the times of frames at a variable rate, in seconds.
_TICK = Fraction(1, 90000)
PRESETS = ('ultrafast', 'superfast', 'veryfast', 'faster', 'fast', 'medium', 'slow', 'slower', 'veryslow')
# The scaler's fast defaults round every value down by about one level and repeat chroma: 3 dB on a round trip.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


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
    times: Iterable[tuple[float, float]] | None = None,
) -> None:
    """Encodes frames to the file `path` atomically; see `encode_bytes`.

    Args:
      path, frames, fps, crf, preset, comment: as there.
      times: (time, duration) in seconds of every frame, the times increasing from 0 on; None for a constant rate.
    """
    with atomic_write(as_path(path)) as partial:
        _write(str(partial), frames, fps, crf, preset, comment, times)


def _write(
    target: str | io.BytesIO,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    crf: float,
    preset: str,
    comment: str,
    times: Iterable[tuple[float, float]] | None = None,
) -> None:
    require(fps > 0, f'fps={fps}: must be above 0')
    # A BytesIO has no suffix that gives the format, and a path may have an unusual one.
    with av.open(target, 'w', format='mp4') as container:
        if comment:
            container.metadata['comment'] = comment
        stream, placed = None, iter(times or ())
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
                if times is not None:
                    stream.codec_context.time_base = _TICK
                    stream.codec_context.flags |= Flags.frame_duration
            if (stream.height, stream.width) != (height, width):
                raise ValueError(f'frame {index} is {height}x{width}, the first {stream.height}x{stream.width}')
            image = to_yuv(frame)
            if times is not None:
                time, duration = next(placed)
                image.time_base, image.pts, image.duration = _TICK, round(time / _TICK), round(duration / _TICK)
            container.mux(stream.encode(image))
        require(stream is not None, 'cannot encode a video of no frames')
        container.mux(stream.encode())


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
