"""Compression artefacts: images and videos are encoded and decoded in memory.

Encoders run in one thread: how x264 splits its work over threads changes what it writes, and a clip must not depend on
the machine's number of cores. x264's macroblock tree reads memory that nothing wrote (seen with sides that are not
multiples of 16, and others): with it, the same frames gave up to nine different streams in 24 runs. It is off.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace

from fv_jax.data.video.encoding import to_yuv
from fv_jax.data.video.frame import EXACT_UP

Codec = Literal['h264', 'mpeg4']
CODECS: tuple[Codec, ...] = ('h264', 'mpeg4')
_ENCODERS = {'h264': 'libx264', 'mpeg4': 'mpeg4'}
_OPTIONS = {'h264': {'preset': 'veryfast', 'x264-params': 'no-mbtree=1:rc-lookahead=0'}, 'mpeg4': {}}
_RATE = 24  # frames per second; only the ratio of the bit rate to it matters
_TOLERANCE_FRAMES = 4
_LOWEST_RATE = 1000  # bits per second: x264 counts in thousands, and rejects 0


def compress_jpeg(frame_HWC: np.ndarray, quality: int) -> np.ndarray:
    """Compresses a uint8 RGB image (H, W, 3) as JPEG of this quality, 1 to 100, and decodes it."""
    bgr = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def compress_video(frames: Iterable[np.ndarray], codec: Codec, bits_per_pixel: float) -> Iterator[np.ndarray]:
    """Compresses frames with a video codec at an average rate, and decodes them.

    Args:
      frames: uint8 RGB (H, W, 3), all of one size, both sides even.
      codec: 'h264' (x264) or 'mpeg4' (part 2, FFmpeg's own).
      bits_per_pixel: of the stream, over all frames. A short clip may reach twice of it; the coarsest quantizer is a
        lower limit.

    Yields:
      As many frames, shaped like the input.
    """
    decoder = av.CodecContext.create(codec, 'r')
    decoder.thread_count = 1
    encoder = None
    for frame in frames:
        if encoder is None:
            encoder = _encoder(codec, frame.shape[0], frame.shape[1], bits_per_pixel)
        for packet in encoder.encode(to_yuv(frame)):
            yield from _pixels(decoder.decode(packet))
    if encoder is not None:
        for packet in encoder.encode(None):
            yield from _pixels(decoder.decode(packet))
        yield from _pixels(decoder.decode(None))


def _encoder(codec: Codec, height: int, width: int, bits_per_pixel: float) -> av.VideoCodecContext:
    encoder = av.CodecContext.create(_ENCODERS[codec], 'w')
    encoder.height, encoder.width, encoder.pix_fmt = height, width, 'yuv420p'
    encoder.framerate, encoder.time_base = Fraction(_RATE), Fraction(1, _RATE)
    encoder.bit_rate = max(round(bits_per_pixel * height * width * _RATE), _LOWEST_RATE)
    # FFmpeg's own encoder may otherwise exceed the rate by 4 megabits, which is all of a short clip.
    encoder.bit_rate_tolerance = encoder.bit_rate * _TOLERANCE_FRAMES // _RATE
    encoder.options, encoder.thread_count = dict(_OPTIONS[codec]), 1
    return encoder


def _pixels(frames: Iterable[av.VideoFrame]) -> Iterator[np.ndarray]:
    for frame in frames:
        yield frame.to_ndarray(format='rgb24', interpolation=EXACT_UP, src_colorspace=Colorspace.ITU709)
