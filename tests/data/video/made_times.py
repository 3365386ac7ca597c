"""Videos with times, offsets and streams of many kinds: a flash and a beep begin at the same instant."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from fv_jax.data.transforms import to_float
from fv_jax.data.video import decoding
from fv_jax.sampling.clip_writer import write_clip

CASES = Path(__file__).parent / 'cases'
HEIGHT, WIDTH = 32, 48
RATE = 48000
# Dark frames are numbered by levels that differ by so much.
_STEP, _NUMBERS = 4, 24


@dataclasses.dataclass(frozen=True)
class Sound:
    """An audio stream.

    Attributes:
      codec: of FFmpeg.
      start: seconds of its first sample.
      beeps: whether it has the beep; otherwise it is silent.
      default: whether it is the default stream; None for neither.
    """

    codec: str = 'aac'
    start: float = 0.0
    beeps: bool = True
    default: bool | None = None


def even(fps: float, frames: int, start: float = 0.0) -> list[float]:
    return [start + frame / fps for frame in range(frames)]


def draw(number: int, is_white: bool, noise: int = 0) -> np.ndarray:
    level = 250 if is_white else 30 + _STEP * (number % _NUMBERS)
    grain = np.random.default_rng(number).integers(-noise, noise + 1, (HEIGHT, WIDTH, 3))
    return np.clip(level + grain, 0, 255).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """Reads the numbers of decoded frames, modulo 24; -1 for white ones."""
    levels = frames[:, 8:-8, 8:-8].astype(float).mean(axis=(1, 2, 3))
    return [-1 if level > 200 else round((level - 30) / _STEP) for level in levels]


def write(
    path: Path,
    times: Sequence[float],
    flash: float | None = 1.0,
    sounds: Sequence[Sound] = (),
    *,
    codec: str = 'libx264',
    pix_fmt: str = 'yuv420p',
    time_base: Fraction = Fraction(1, 90000),
    rate: int = 30,
    noise: int = 0,
    format: str | None = None,
    options: dict[str, str] | None = None,
    encoder: dict[str, str] | None = None,
) -> None:
    """Writes a video.

    Args:
      path: the file.
      times: of the frames in seconds, increasing.
      flash: the time from which frames are white and sound is a tone of 1 kHz; None for never.
      sounds: its audio streams, up to the last frame's end.
      codec, pix_fmt, encoder: of the video, and options of its encoder.
      time_base: of the frames' times.
      rate: that the header states, if it states one.
      noise: levels of noise, for frames of many bytes.
      format, options: of the container.
    """
    with av.open(str(path), 'w', format=format, options=options or {}) as out:
        video = out.add_stream(codec, rate=rate, options=encoder or {})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pix_fmt
        video.bit_rate = 400_000
        video.codec_context.time_base = time_base
        streams = [_add_sound(out, sound) for sound in sounds]
        for stream, sound in zip(streams, sounds, strict=True):
            _encode_sound(out, stream, sound, times[-1] + 1 / rate, flash)
        for number, time in enumerate(times):
            image = draw(number, flash is not None and time >= flash - 1e-6, noise)
            frame = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame.time_base, frame.pts = time_base, round(time / time_base)
            out.mux(video.encode(frame))
        out.mux(video.encode())


def _add_sound(out: av.container.OutputContainer, sound: Sound) -> av.AudioStream:
    stream = out.add_stream(sound.codec, rate=RATE, layout='mono')
    if sound.default is not None:
        stream.disposition = av.stream.Disposition.default if sound.default else av.stream.Disposition(0)
    stream.codec_context.open()
    return stream


def _encode_sound(out, stream: av.AudioStream, sound: Sound, end: float, flash: float | None) -> None:
    time = np.arange(round((end - sound.start) * RATE)) / RATE + sound.start
    tone = 0.5 * np.sin(2 * np.pi * 1000 * (time - (flash or 0)))
    wave = np.where(time >= (end if flash is None or not sound.beeps else flash) - 1e-9, tone, 0).astype(np.float32)
    codec = stream.codec_context
    size = codec.frame_size or 1024
    for first in range(0, len(wave), size):
        frame = av.AudioFrame.from_ndarray(wave[None, first : first + size], format='flt', layout='mono')
        frame.rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = first + round(sound.start * RATE)
        for piece in av.AudioResampler(codec.format, 'mono', RATE).resample(frame):
            out.mux(stream.encode(piece))
    out.mux(stream.encode())


@dataclasses.dataclass(frozen=True)
class Shown:
    """A file as a player shows it.

    Attributes:
      times: of the frames in seconds, on the clock of the file.
      end: of the last frame.
      flash: the time of the first white frame, in seconds from the first one; None without one.
      beep: the time from which there is sound, in seconds from the first frame; None without sound.
      sound_end: the time of the last sample, in seconds from the first frame.
    """

    times: np.ndarray
    end: float
    flash: float | None
    beep: float | None
    sound_end: float | None


def play(path: Path, audio: int = 0) -> Shown:
    """Decodes a file with PyAV, which applies edit lists and the priming that codecs state."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times, white, end = [], None, 0.0
        for frame in container.decode(stream):
            times.append(frame.time)
            end = frame.time + float((frame.duration or 0) * stream.time_base)
            if white is None and frame.to_ndarray(format='gray').mean() > 200:
                white = frame.time - times[0]
    beep, sound_end = _find_beep(path, audio)
    since = [None if time is None else time - times[0] for time in (beep, sound_end)]
    return Shown(np.array(times), end, white, *since)


def _find_beep(path: Path, audio: int) -> tuple[float | None, float | None]:
    beep = end = None
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None, None
        to_float = av.AudioResampler('flt', 'mono')
        for frame in container.decode(audio=audio):
            for piece in to_float.resample(frame):
                loud = np.flatnonzero(np.abs(piece.to_ndarray()[0]) > 0.1)
                if beep is None and len(loud):
                    beep = piece.time + loud[0] / piece.sample_rate
            end = frame.time + frame.samples / frame.sample_rate
    return beep, end


def copy_clip(source: Path, output: Path) -> Shown:
    """Writes a video as `sample clip` does, but for the enhancement, and plays the result."""
    blocks = (to_float(frame.pixels()[None]) for frame in decoding.iter_frames(source))
    write_clip(output, blocks, source, decoding.probe(source), crf=18, comment='')
    return play(output)
