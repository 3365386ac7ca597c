"""Encodes frames as H.264 (8 bits) or HEVC (10 bits), 4:2:0 and BT.709, in an mp4, with PyAV."""

import io
import platform
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from fv_jax.core.checks import require
from fv_jax.core.files import atomic_write
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.data.video import ten_bits

Codec = Literal['h264', 'hevc10']
DEFAULT_CRF = 18
_X265_BLOCK = 64  # pixels
# The macroblock tree of x264's AVX-512 code depends on uninitialized memory; that of its AVX2, SSE2 and C code does not
# (the streams are equal under several MALLOC_PERTURB_ of glibc). For other CPUs it was not tried, and is off. Without
# the tree, clips of one PSNR are 6 % larger.
_REPRODUCIBLE = 'asm=avx2' if platform.machine() in ('x86_64', 'AMD64') else 'mbtree=0'
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
    times: Iterable[tuple[float, float]] | None = None,
    reproducible: bool = False,
) -> bytes:
    """Encodes frames as an H.264 (yuv420p) mp4.

    Args:
      frames: at least one, uint8 (H, W, 3); both sides even, as chroma has half their resolution.
      fps: frames per second.
      crf: x264's constant rate factor: 0 is lossless, 18 is visually near lossless, 23 is x264's default.
      preset: x264's trade of time for size, 'ultrafast' to 'veryslow'.
      comment: a text of any length for the file's comment tag, which `read_comment` reads.
      times: (time, duration) in seconds of every frame, the times increasing from 0 on; None for a constant rate.
      reproducible: whether the same frames always give the same bytes, also on another number of cores: in one thread,
        and by code that depends on no uninitialized memory (`_REPRODUCIBLE`).

    Raises:
      ValueError: no frames, frames of different sizes, or of an odd size.
    """
    buffer = io.BytesIO()
    _write(buffer, frames, fps, crf, preset, comment, times, reproducible=reproducible)
    return buffer.getvalue()


def encode(
    path: str | StoragePath,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    crf: float = DEFAULT_CRF,
    preset: str = 'medium',
    comment: str = '',
    times: Iterable[tuple[float, float]] | None = None,
    codec: Codec = 'h264',
) -> None:
    """Encodes frames to the file `path` atomically; see `encode_bytes`.

    Args:
      path, frames, fps, crf, preset, comment, times: as there.
      codec: 'hevc10' takes frames that are float32 in [-1, 1], and x265's rate factor.
    """
    with atomic_write(as_path(path)) as partial:
        _write(str(partial), frames, fps, crf, preset, comment, times, codec)


def _write(
    target: str | io.BytesIO,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    crf: float,
    preset: str,
    comment: str,
    times: Iterable[tuple[float, float]] | None,
    codec: Codec = 'h264',
    reproducible: bool = False,
) -> None:
    dtype, convert = (np.dtype(np.float32), ten_bits.to_yuv) if codec == 'hevc10' else (np.dtype(np.uint8), to_yuv)
    require(fps > 0, f'fps={fps}: must be above 0')
    # A BytesIO has no suffix that gives the format, and a path may have an unusual one.
    with av.open(target, 'w', format='mp4') as container:
        if comment:
            container.metadata['comment'] = comment
        stream, placed = None, iter(times or ())
        for index, frame in enumerate(frames):
            if frame.dtype != dtype or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f'frame {index}: expected {dtype} (H, W, 3), got {frame.dtype} {frame.shape}')
            height, width = frame.shape[:2]
            if stream is None:
                if height % 2 or width % 2:
                    raise ValueError(
                        f'cannot encode {height}x{width}: 4:2:0 needs an even height and width; '
                        f'crop to {height - height % 2}x{width - width % 2}'
                    )
                stream = _add_stream(container, height, width, fps, crf, preset, codec)
                if reproducible:
                    stream.codec_context.thread_count = 1
                    stream.codec_context.options = stream.codec_context.options | {'x264-params': _REPRODUCIBLE}
                if times is not None:
                    _keep_times(stream.codec_context)
            if (stream.height, stream.width) != (height, width):
                raise ValueError(f'frame {index} is {height}x{width}, the first {stream.height}x{stream.width}')
            image = convert(frame)
            if times is not None:
                time, duration = next(placed)
                image.time_base, image.pts, image.duration = _TICK, round(time / _TICK), round(duration / _TICK)
            container.mux(stream.encode(image))
        require(stream is not None, 'cannot encode a video of no frames')
        container.mux(stream.encode())


def _add_stream(
    container, height: int, width: int, fps: float | Fraction, crf: float, preset: str, codec: Codec
) -> av.VideoStream:
    rate, options = Fraction(fps).limit_denominator(1001), {'crf': str(crf), 'preset': preset}
    if codec == 'hevc10':
        # x265 writes beyond its buffers where a frame is smaller than its blocks, and the process ends.
        small = f'cannot encode {height}x{width}: HEVC needs {_X265_BLOCK} pixels along both sides; choose h264'
        require(min(height, width) >= _X265_BLOCK, small)
        stream = container.add_stream('libx265', rate=rate, options=options | {'x265-params': 'log-level=error'})
        stream.pix_fmt = ten_bits.PIXEL_FORMAT
        stream.codec_context.codec_tag = 'hvc1'  # Apple's players show nothing of the default, hev1
    else:
        stream = container.add_stream('libx264', rate=rate, options=options)
        stream.pix_fmt = 'yuv420p'
    stream.height, stream.width = height, width
    # Stored explicitly, as players otherwise guess by height.
    context = stream.codec_context
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return stream


def _keep_times(codec: av.VideoCodecContext) -> None:
    codec.time_base = _TICK
    codec.flags |= Flags.frame_duration
    # An mp4 stores the durations between the times of decoding; without B-frames they are those of the frames.
    codec.max_b_frames = 0


def to_yuv(frame: np.ndarray) -> av.VideoFrame:
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
    return rgb.reformat(
        format='yuv420p', dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG, interpolation=EXACT
    )
